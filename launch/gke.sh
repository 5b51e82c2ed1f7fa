#!/usr/bin/env bash
# Trains on TPU slices in GKE: fills in launch/gke.yaml and applies it.
#   bash launch/gke.sh [--dry-run] [start] NAME --type=ACCELERATOR \
#     --topology=AxB --image=IMAGE --claim=CLAIM [options] \
#     -- [arguments of gpt_jax.train]
#   bash launch/gke.sh [--dry-run] status|logs|stop|delete NAME \
#     [--namespace=NAME] [--follow]
# --dry-run prints the manifest, or the kubectl command, and does nothing.
# launch/README.md names the options, launch/RUNBOOK.md says what to do when.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/setup.sh

is_dry='' name='' type='' topology='' image='' claim='' workdir=''
slices=1 chips=4 mount=/runs restarts=3 options=() has_end='' words=()
cpu=8 memory=32Gi verb=start env=() secrets=() is_following=''
labels=(app.kubernetes.io/name=gpt_jax)
while (($#)); do
  word=$1
  shift
  case $word in
    --) has_end=1 && break ;;
    --dry-run) is_dry=1 ;;
    --type=?*) type=${word#*=} ;;
    --topology=?*) topology=${word#*=} ;;
    --image=?*) image=${word#*=} ;;
    --claim=?*) claim=${word#*=} ;;
    --slices=*) slices=${word#*=} ;;
    --chips=*) chips=${word#*=} ;;
    --mount=?*) mount=${word#*=} ;;
    --restarts=*) restarts=${word#*=} ;;
    --cpu=*) cpu=${word#*=} ;;
    --memory=*) memory=${word#*=} ;;
    --env=?*) env+=("${word#*=}") ;;
    --secret=?*) secrets+=("${word#*=}") ;;
    --label=?*) labels+=("${word#*=}") ;;
    --follow) is_following=1 ;;
    --namespace=?*) options+=("$word") ;;
    -*) die "there is no option $word; an argument of gpt_jax.train comes after a --, and a value after a =." ;;
    *) words+=("$word") ;;
  esac
done
case ${words[0]:-} in
  start | status | logs | stop | delete)
    verb=${words[0]}
    words=("${words[@]:1}")
    ;;
esac
((${#words[@]} <= 1)) ||
  die "'${words[1]}' is one word too many; after the verb comes one name."
name=${words[0]:-}

# Kubernetes adds to it: -slice-12-345 at the longest here.
[[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
  die "the name is '$name'; it must be at most 40 lower-case letters, digits and dashes, for instance gpt-124m."

# Does what is printed; a dry run prints it alone.
act() {
  if [[ -n $is_dry ]]; then
    printf '%q ' "$@" | sed 's/ $//'
    printf '\n'
  else
    command -v kubectl >/dev/null ||
      die "kubectl is not on PATH; install it, or see what is done with --dry-run."
    "$@"
  fi
}

[[ -z $is_following || $verb == logs ]] ||
  die "--follow is for logs; the verb is $verb."
pods=jobset.sigs.k8s.io/jobset-name=$name
kube=(${options[@]+"${options[@]}"})
case $verb in
  status | logs | stop | delete)
    [[ -z $has_end ]] ||
      die "$verb takes no arguments of gpt_jax.train; start does." ;;
esac
case $verb in
  status)
    act kubectl get jobset "$name" ${kube[@]+"${kube[@]}"} --output=wide
    act kubectl get pods ${kube[@]+"${kube[@]}"} --selector="$pods" --output=wide
    exit
    ;;
  logs)
    # Process 0 alone prints; another speaks only of its own failure.
    act kubectl logs ${kube[@]+"${kube[@]}"} --selector="$pods" \
      --container=train --prefix --tail=-1 --max-log-requests=1000 \
      ${is_following:+--follow}
    exit
    ;;
  stop)
    # The pods get SIGTERM, save and end; start goes on.
    act kubectl patch jobset "$name" ${kube[@]+"${kube[@]}"} --type=merge \
      --patch='{"spec":{"suspend":true}}'
    exit
    ;;
  delete)
    act kubectl delete jobset "$name" ${kube[@]+"${kube[@]}"}
    exit
    ;;
esac

[[ $type =~ ^[a-z0-9-]+$ ]] ||
  die "--type is '$type'; it must be a value of gke-tpu-accelerator, for instance tpu-v5-lite-podslice."
