#!/usr/bin/env bash
# Trains through SLURM; is resubmitted by itself when preempted.
#   bash launch/slurm.sh [--dry-run] [--cells=FILE] [options of sbatch] -- \
#     [arguments of gpt_jax.train]
# or, where the environment has been made, from the repo root:
#   sbatch [options of sbatch] launch/slurm.sh [arguments of gpt_jax.train]
#
# The tasks alone are signalled before the time limit: the shell has nothing to
# save. Both kinds of start use these; the command line wins.
#SBATCH --job-name=gpt_jax
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail

# SLURM runs a copy of this file, beside which there is nothing.
verb=run
if [[ -r $(dirname -- "${BASH_SOURCE[0]}")/setup.sh ]]; then
  verb=submit
  CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
elif [[ ! -r launch/setup.sh ]]; then
  echo "gpt_jax: $PWD is not its folder; submit from there." >&2
  exit 1
fi
source launch/setup.sh

# A task may end a little before another that is still writing: none is killed
# for that, and none outlives a lost one.
step=(srun --kill-on-bad-exit=0 --wait=300)

# Prints the lines of a file of cells: one for each index, without comments.
cells_of() {
  [[ -f $1 ]] || die "there is no file $1; --cells is one line of arguments for each job."
  grep -vE '^[[:space:]]*(#|$)' "$1" ||
    die "$1 is empty; --cells is one line of arguments for each job."
}

# Leaves the words of a line in the array words; quotes work as in a shell.
split_line() {
  local list
  list=$(xargs printf '%s\n' <<<"$1" 2>/dev/null) ||
    die "this line of cells has an open quote: $1"
  mapfile -t words <<<"$list"
}

