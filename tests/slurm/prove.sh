#!/usr/bin/env bash
# Tries launch/slurm.sh on real SLURM, which it installs where it is absent:
#   bash tests/slurm/prove.sh [arguments of pytest]
# What happened goes to runs/slurm-proof.log; minutes, 9 on two busy cores.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
bash tests/slurm/cluster.sh install
source launch/setup.sh
setup requirements-dev.txt
mkdir -p runs
export GPT_JAX_SLURM_LOG=$PWD/runs/slurm-proof.log
rm -f "$GPT_JAX_SLURM_LOG"
# shellcheck disable=SC2154 # setup leaves it
"$python" -m pytest -n 0 -s -m slurm tests/slurm "$@"
printf 'gpt_jax: the log is in %s\n' "$GPT_JAX_SLURM_LOG"
