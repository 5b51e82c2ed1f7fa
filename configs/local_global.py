"""Alternating local and global layers (Beltagy et al. 2020): laptop, 1b.

Llama's architecture with five local layers to each global one, as in Gemma 3
(2025). Global layers see the whole row. Local layers have a sliding window and
their own rope base, and cache the keys and values of their window only. laptop
trains in hours on two cores; 1b has Llama 3.2 1B's size and 32,768 positions.
"""

from configs import llama


def get_config(variant: str = "laptop"):
  if variant not in ("laptop", "1b"):
    raise ValueError(f"no variant {variant!r}; there are laptop, 1b")
  config = llama.get_config(variant)
  config.model.layer_pattern = "5*local+global"
  config.model.local_rope_theta = 10_000.0
  config.model.rope_theta = 1_000_000.0
  config.model.sliding_window = 64
  if variant == "1b":
    config.data.seq_len = config.model.max_len = 32_768
    config.model.rope_scaling = "none"
    config.model.sliding_window = 1024
    config.train.global_batch_size = 128
  return config
