"""A mixture of experts (Shazeer et al. 2017): laptop, 8x7b.

8x7b is Mixtral's form (Jiang et al. 2024): Llama's with eight experts, of
which a token goes to two. Its tokenizer is a file to give by its path:
--config.data.tokenizer=hf:PATH/tokenizer.json. laptop has as many parameters
at work for a token as llama.py:laptop, and 2.9 times as many in all:

  bash launch/local.sh --config=configs/moe.py:laptop
"""

from configs import llama


def get_config(variant: str = "laptop"):
  if variant not in ("laptop", "8x7b"):
    raise ValueError(f"no variant {variant!r}; there are laptop, 8x7b")
  config = llama.get_config("8b" if variant == "8x7b" else "laptop")
  config.model.num_experts = 8
  config.model.experts_per_token = 2
  if variant == "laptop":
    config.model.mlp_dim = 512
    return config
  config.data.seq_len = config.model.max_len = 4096
  config.model.vocab_size = 32_000
  config.model.rope_theta = 1_000_000.0
  # Each device gathers the tokens of eight: on v5p:4x4x4 the step fits so.
  config.train.num_microbatches = 2
  config.mesh.expert = 8
  return config
