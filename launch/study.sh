#!/usr/bin/env bash
# The scaling study of configs/isoflop.py: bash launch/study.sh [FOLDER].
# 23 runs, their fits, a prediction registered, the large run, its score. What
# is done already is not done again.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/setup.sh

(($# < 2)) || die "study.sh takes one folder; found $# words: $*."
folder=${1-runs/study}
[[ -n $folder && $folder != -* ]] || die "study.sh takes a folder, found '$folder'."
setup requirements.txt

# One worker a core: models of this size gain nothing from a second.
cores=$("$python" -c 'import os; print(os.cpu_count())')
"$python" -m gpt_jax.lab.sweep run --config=configs/isoflop.py \
  --workdir="$folder" --workers="$((cores < 4 ? cores : 4))"
if [[ ! -e $folder/prediction.json ]]; then
  read -r params tokens < <("$python" -c '
from configs import isoflop
print(*isoflop.count_large())')
  "$python" -m gpt_jax.lab.scaling --workdirs="$folder/cells/*" \
    --register="$folder/prediction.json" \
    --at-params="$params" --at-tokens="$tokens" --out="$folder/fit"
fi
"$python" -m gpt_jax.train --config=configs/isoflop.py:large \
  --workdir="$folder/large"
"$python" -m gpt_jax.lab.scaling --score="$folder/prediction.json" \
  --workdir="$folder/large" --out="$folder/score"
