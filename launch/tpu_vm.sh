#!/usr/bin/env bash
# Trains on Cloud TPU VMs, from a machine with gcloud:
#   bash launch/tpu_vm.sh [--dry-run] VERB NAME --zone=ZONE [options] \
#     [-- arguments of gpt_jax.train]
# Verbs: create setup start wait status logs stop delete; run is create, setup,
# start, wait and logs. launch/README.md says what each does.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/setup.sh

is_dry='' is_existing='' verb='' name='' zone='' type='' version='' slices=1
poll_seconds=30 before='' has_workdir='' verbs=() place=() extra=() train=()

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

create() {
  local nodes=(--node-id="$name") state
  ((slices == 1)) || nodes=(--node-count="$slices" --node-prefix="$name")
  tpus create "$name" --accelerator-type="$type" \
    --runtime-version="$version" "${nodes[@]}" ${extra[@]+"${extra[@]}"}
  while :; do
    state=$(tpus describe "$name" '--format=value(state.state)')
    if [[ -n $is_dry ]]; then
      printf '%s # every %s s, until it says ACTIVE\n' "$state" "$poll_seconds"
      return
    fi
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED)
        die "the queued resource $name is $state; bash launch/tpu_vm.sh delete $name --zone=$zone frees the name." ;;
    esac
    printf 'gpt_jax: %s is %s\n' "$name" "$state" >&2
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

# All hosts end together, so one is asked.
wait_for_end() {
  local state='' silences=0 command='bash gpt_jax/launch/host.sh status'
  while :; do
    if [[ -n $is_dry ]]; then
      state=$(on "${first[@]}" "$command")
      printf '%s # every %s s, until it says ended\n' "$state" "$poll_seconds"
      return
    fi
    state=$(on "${first[@]}" "$command") || state=''
    case $state in
      *': ended '*) break ;;
      *': running'*) silences=0 ;;
      *': not started'*) die "nothing was started on $name; its logs may say why." ;;
      *)
        silences=$((silences + 1))
        ((silences < 20)) ||
          die "$name has not answered 20 times; was it taken away? bash launch/tpu_vm.sh run goes on with the same --workdir."
        ;;
    esac
    sleep "$poll_seconds"
  done
  code=${state##*': ended '}
  printf 'gpt_jax: ended with %s on %s\n' "$code" "$name" >&2
}

collect_logs() {
  local file=runs/$name.log
  if [[ -n $is_dry ]]; then
    printf '%s >%s\n' "$(on_hosts log)" "$file"
    return
  fi
  mkdir -p runs
  on_hosts log >"$file"
  printf 'gpt_jax: the logs are in %s\n' "$file" >&2
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
for verb in "${verbs[@]}"; do
  case $verb in
    create) create ;;
    setup) setup_hosts ;;
    start) on_hosts start "${train[@]}" ;;
    wait) wait_for_end ;;
    status | stop) on_hosts "$verb" ;;
    logs) collect_logs ;;
    delete) delete ;;
  esac
done
exit "$code"
