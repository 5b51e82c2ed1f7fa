#!/usr/bin/env bash
# Trains on Cloud TPU VMs, from a machine with gcloud:
#   bash launch/tpu_vm.sh [--dry-run] VERB NAME --zone=ZONE [options] \
#     [-- arguments of gpt_jax.train]
# Verbs: create setup start wait status logs stop delete; run is create, setup,
# start, wait and logs, again after 75 or a lost TPU as --restarts=N allows.
# launch/README.md says what each does, launch/RUNBOOK.md what to do when.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/setup.sh

is_dry='' is_existing='' verb='' name='' zone='' type='' version='' slices=1
poll_seconds=30 restarts=0 before='' has_workdir='' is_following=''
verbs=() place=() extra=() train=()
# Calls in a row that may fail before it is said that nothing answers, and
# seconds between lines of progress.
max_silences=20 say_seconds=60

# Reads the command line into the names above.
read_words() {
  local word
  while (($#)); do
    word=$1
    shift
    case $word in
      --dry-run) is_dry=1 ;;
      --existing) is_existing=1 ;;
      --zone=?*) zone=${word#*=} && place+=("$word") ;;
      --project=?*) place+=("$word") ;;
      --type=?*) type=${word#*=} ;;
      --version=?*) version=${word#*=} ;;
      --slices=*) slices=${word#*=} ;;
      --before=?*) before=${word#*=} ;;
      --poll=*) poll_seconds=${word#*=} ;;
      --restarts=*) restarts=${word#*=} ;;
      --follow) is_following=1 ;;
      --spot | --reserved | --network=?* | --subnetwork=?* | \
        --service-account=?* | --internal-ips) extra+=("$word") ;;
      --) train=("$@") && break ;;
      -*) die "there is no option $word; an argument of gpt_jax.train comes after a --, and a value after a =." ;;
      *)
        if [[ -z $verb ]]; then
          verb=$word
        elif [[ -z $name ]]; then
          name=$word
        else
          die "'$word' is one word too many; after the verb comes one name."
        fi
        ;;
    esac
  done
  case $verb in
    create | setup | start | wait | status | logs | stop | delete)
      verbs=("$verb") ;;
    run)
      verbs=(create setup start wait logs)
      [[ -z $is_existing ]] || verbs=(setup start wait logs)
      ;;
    *) die "the verb is '$verb'; it must be create, setup, start, wait, status, logs, stop, delete or run." ;;
  esac
  [[ $name =~ ^[a-z]([a-z0-9-]{0,47}[a-z0-9])?$ ]] ||
    die "the name is '$name'; it must be lower-case letters, digits and dashes, for instance gpt-124m."
  [[ -n $zone ]] || die "there is no --zone; the TPU needs one, for instance --zone=us-west4-a."
  [[ $slices =~ ^[1-9][0-9]{0,2}$ ]] ||
    die "--slices is '$slices'; it must be a whole number, 1 to 999."
  [[ $poll_seconds =~ ^[0-9]{1,4}$ ]] ||
    die "--poll is '$poll_seconds'; it must be a whole number of seconds."
  [[ $restarts =~ ^[0-9]{1,3}$ ]] ||
    die "--restarts is '$restarts'; it must be a whole number, 0 to 999."
  ((restarts == 0)) || [[ $verb == run ]] ||
    die "$verb is done once; --restarts is for run."
  [[ -z $is_following || $verb == logs ]] ||
    die "--follow is for logs; the verb is $verb."
  for word in ${train[@]+"${train[@]}"}; do
    case $word in --workdir | --workdir=?*) has_workdir=1 ;; esac
  done
  case " ${verbs[*]} " in
    *' create '*)
      [[ -z $is_existing ]] || die "create makes the TPU; leave --existing out."
      [[ -n $type ]] || die "there is no --type; say which TPU, for instance --type=v5litepod-16."
      version=${version:-$(version_for "$type")} || exit 1
      ;;
  esac
  case " ${verbs[*]} " in
    *' start '*)
      [[ -n $has_workdir ]] || die "there is no --workdir after a --; all hosts must reach it, and the run goes on from it."
      ;;
    *)
      ((${#train[@]} == 0)) || die "$verb takes no arguments of gpt_jax.train; start and run do."
      ;;
  esac
}

# The system image for a type, as Google's table of them has it.
version_for() {
  case $1 in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) die "no system image is known for --type=$1; name it with --version." ;;
  esac
}

# Prints its arguments as a shell reads them.
quote() {
  local word line='' mark="'"
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] ||
      word=$mark${word//$mark/$mark\\$mark$mark}$mark
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Everything that is done goes through here.
act() {
  if [[ -n $is_dry ]]; then
    quote "$@"
  else
    "$@"
  fi
}

tpus() {
  local kind=queued-resources
  [[ -z $is_existing ]] || kind=tpu-vm
  act gcloud compute tpus "$kind" "$@" "${place[@]}"
}

# Which hosts: all of all slices, or the one that tells how the run is.
all=(--worker=all)
first=(--worker=0)
choose_hosts() {
  [[ -n $is_existing ]] || all+=(--node=all) first+=(--node=0)
}

# on HOSTS... COMMAND: a line of bash on each of them.
on() {
  local command=${*: -1}
  tpus ssh "$name" "${@:1:$#-1}" --command="$command"
}

# Whether a call failed for the last time that is borne; each is said.
silences=0
is_silent() {
  silences=$((silences + 1))
  printf 'gpt_jax: %s did not answer, %s of %s\n' "$name" "$silences" "$max_silences" >&2
  ((silences >= max_silences))
}

# Prints what the TPU is: ACTIVE or READY where it can be used.
state_of_tpu() {
  local format='--format=value(state.state)'
  [[ -z $is_existing ]] || format='--format=value(state)'
  tpus describe "$name" "$format"
}

# At any exit: whether the TPU is there and costs. 'told' is set where it was.
told=''
# shellcheck disable=SC2329 # a trap calls it
tell_cost() {
  local result=$? state
  trap - EXIT
  if [[ -z $told ]]; then
    if state=$(state_of_tpu 2>/dev/null) && [[ -n $state ]]; then
      printf 'gpt_jax: the TPU %s is %s and costs until it is deleted: %s\n' \
        "$name" "$state" "$(how_to_delete)" >&2
    else
      printf 'gpt_jax: whether the TPU %s is still there was not answered; it may cost until it is deleted: %s\n' \
        "$name" "$(how_to_delete)" >&2
    fi
  fi
  exit "$result"
}

how_to_delete() {
  quote bash launch/tpu_vm.sh delete "$name" ${is_existing:+--existing} "${place[@]}"
}

create() {
  local nodes=(--node-id="$name") state
  ((slices == 1)) || nodes=(--node-count="$slices" --node-prefix="$name")
  tpus create "$name" --accelerator-type="$type" \
    --runtime-version="$version" "${nodes[@]}" ${extra[@]+"${extra[@]}"}
  silences=0
  while :; do
    state=$(state_of_tpu) || state=''
    if [[ -n $is_dry ]]; then
      printf '%s # every %s s, until it says ACTIVE\n' "$state" "$poll_seconds"
      return
    fi
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED)
        told=1
        die "the queued resource $name is $state; $(how_to_delete) frees the name." ;;
      '')
        ! is_silent ||
          die "gcloud has not told $max_silences times in a row how $name is; the request stands." ;;
      *)
        silences=0
        printf 'gpt_jax: %s is %s\n' "$name" "$state" >&2 ;;
    esac
    sleep "$poll_seconds"
  done
}

