#!/usr/bin/env bash
# Checks and times this project on a GPU, part by part, in MINUTES (default 8):
# bash launch/gpu_check.sh [MINUTES] [arguments of gpt_jax.lab.card].
# It takes the Python at hand where that has jax, flax, optax and
# ml_collections; otherwise the first call installs. No network is used then.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/setup.sh

words=()
if [[ ${1:-} =~ ^[0-9.]+$ ]]; then
  words+=("--minutes=$1")
  shift
fi
python=${PYTHON:-python3}
if ! "$python" -c 'import jax, flax, optax, ml_collections' 2>/dev/null; then
  setup requirements.txt
  if command -v nvidia-smi >/dev/null; then
    add_extra cuda
  fi
fi
exec "$python" -m gpt_jax.lab.card ${words[@]+"${words[@]}"} "$@"
