"""Preferences: a small model that errs on every second sum learns to prefer.

  .venv/bin/python tests/sums.py runs/sums
  bash launch/local.sh --config=configs/tune_preference.py:base
  bash launch/local.sh --config=configs/tune_preference.py
  .venv/bin/python -m gpt_jax.evaluate --workdir=runs/tune_preference

The first line makes sums by a rule. Those that the second one learns from are
wrong in every second place. The third learns from pairs of a right and a wrong
answer (DPO, Rafailov et al. 2023; `ipo`, `kto` and `orpo` are the others), and
the last one says how often the right answer of held-out sums is preferred.
"""

from configs import base

# Steps of each objective, after which held-out sums are ranked worse again;
# kto learns from the same answers, but not from pairs of them.
STEPS = {"dpo": 100, "ipo": 100, "kto": 200, "orpo": 200}


def get_config(variant="dpo"):
  config = base.get_config()
  config.data.tokenizer = "bytes"
  config.data.valid_frac = 0.01
  config.model.update(
    num_layers=2, model_dim=96, num_heads=4, mlp_dim=384, max_len=48
  )
  config.model.update(position="rope", norm="rmsnorm", init_std=0.08)
  config.optim.update(learning_rate=3e-3, warmup_steps=50, schedule="linear")
  config.data.seq_len = 48
  config.sample.update(
    every_steps=500, prompt="17+8=", num_tokens=8, temperature=0.0
  )
  if variant == "base":
    config.data.source = "jsonl:runs/sums/base.jsonl"
    config.data.packing = "documents"
    config.train.update(num_steps=2000, global_batch_size=32)
    config.eval.every_steps = 500
    return config
  config.data.source = "preference:runs/sums/train.jsonl"
  config.data.valid_source = "preference:runs/sums/valid.jsonl"
  config.data.objective = variant
  config.train.init_from = "runs/tune_preference-base"
  config.train.update(num_steps=STEPS[variant], global_batch_size=32)
  config.optim.update(learning_rate=1e-3, warmup_steps=20)
  config.eval.every_steps = 50
  return config