# The commit is copied, with its history: config.json names it.
copy_code() {
  local bundle
  bundle=${TMPDIR:-/tmp}/gpt_jax-$name.bundle
  if [[ -n $(git status --porcelain) ]]; then
    echo 'gpt_jax: what is not committed is not copied' >&2
  fi
  act git bundle create -q "$bundle" HEAD
  tpus scp "$bundle" "$name:gpt_jax.bundle" "${all[@]}"
}

setup_hosts() {
  copy_code
  on "${all[@]}" "set -e; ${before:+$before; }\
[ -d gpt_jax ] || git clone -q gpt_jax.bundle gpt_jax; \
git -C gpt_jax fetch -q ../gpt_jax.bundle HEAD; \
git -C gpt_jax checkout -q FETCH_HEAD; bash gpt_jax/launch/host.sh setup"
}

on_hosts() {
  on "${all[@]}" "$(quote bash gpt_jax/launch/host.sh "$@")"
}

# Whether the TPU was taken away: it is asked, and silence is no answer.
is_taken() {
  local state
  state=$(state_of_tpu) || return 1
  [[ $state != ACTIVE && $state != READY ]]
}

# All hosts end together, so one is asked. Sets 'code'; a TPU that was taken
# away, or answers no more, is 75.
wait_for_end() {
  local state='' line='' said='' spoke=$SECONDS
  local command='bash gpt_jax/launch/host.sh watch'
  silences=0
  while :; do
    if [[ -n $is_dry ]]; then
      state=$(on "${first[@]}" "$command")
      printf '%s # every %s s, until it says ended\n' "$state" "$poll_seconds"
      return
    fi
    state=$(on "${first[@]}" "$command") || state=''
    line=${state#*$'\n'}
    [[ $line != "$state" ]] || line=''
    state=${state%%$'\n'*}
    case $state in
      *': ended '*) break ;;
      *': running'*)
        silences=0
        if [[ $line != "$said" ]] && ((SECONDS - spoke >= say_seconds)); then
          said=$line spoke=$SECONDS
          printf 'gpt_jax: %s: %s\n' "$name" "$line" >&2
        fi
        ;;
      *': not started'*) die "nothing was started on $name; its logs may say why." ;;
      *)
        if is_silent || is_taken; then
          code=75
          printf 'gpt_jax: %s was taken away, or answers no more; the run goes on from its --workdir\n' "$name" >&2
          return
        fi
        ;;
    esac
    sleep "$poll_seconds"
  done
  code=${state##*': ended '}
  printf 'gpt_jax: ended with %s on %s\n' "$code" "$name" >&2
}

