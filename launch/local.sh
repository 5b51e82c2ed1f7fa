#!/usr/bin/env bash
# Trains on this machine: bash launch/local.sh [arguments of gpt_jax.train].
# The first call installs; without arguments it trains configs/tiny.py.
# --processes=N trains in N processes of this machine, --devices=K each.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/setup.sh

# A run needs a folder: unless one is given, it is named after the config.
config=configs/tiny.py workdir='' processes=1 last=''
words=()
for word in "$@"; do
  case $last in
    --config) config=$word ;;
    --workdir) workdir=given ;;
    --processes) processes=$word ;;
  esac
  case $word in
    --config=*) config=${word#--config=} ;;
    --workdir=*) workdir=given ;;
    --processes=*) processes=${word#--processes=} ;;
  esac
  case $last/$word in
    */--processes | */--processes=* | --processes/*) ;;
    *) words+=("$word") ;;
  esac
  last=$word
done
[[ $processes =~ ^[1-9][0-9]{0,2}$ ]] ||
  die "--processes is '$processes'; it must be a whole number, 1 to 999."
set -- ${words[@]+"${words[@]}"} # bash 3.2 calls an empty array unset
if [[ -z $workdir ]]; then
  file=${config%%:*}
  name=${file##*/}
  name=${name%.py}${config#"$file"}
  set -- --workdir="runs/${name//[^A-Za-z0-9._-]/-}" "$@"
fi

setup requirements.txt
if [[ $processes == 1 ]]; then
  exec "$python" -m gpt_jax.train "$@" # exec: Ctrl-C and SIGTERM reach Python
fi
source launch/processes.sh
start_processes "$processes" "$python" -m gpt_jax.train "$@"