# Prints the last --workdir among the arguments.
workdir_of() {
  local word last='' workdir=''
  for word in "$@"; do
    if [[ $last == --workdir ]]; then workdir=$word; fi
    if [[ $word == --workdir=* ]]; then workdir=${word#--workdir=}; fi
    last=$word
  done
  printf '%s\n' "$workdir"
}

print_step() {
  # shellcheck disable=SC2016 # it is what setup leaves
  printf '# %s $GPT_JAX_PYTHON -m gpt_jax.train' "${step[*]}"
  printf ' %q' "$@"
  printf '\n'
}

# On the machine that submits.

submit() {
  local dry_run='' cells='' words=() options=() line workdir all='' count
  while (($#)) && [[ $1 != -- ]]; do
    case $1 in
      --dry-run) dry_run=yes ;;
      --cells=*) cells=${1#--cells=} ;;
      *) options+=("$1") ;;
    esac
    shift
  done
  (($#)) ||
    die "there is no -- among the arguments; before it come those of sbatch, after it those of gpt_jax.train."
  shift

  if [[ -n $cells ]]; then
    count=0
    while IFS= read -r line; do
      split_line "$line"
      workdir=$(workdir_of "$@" "${words[@]}")
      [[ -n $workdir ]] || die "this line of $cells has no --workdir: $line"
      if grep -qxF -- "$workdir" <<<"$all"; then
        die "two lines of $cells have the --workdir $workdir; each needs its own."
      fi
      all+=$workdir$'\n'
      count=$((count + 1))
    done < <(cells_of "$cells")
    ((count)) || exit 1 # cells_of has said why
    options=(--array="0-$((count - 1))" ${options[@]+"${options[@]}"})
    set -- --cells="$cells" "$@"
  elif [[ -z $(workdir_of "$@") ]]; then
    die "there is no --workdir after the --; the run goes on from it when the job is started again."
  fi

  # %j is another number for each index of an array too.
  options=(--output=runs/slurm-%j.out ${options[@]+"${options[@]}"})
  if [[ -n $dry_run ]]; then
    printf 'cd %q\n' "$PWD"
    printf 'source launch/setup.sh\nsetup requirements.txt\nmkdir -p runs\n'
    # shellcheck disable=SC2016 # it is what setup leaves
    printf 'GPT_JAX_PYTHON=$python sbatch'
    printf ' %q' "${options[@]}" launch/slurm.sh "$@"
    printf '\n# each job, on its first node:\n'
    if [[ -z $cells ]]; then
      print_step "$@"
    else
      shift
      while IFS= read -r line; do
        split_line "$line"
        print_step "$@" "${words[@]}"
      done < <(cells_of "$cells")
    fi
    return
  fi
  type sbatch >/dev/null 2>&1 ||
    die "there is no sbatch here; run this where jobs are submitted."
  setup requirements.txt # once, and here: nodes may reach no index
  mkdir -p runs
  # shellcheck disable=SC2154 # setup leaves it
  GPT_JAX_PYTHON=$python exec sbatch "${options[@]}" launch/slurm.sh "$@"
}

# On the first node of a job.

# A controller that has much to do may not answer at once.
state_of_job() {
  local state='' _
  for _ in 1 2 3; do
    state=$(scontrol show job --oneliner "$id" |
      sed -n 's/.* JobState=\([A-Z]*\).*/\1/p') || true
    if [[ -n $state ]]; then break; fi
    sleep 1
  done
  printf '%s\n' "${state:-unknown}"
}

# Without B: in --signal SLURM tells the tasks and not this shell, as it does
# when it preempts. What reaches this shell alone is passed on to them; when
# the job is being ended, they have heard it, and a second time would end them
# before they have saved. Never to srun: it answers SIGTERM with SIGKILL.
pass_on() {
  is_told=yes
  case $(state_of_job) in
    RUNNING | unknown) scancel --signal=TERM "$SLURM_JOB_ID.0" || true ;;
  esac
}

run() {
  local python=${GPT_JAX_PYTHON:-$PWD/.venv/bin/python} line words code pid
  [[ -n ${SLURM_JOB_ID:-} ]] ||
    die "launch/slurm.sh was moved; leave it beside setup.sh."
  # The last job of an array has the array's number, which means all of them.
  id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  id=${id:-$SLURM_JOB_ID}
  [[ -x $python ]] ||
    die "there is no $python; submit with bash launch/slurm.sh, which makes it."
  if [[ ${1:-} == --cells=* ]]; then
    [[ -n ${SLURM_ARRAY_TASK_ID:-} ]] ||
      die "--cells is for an array of jobs; give sbatch --array, counted from 0."
    line=$(cells_of "${1#--cells=}" | sed -n "$((SLURM_ARRAY_TASK_ID + 1))p")
    [[ -n $line ]] || die "${1#--cells=} has no line for index $SLURM_ARRAY_TASK_ID."
    split_line "$line"
    shift
    set -- "$@" "${words[@]}"
  fi

  printf 'gpt_jax: job %s, start %d, tasks: %s, nodes: %s\n' "$id" \
    "$((${SLURM_RESTART_COUNT:-0} + 1))" "${SLURM_NTASKS:-1}" \
    "$SLURM_JOB_NODELIST"
  # srun does not take it over from sbatch by itself.
  if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
  fi
  trap pass_on TERM
  # In a group of its own (-m), srun does not hear what is sent to this shell's.
  set -m
  "${step[@]}" "$python" -m gpt_jax.train "$@" </dev/null &
  pid=$!
  set +m
  while :; do
    is_told='' code=0
    wait "$pid" || code=$?
    [[ -n $is_told ]] || break
  done

  # 75: saved, to go on; 143: told to stop before there was anything to save.
  # A job that is not running any more was cancelled, or SLURM requeues it.
  if ((code == 75 || code == 143)) && [[ $(state_of_job) == RUNNING ]]; then
    printf 'gpt_jax: job %s is to go on: back into the queue\n' "$id"
    scontrol requeue "$id" || {
      printf 'gpt_jax: job %s cannot be requeued; the same command goes on\n' "$id" >&2
      exit "$code"
    }
  fi
  exit "$code"
}

"$verb" "$@"
