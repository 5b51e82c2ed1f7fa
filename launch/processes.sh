# shellcheck shell=bash
# Sourced by local.sh: `start_processes N PYTHON ARGS` runs one command in N
# processes of this machine that find each other, and exits with the first
# code that is not 0. Runs under bash 3.2 (macOS), whose wait has no -n.

start_processes() {
  local count=$1 python=$2 port i pid code=0 status alive patience=0 signal=''
  pids=()
  shift
  port=$("$python" -c 'import socket
with socket.create_server(("127.0.0.1", 0)) as s: print(s.getsockname()[1])')

  trap 'signal=INT' INT
  trap 'signal=TERM' TERM
  trap 'kill -KILL ${pids[@]+"${pids[@]}"} 2>/dev/null || true' EXIT

  # In groups of their own (-m) they do not hear a terminal's Ctrl-C: it is
  # passed on to one of them, once, and that one stops all at the same step.
  set -m
  for ((i = 0; i < count; i++)); do
    JAX_COORDINATOR_ADDRESS=127.0.0.1:$port \
      JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port \
      JAX_NUM_PROCESSES=$count JAX_PROCESS_ID=$i "$@" </dev/null &
    pids+=($!)
  done
  set +m

  # They end together and say why; where one did not live to be heard, the
  # others are asked to, and then made to.
  while ((${#pids[@]})); do
    # Not `sleep & wait`: a trap that ends a wait makes bash 5.2 forget the
    # code of a process that ends at that moment.
    sleep 0.2 || true
    if [[ -n $signal ]]; then
      kill "-$signal" "${pids[0]}" 2>/dev/null || true
      signal=''
    fi
    alive=()
    for pid in "${pids[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then
        alive+=("$pid")
        continue
      fi
      status=0
      wait "$pid" || status=$?
      if ((code == 0)); then code=$status; fi
    done
    pids=(${alive[@]+"${alive[@]}"})
    if ((code && ${#pids[@]})); then
      patience=$((patience + 1))
      if ((patience == 50)); then kill -TERM "${pids[@]}" 2>/dev/null || true; fi
      if ((patience == 150)); then kill -KILL "${pids[@]}" 2>/dev/null || true; fi
    fi
  done
  trap - EXIT
  exit "$code"
}
