#!/usr/bin/env bash
# Trains on this machine: bash launch/local.sh [arguments of gpt_jax.train].
# The first call installs; without arguments it trains configs/tiny.py.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/setup.sh

# A run needs a folder: unless one is given, it is named after the config.
config=configs/tiny.py workdir='' last=''
for word in "$@"; do
  case $last in
    --config) config=$word ;;
    --workdir) workdir=given ;;
  esac
  case $word in
    --config=*) config=${word#--config=} ;;
    --workdir=*) workdir=given ;;
  esac
  last=$word
done
if [[ -z $workdir ]]; then
  file=${config%%:*}
  name=${file##*/}
  name=${name%.py}${config#"$file"}
  set -- --workdir="runs/${name//[^A-Za-z0-9._-]/-}" "$@"
fi

setup requirements.txt
exec "$python" -m gpt_jax.train "$@" # exec: Ctrl-C and SIGTERM reach Python
