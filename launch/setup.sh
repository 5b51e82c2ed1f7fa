# shellcheck shell=bash
# Sourced by the other scripts from the repo root. `setup LOCK` leaves the
# interpreter of an environment that holds what the lock names in $python.
# Runs under bash 3.2 (macOS) and needs nothing but coreutils and grep.

die() {
  printf 'gpt_jax: %s\n' "$1" >&2
  exit 1
}

# Prints "3.12" for a Python that works. Only running it tells: a pyenv shim
# is found on PATH and fails.
version_of() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

is_new_enough() {
  [[ $1 =~ ^3\.(1[1-9]|[2-9][0-9])$ ]]
}

# Whether that process is another launch. In containers the numbers of dead
# processes are soon used again, so the name is looked at where it can be.
is_launching() {
  [[ $1 != "$$" ]] && kill -0 "$1" 2>/dev/null &&
    { [[ ! -r /proc/$1/cmdline ]] ||
      grep -qaE '(local|test|slurm|host|study|families|article|site)\.sh' "/proc/$1/cmdline"; }
}

find_python() {
  local name
  if [[ -n ${PYTHON:-} ]]; then
    is_new_enough "$(version_of "$PYTHON")" ||
      die "PYTHON=$PYTHON does not run as Python 3.11 or newer; name one that does."
    printf '%s\n' "$PYTHON"
    return
  fi
  for name in python3.13 python3.12 python3.11 python3 python; do
    if is_new_enough "$(version_of "$name")"; then
      printf '%s\n' "$name"
      return
    fi
  done
  die "no Python 3.11 or newer was found on PATH; install one, or name it with PYTHON=/path/to/python."
}

# `check_run ARGS`: config, source and tokenizer of gpt_jax.train ARGS, before
# anything is requested that costs. A dry run (a first word --dry-run) installs
# nothing: without an environment it says so.
check_run() {
  if [[ $1 == --dry-run ]]; then
    shift
    if ! is_new_enough "$(version_of .venv/bin/python)"; then
      echo 'gpt_jax: not checked: there is no environment yet, which the real call makes; bash launch/local.sh --help makes it now' >&2
      return
    fi
    python=$PWD/.venv/bin/python
  else
    setup requirements.txt
  fi
  "$python" -m gpt_jax.lab.verify.check "$@" >&2 || exit 1
}

# uv takes a quarter of pip's time, so it is fetched for this one time; where
# it cannot be had or fails, pip does the same. The lock is complete, so
# neither has anything to resolve. Bytecode is left to the first import, which
# compiles only what it meets: all of it would take longer than the rest.
install_lock() {
  local lock=$1 home=$2 index
  local pip=("$python" -m pip --disable-pip-version-check)
  export PIP_USER=0 # a user's setting of it makes pip refuse here
  # uv does not read pip's settings: a private index would be passed over.
  index=${PIP_INDEX_URL:-$("${pip[@]}" config list 2>/dev/null |
    sed -n "s/^[a-z]*\.index-url='\(.*\)'\$/\1/p" | tail -n 1)}
  if [[ -n $index ]]; then
    export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}
  fi
  if "${pip[@]}" install -q --retries 1 --no-deps --no-compile \
    --only-binary :all: --target "$home/.uv" 'uv>=0.9,<1' >/dev/null 2>&1 &&
    "$home/.uv/bin/uv" pip install -q --no-deps --python "$python" \
      --cache-dir "${UV_CACHE_DIR:-$home/.uv/cache}" -r "$lock" >/dev/null 2>&1; then
    rm -rf "$home/.uv"
    return
  fi
  rm -rf "$home/.uv"
  "${pip[@]}" install -q --no-deps --no-compile -r "$lock"
}

setup() {
  # Container images often set it; every start would compile everything again.
  unset PYTHONDONTWRITEBYTECODE
  local lock=$1 home=.venv base='' version='' here wanted state owner
  case ${PYTHON:-} in
    /* | '') ;;
    */*) PYTHON=$OLDPWD/$PYTHON ;; # as the caller meant it
  esac
  here=$(version_of .venv/bin/python) || here=''
  if [[ -n ${PYTHON:-} ]] || ! is_new_enough "$here"; then
    base=$(find_python) || exit 1
    version=$(version_of "$base")
    # .venv keeps its Python; another version gets a folder of its own, so
    # that going back and forth installs nothing.
    if [[ -n $here && $here != "$version" ]]; then
      home=.venv-$version
      here=$(version_of "$home/bin/python") || here=''
    fi
  fi
  python=$PWD/$home/bin/python
  stamp=$home/.gpt_jax

  wanted="$lock $here $(cksum <"$lock")"
  if [[ -n $here ]] && grep -qxF "$wanted" "$stamp" 2>/dev/null; then
    return
  fi

  state=$(cat "$stamp" 2>/dev/null) || state=''
  case $state in
    unfinished*)
      owner=${state#unfinished }
      if is_launching "$owner"; then
        die "process $owner is installing into $home; wait for it, or delete $home if it is something else."
      fi
      here='' # cut off halfway: build anew
      ;;
    '' | *" $here "*) ;;
    *) here='' ;; # the interpreter beneath was replaced by another version
  esac

  if [[ -z $here && -z $base ]]; then
    base=$(find_python) || exit 1
    version=$(version_of "$base")
  fi
  printf 'gpt_jax: installing into %s (Python %s); about a minute, once\n' \
    "$home" "${here:-$version}" >&2
  if [[ -z $here ]]; then
    rm -rf "$home"
    mkdir "$home"
  fi
  echo "unfinished $$" >"$stamp"
  if [[ -z $here ]]; then
    if ! "$base" -m venv "$home" >/dev/null 2>&1; then
      rm -rf "$home"
      die "$base cannot make a virtual environment; on Debian and Ubuntu install python$version-venv."
    fi
    echo '*' >"$home/.gitignore"
  fi
  # An environment made by uv has no pip.
  "$python" -m pip --version >/dev/null 2>&1 ||
    "$python" -m ensurepip >/dev/null 2>&1 ||
    die "$home has no pip; delete it and run this again."
  install_lock "$lock" "$home" ||
    die "the packages of $lock could not be installed; the reason is above; run this again once it is mended."

  here=$(version_of "$python")
  {
    echo "$lock $here $(cksum <"$lock")"
    # The development lock holds all of the other one.
    if [[ $lock == requirements-dev.txt ]]; then
      echo "requirements.txt $here $(cksum <requirements.txt)"
    fi
  } >"$stamp"
}

# `add_extra NAME` after `setup`: also installs that extra of pyproject.toml,
# at the versions of the lock where it names them.
add_extra() {
  local wanted
  wanted="extra $1 $(cksum <requirements.txt)"
  if grep -qxF "$wanted" "$stamp"; then
    return
  fi
  printf 'gpt_jax: installing the extra %s\n' "$1" >&2
  "$python" -m pip --disable-pip-version-check install -q \
    -c requirements.txt -e ".[$1]" ||
    die "the extra $1 could not be installed; the reason is above; run this again once it is mended."
  echo "$wanted" >>"$stamp"
}
