#!/usr/bin/env bash
# The two stages of configs/article.py: bash launch/article.sh [FOLDER].
# Hidden tokens are learned first, then text from these weights; then the loss
# on text that was held out, and a text that the model writes. Short runs: six and
# a half minutes on 2 cores. What is done already is not done again.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/setup.sh

(($# < 2)) || die "article.sh takes one folder; found $# words: $*."
folder=${1-runs/article}
[[ -n $folder && $folder != -* ]] || die "article.sh takes a folder, found '$folder'."
setup requirements.txt

short=(
  --config.train.global_batch_size=4
  --config.train.num_steps=200
  --config.optim.warmup_steps=50
  --config.eval.every_steps=100
)
"$python" -m gpt_jax.train --config=configs/article.py:masked \
  --workdir="$folder/masked" "${short[@]}"
"$python" -m gpt_jax.train --config=configs/article.py:generate \
  --workdir="$folder/generate" --config.train.init_from="$folder/masked" \
  "${short[@]}"
"$python" -m gpt_jax.evaluate --workdir="$folder/generate"
"$python" -m gpt_jax.generate --workdir="$folder/generate" \
  --prompt='def ' --num_tokens=100