[[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
  die "--topology is '$topology'; it must be a value of gke-tpu-topology, for instance 4x4."
[[ $image =~ ^[A-Za-z0-9./:@_-]+$ ]] ||
  die "--image is '$image'; it must name an image with this repo in /gpt_jax, for instance REGION-docker.pkg.dev/PROJECT/REPO/gpt_jax:1."
[[ $claim =~ ^[a-z0-9.-]+$ ]] ||
  die "--claim is '$claim'; it must be a PersistentVolumeClaim that all hosts can write to."
[[ $mount =~ ^/[A-Za-z0-9._/-]+$ ]] ||
  die "--mount is '$mount'; it must be a folder, for instance /runs."
[[ $slices =~ ^[1-9][0-9]{0,2}$ ]] ||
  die "--slices is '$slices'; it must be a whole number, 1 to 999."
[[ $chips =~ ^[148]$ ]] ||
  die "--chips is '$chips'; a host has 1, 4 or 8."
[[ $restarts =~ ^[0-9]{1,3}$ ]] ||
  die "--restarts is '$restarts'; it must be a whole number, 0 to 999."
[[ $cpu =~ ^[1-9][0-9]{0,3}$ ]] ||
  die "--cpu is '$cpu'; it must be a whole number of cores for each host."
[[ $memory =~ ^[1-9][0-9]{0,5}(Mi|Gi)$ ]] ||
  die "--memory is '$memory'; it must be that of each host, for instance 64Gi."
for word in ${env[@]+"${env[@]}"}; do
  [[ $word =~ ^[A-Za-z_][A-Za-z0-9_]*(=.*)?$ ]] ||
    die "--env is '$word'; it must be NAME, whose value here is taken, or NAME=VALUE."
  [[ $word == *=* || -n ${!word+set} ]] ||
    die "--env=$word names a variable that is not set here; give --env=$word=VALUE."
done
for word in ${secrets[@]+"${secrets[@]}"}; do
  [[ $word =~ ^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$ ]] ||
    die "--secret is '$word'; it must be the name of a Secret in the namespace."
done
for word in "${labels[@]}"; do
  [[ $word =~ ^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?=([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$ ]] ||
    die "--label is '$word'; it must be KEY=VALUE, for instance team=language or kueue.x-k8s.io/queue-name=tpus."
done
[[ -n $has_end ]] ||
  die "there is no --; after it come the arguments of gpt_jax.train."

all=$((${topology//x/*}))
((all % chips == 0)) ||
  die "a topology of $topology has $all chips, which hosts of $chips do not share evenly; give --chips."
hosts=$((all / chips))

last=''
for word in "$@"; do
  [[ $last != --workdir ]] || workdir=$word
  [[ $word != --workdir=* ]] || workdir=${word#--workdir=}
  last=$word
done
[[ $workdir == "$mount"/?* ]] ||
  die "--workdir is '$workdir'; it must be in $mount, which is what outlives a restart."

# Prints a word as a string that YAML and JSON read alike.
string() {
  local word=$1 quote='"'
  [[ $word != *[[:cntrl:]]* ]] ||
    die "an argument has a control character; a manifest cannot hold it."
  word=${word//\\/\\\\}
  printf '"%s"' "${word//$quote/\\$quote}"
}

# Prints its arguments as a list. Kubernetes puts variables in place of
# $(NAME), and $ for $$, in a command and in values of variables.
list() {
  local word line=''
  for word in "$@"; do
    line+="${line:+, }$(string "${word//\$/\$\$}")" || exit 1
  done
  printf '[%s]\n' "$line"
}

# Prints KEY=VALUE words as an object.
object() {
  local word line=''
  for word in "$@"; do
    line+="${line:+, }$(string "${word%%=*}"): $(string "${word#*=}")"
  done
  printf '{%s}\n' "$line"
}

variables() {
  local word value line=''
  for word in "$@"; do
    value=${word#*=}
    [[ $word == *=* ]] || value=${!word}
    value=$(string "${value//\$/\$\$}") || exit 1
    line+="${line:+, }{\"name\": \"${word%%=*}\", \"value\": $value}"
  done
  printf '[%s]\n' "$line"
}

references() {
  local word line=''
  for word in "$@"; do
    line+="${line:+, }{\"secretRef\": {\"name\": \"$word\"}}"
  done
  printf '[%s]\n' "$line"
}

command=$(list python -m gpt_jax.train "$@") || exit 1
env_list=$(variables ${env[@]+"${env[@]}"}) || exit 1
label_list=$(object "${labels[@]}")
secret_list=$(references ${secrets[@]+"${secrets[@]}"})

# Prints the manifest. A line has one name at most; its value is not searched.
render() {
  local line key
  while IFS= read -r line; do
    for key in NAME TYPE TOPOLOGY IMAGE CLAIM MOUNT SLICES HOSTS CHIPS \
      RESTARTS COMMAND CPU MEMORY ENV SECRETS LABELS; do
      [[ $line == *"\${$key}"* ]] || continue
      printf '%s' "${line%%"\${$key}"*}"
      value_of "$key"
      line=${line#*"\${$key}"}
      break
    done
    printf '%s\n' "$line"
  done <launch/gke.yaml
}

value_of() {
  case $1 in
    NAME) printf '%s' "$name" ;;
    TYPE) printf '%s' "$type" ;;
    TOPOLOGY) printf '%s' "$topology" ;;
    IMAGE) printf '%s' "$image" ;;
    CLAIM) printf '%s' "$claim" ;;
    MOUNT) printf '%s' "$mount" ;;
    SLICES) printf '%s' "$slices" ;;
    HOSTS) printf '%s' "$hosts" ;;
    CHIPS) printf '%s' "$chips" ;;
    RESTARTS) printf '%s' "$restarts" ;;
    COMMAND) printf '%s' "$command" ;;
    CPU) printf '%s' "$cpu" ;;
    MEMORY) printf '%s' "$memory" ;;
    ENV) printf '%s' "$env_list" ;;
    SECRETS) printf '%s' "$secret_list" ;;
    LABELS) printf '%s' "$label_list" ;;
  esac
}

if [[ -n $is_dry ]]; then
  check_run --dry-run "$@"
  render
  exit
fi
command -v kubectl >/dev/null ||
  die "kubectl is not on PATH; install it, or see the manifest with --dry-run."
check_run "$@"
render | kubectl apply ${options[@]+"${options[@]}"} --filename=-
printf 'gpt_jax: its nodes cost while it runs; bash launch/gke.sh status|logs|stop|delete %s\n' "$name" >&2
