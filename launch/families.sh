#!/usr/bin/env bash
# The study of configs/families.py: bash launch/families.sh.
# Four first stages, then each tuned on two tasks over three seeds, the report,
# and a table of the figures. What is done already is not done again.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/setup.sh

(($# == 0)) || die "families.sh takes no words; found $# words: $*."
setup requirements.txt

# Where configs/families.py looks for the first stages.
folder=runs/families
[[ -e $folder/names.tsv ]] || "$python" tests/functions.py write "$folder"
for stage in causal prefix masked spans; do
  "$python" -m gpt_jax.train --config="configs/families.py:$stage" \
    --workdir="$folder/$stage"
done
# One worker a core: models of this size gain nothing from a second.
cores=$("$python" -c 'import os; print(os.cpu_count())')
"$python" -m gpt_jax.lab.sweep run --config=configs/families.py \
  --workdir="$folder/tuned" --workers="$((cores < 4 ? cores : 4))"
# A report for each task and family that starts from nothing.
for start in 'package, '{decoder,encoder,encoder_decoder} \
  'name, '{decoder,encoder_decoder}; do
  "$python" -m gpt_jax.lab.sweep report --config=configs/families.py \
    --workdir="$folder/tuned" --baseline="$start from nothing" \
    --out="$folder/${start/, /-}.html" | grep -v ' no verdict against '
done
"$python" tests/functions.py table "$folder/tuned"
