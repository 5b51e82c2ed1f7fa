"""Distillation: the quickstart's model teaches a student of half its layers.

  bash launch/local.sh
  bash launch/local.sh --config=configs/distill.py
  .venv/bin/python -m gpt_jax.lab.sweep run --config=configs/distill.py \
    --workdir=runs/distilled

The first line trains the teacher, the second a student. The sweep compares four
students at equal steps, with three seeds each: with and without the teacher,
each from random weights and from every second layer of the teacher, as in
DistilGPT2 (docs/distillation.md).
"""

from configs import tiny

TEACHER = "runs/tiny"
SEEDS = (0, 1, 2)


def get_config():
  config = tiny.get_config()
  config.data.tokenizer = f"hf:{TEACHER}/tokenizer.json"
  config.model.num_layers = 2
  config.distill.teacher = TEACHER
  config.distill.weight = 0.9
  config.train.num_steps = 200
  config.train.global_batch_size = 8
  config.eval.every_steps = 100
  config.sample.every_steps = 0
  return config


def sweep(add):
  second = {"train.init_from": TEACHER, "train.init_layers": "every:2"}
  alone = {"distill.teacher": None}
  add("alone", alone, seeds=SEEDS)
  add("with its teacher", seeds=SEEDS)
  add("alone, every second layer", {**second, **alone}, seeds=SEEDS)
  add("with its teacher, every second layer", second, seeds=SEEDS)
