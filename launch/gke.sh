#!/usr/bin/env bash
# Trains on TPU slices in GKE: fills in launch/gke.yaml and applies it.
#   bash launch/gke.sh [--dry-run] NAME --type=ACCELERATOR --topology=AxB \
#     --image=IMAGE --claim=CLAIM [--slices=N] [--chips=PER_HOST] \
#     [--mount=FOLDER] [--restarts=N] [--namespace=NAME] \
#     -- [arguments of gpt_jax.train]
# --dry-run prints the manifest and applies nothing.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/setup.sh

is_dry='' name='' type='' topology='' image='' claim='' workdir=''
slices=1 chips=4 mount=/runs restarts=3 options=() has_end=''
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
    --namespace=?*) options+=("$word") ;;
    -*) die "there is no option $word; an argument of gpt_jax.train comes after a --, and a value after a =." ;;
    *)
      [[ -z $name ]] || die "'$word' is one word too many; there is one name."
      name=$word
      ;;
  esac
done

# Kubernetes adds to it: -slice-12-345 at the longest here.
[[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
  die "the name is '$name'; it must be at most 40 lower-case letters, digits and dashes, for instance gpt-124m."
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

# Prints its arguments as a list that YAML and JSON read alike.
list() {
  local word line='' quote='"'
  for word in "$@"; do
    [[ $word != *[[:cntrl:]]* ]] ||
      die "an argument has a control character; a manifest cannot hold it."
    word=${word//\\/\\\\}
    word=${word//$quote/\\$quote}
    # Kubernetes puts variables in place of $(NAME), and $ for $$.
    word=${word//\$/\$\$}
    line+="${line:+, }$quote$word$quote"
  done
  printf '[%s]\n' "$line"
}

command=$(list python -m gpt_jax.train "$@")

# Prints the manifest. A line has one name at most; its value is not searched.
render() {
  local line key
  while IFS= read -r line; do
    for key in NAME TYPE TOPOLOGY IMAGE CLAIM MOUNT SLICES HOSTS CHIPS \
      RESTARTS COMMAND; do
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
  esac
}

if [[ -n $is_dry ]]; then
  render
  exit
fi
command -v kubectl >/dev/null ||
  die "kubectl is not on PATH; install it, or see the manifest with --dry-run."
render | kubectl apply ${options[@]+"${options[@]}"} --filename=-
