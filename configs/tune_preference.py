"""Preferences: a small model that errs on half of the sums learns to prefer.

  .venv/bin/python tests/sums.py runs/sums
  bash launch/local.sh --config=configs/tune_preference.py:base
  bash launch/local.sh --config=configs/tune_preference.py
  .venv/bin/python -m gpt_jax.evaluate --workdir=runs/tune_preference

The first command generates sums by a rule. The second trains the base model on
sums half of which are wrong. The third learns from pairs of a right and a wrong
answer (DPO, Rafailov et al. 2023; the other variants are `ipo`, `kto` and
`orpo`). The last one reports how often the model prefers the right answer of
held-out sums.
"""

from configs import base

# Steps of each objective: dpo and ipo rank held-out sums worse after 100 steps
# (configs/LOG.md). kto learns from the same answers, but one at a time.
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
