"""Reinforcement learning from a verifiable reward: sums, from chance to right.

  .venv/bin/python tests/sums.py runs/sums
  bash launch/local.sh --config=configs/tune_grpo.py:base
  bash launch/local.sh --config=configs/tune_grpo.py
  .venv/bin/python -m gpt_jax.evaluate --workdir=runs/tune_grpo --generate=100

The first command generates sums by a rule. The second trains the base model on
answers that are off by -4 to 4, all nine offsets equally often: the model
learns roughly how large a sum is, and is right by chance once in nine times.
The third samples answers and reinforces the right ones (GRPO, Shao et al.
2024). The last one generates answers to held-out sums.
"""

from configs import base


def get_config(variant="grpo"):
  config = base.get_config()
  config.data.tokenizer = "bytes"
  config.model.update(
    num_layers=2, model_dim=96, num_heads=4, mlp_dim=384, max_len=10
  )
  config.model.update(position="rope", norm="rmsnorm", init_std=0.08)
  config.data.seq_len = 10
  config.data.source = "pairs:runs/sums/train.tsv"
  config.data.valid_source = "pairs:runs/sums/valid.tsv"
  config.sample.update(prompt="17+8", num_tokens=4, temperature=0.0)
  if variant == "base":
    config.data.source = "pairs:runs/sums/base.tsv"
    config.data.objective = "sequence_to_sequence"
    config.train.update(num_steps=2000, global_batch_size=64)
    config.optim.update(learning_rate=3e-3, warmup_steps=50, schedule="linear")
    config.eval.every_steps = config.sample.every_steps = 500
    return config
  config.data.objective = "grpo"
  config.train.init_from = "runs/tune_grpo-base"
  config.train.update(num_steps=900, global_batch_size=512, group_size=16)
  config.train.update(updates_per_batch=2, kl_weight=0.002)
  config.optim.update(learning_rate=7e-4, warmup_steps=0, schedule="linear")
  config.eval.every_steps = config.sample.every_steps = 50
  return config