start_run() {
  on_hosts start "${train[@]}"
}

# After 75 or a lost TPU, as often as --restarts says.
go_on() {
  local left=$restarts
  if [[ -n $is_dry ]]; then
    ((left == 0)) || printf '# after 75 or a lost TPU, at most %s times: delete, create and setup where it is lost, start and wait\n' "$left"
    return
  fi
  while ((code == 75 && left > 0)); do
    left=$((left - 1))
    printf 'gpt_jax: starting again; %s restarts are left after this one\n' "$left" >&2
    if [[ -z $is_existing ]] && { is_taken || ((silences >= max_silences)); }; then
      # What is gone already cannot be deleted; create says what is wrong.
      delete || true
      create
      setup_hosts
    fi
    # A TPU that goes just now is lost like any other.
    if start_run; then
      wait_for_end
    else
      silences=$max_silences
    fi
  done
}

collect_logs() {
  local file=runs/$name.log
  if [[ -n $is_dry ]]; then
    printf '%s >%s\n' "$(on_hosts log)" "$file"
    return
  fi
  mkdir -p runs
  on_hosts log >"$file" || {
    printf 'gpt_jax: the logs could not be fetched; bash launch/tpu_vm.sh logs does it again\n' >&2
    return
  }
  printf 'gpt_jax: the logs are in %s\n' "$file" >&2
}

# From process 0, which alone prints. A call that fails is made again, from
# the line that is due.
follow_logs() {
  local seen=0 line
  if [[ -n $is_dry ]]; then
    on "${first[@]}" 'bash gpt_jax/launch/host.sh follow 1'
    return
  fi
  silences=0
  local pipe=${TMPDIR:-/tmp}/gpt_jax-$name.$$
  mkfifo "$pipe"
  while :; do
    on "${first[@]}" "bash gpt_jax/launch/host.sh follow $((seen + 1))" >"$pipe" &
    while IFS= read -r line; do
      seen=$((seen + 1)) silences=0
      printf '%s\n' "$line"
    done <"$pipe"
    if wait $!; then break; fi
    if is_silent; then
      rm -f "$pipe"
      die "$name has not answered $max_silences times in a row."
    fi
    sleep "$poll_seconds"
  done
  rm -f "$pipe"
}

delete() {
  if [[ -n $is_existing ]]; then
    tpus delete "$name" --quiet
  else
    tpus delete "$name" --quiet --force # with the TPU VMs that it has
  fi
}

read_words "$@"
choose_hosts
[[ -n $is_dry ]] || command -v gcloud >/dev/null ||
  die "gcloud is not on PATH; install the Google Cloud CLI, or see the commands with --dry-run."
code=0
((${#train[@]} == 0)) || check_run ${is_dry:+--dry-run} "${train[@]}"
# A dry run prints of it what is asked; status, logs and delete need no word.
case " ${verbs[*]} " in
  *' create '* | *' setup '* | *' start '* | *' wait '* | *' stop '*)
    [[ -n $is_dry ]] || trap tell_cost EXIT ;;
esac
for verb in "${verbs[@]}"; do
  case $verb in
    create) create ;;
    setup) setup_hosts ;;
    start) start_run ;;
    wait)
      wait_for_end
      go_on
      ;;
    status | stop) on_hosts "$verb" ;;
    logs) if [[ -n $is_following ]]; then follow_logs; else collect_logs; fi ;;
    delete) delete ;;
  esac
done
case " ${verbs[*]} " in
  *' create '* | *' setup '* | *' start '* | *' wait '* | *' stop '*)
    [[ -z $is_dry ]] || printf '%s # at any exit, to tell whether it costs\n' "$(state_of_tpu)" ;;
esac
exit "$code"
