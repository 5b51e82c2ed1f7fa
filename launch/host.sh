#!/usr/bin/env bash
# What launch/tpu_vm.sh has each host of a TPU do: bash launch/host.sh VERB.
#   setup         install Python where it is too old, and the environment
#   start [ARGS]  python -m gpt_jax.train ARGS, which outlives the connection
#   status        one line: running, ended CODE, or not started
#   watch         status, and the last line that it has printed
#   log           all it has printed, each line after the name of the host
#   follow [N]    the log from line N on, and what is added, until the run ends
#   stop          SIGTERM: saves and ends
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/setup.sh

# pid while it runs, exit when it has ended, log of all starts.
notes=runs/host

is_running() {
  [[ ! -e $notes/exit && -e $notes/pid ]] && kill -0 "$(<"$notes/pid")" 2>/dev/null
}

setup_host() {
  # The system images have an older Python, and this one in reach.
  if ! (find_python) >/dev/null 2>&1; then
    sudo apt-get -qq -o DPkg::Lock::Timeout=300 update
    sudo apt-get -qq -y -o DPkg::Lock::Timeout=300 install python3.11-venv
  fi
  setup requirements.txt
  add_extra tpu
}

start() {
  is_running && die "it runs already on $(hostname); stop it first."
  setup requirements.txt
  mkdir -p "$notes"
  rm -f "$notes/exit"
  # The parent of the trainer writes down how it ended, and hears no hang-up.
  # shellcheck disable=SC2016,SC2154 # expanded by the parent; setup sets python
  nohup bash -c '"${@:2}" & echo $! >"$1/pid"; wait $!; echo $? >"$1/exit"' \
    gpt_jax "$notes" "$python" -m gpt_jax.train "$@" \
    </dev/null >>"$notes/log" 2>&1 &
  printf '%s: started\n' "$(hostname)"
}

status() {
  local state='not started'
  if is_running; then
    state=running
  elif [[ -e $notes/exit ]]; then
    state="ended $(<"$notes/exit")"
  elif [[ -e $notes/pid ]]; then
    state='ended 137' # the host, or whoever noted it, was killed
  fi
  printf '%s: %s\n' "$(hostname)" "$state"
}

watch() {
  status
  tail -n 1 "$notes/log" 2>/dev/null || true
}

follow() {
  local seen=$(($1 - 1)) total alive=1
  while [[ -n $alive ]]; do
    is_running || alive=''
    total=$(wc -l <"$notes/log")
    if ((total > seen)); then
      sed -n "$((seen + 1)),${total}p" "$notes/log"
      seen=$((total))
    fi
    [[ -z $alive ]] || sleep 2
  done
}

log() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do
    printf '%s: %s\n' "$(hostname)" "$line"
  done <"$notes/log"
}

stop() {
  if is_running; then
    kill -TERM "$(<"$notes/pid")"
    for ((i = 0; i < 600; i++)); do
      is_running || break
      sleep 1
    done
  fi
  status
  ! is_running
}

verb=${1:-}
case $verb in
  setup) setup_host ;;
  start) start "${@:2}" ;;
  follow) follow "${2:-1}" ;;
  status | watch | log | stop) "$verb" ;;
  *) die "the verb is '$verb'; it must be setup, start, status, watch, follow, log or stop." ;;
esac
