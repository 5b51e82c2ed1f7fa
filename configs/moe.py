"""A mixture of experts (Shazeer et al. 2017): laptop, fine, mini, 8x7b.

8x7b is Mixtral's architecture (Jiang et al. 2024): Llama's with eight experts,
two for each token. It needs the path of its tokenizer:
--config.data.tokenizer=hf:PATH/tokenizer.json. laptop has as many active
parameters per token as llama.py:laptop, and 2.9 times as many in total:

  bash launch/local.sh --config=configs/moe.py:laptop

fine has as many active parameters too, with 64 experts an eighth as wide
(DeepSeekMoE, Dai et al. 2024). Each token goes to six of them, and all tokens
share two more. The first layer is dense. Router scores are sigmoids, and
per-expert biases balance the loads (DeepSeek-V3, 2024).

mini and mini-biases train in minutes. At every step their busiest expert has at
most 1.5 times an even share of the tokens (configs/LOG.md). mini is balanced by
a loss; mini-biases by biases and a weaker loss. What makes balance hard is that
a language model first learns token frequencies. If it writes those into the
residual stream, tokens become alike and nearly all go to the same experts. So
here the embeddings start as large as the stream and learn slowly, and the
output matrix, which is not tied to them, learns fast.
"""

from configs import llama

VARIANTS = ("laptop", "fine", "mini", "mini-biases", "8x7b")


def get_config(variant: str = "laptop"):
  if variant not in VARIANTS:
    raise ValueError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
  if variant.startswith("mini"):
    return _mini(variant == "mini-biases")
  config = llama.get_config("8b" if variant == "8x7b" else "laptop")
  config.model.num_experts = 8
  config.model.experts_per_token = 2
  if variant == "laptop":
    config.model.mlp_dim = 512
    return config
  if variant == "fine":
    config.model.layer_pattern = "dense+5*moe"
    config.model.num_experts = 64
    config.model.experts_per_token = 6
    config.model.num_shared_experts = 2
    config.model.expert_mlp_dim = 128
    config.model.router_score = "sigmoid"
    # The biases balance a batch; this weak loss balances each sequence.
    config.model.router_balance_weight = 1e-4
    config.model.router_bias_rate = 0.003
    return config
  config.data.seq_len = config.model.max_len = 4096
  config.model.vocab_size = 32_000
  config.model.rope_theta = 1_000_000.0
  # Each device has room for the tokens of eight (mesh.expert). With two
  # microbatches the step fits on v5p:4x4x4 (configs/LOG.md).
  config.train.num_microbatches = 2
  config.mesh.expert = 8
  return config


def _mini(has_biases: bool):
  config = llama.get_config("mini")
  config.data.tokenizer = "bpe:2048"
  config.data.seq_len = config.model.max_len = 128
  config.model.layer_pattern = "dense+2*moe"
  config.model.num_layers = 3
  config.model.model_dim = 128
  config.model.mlp_dim = 384
  config.model.num_experts = 8
  config.model.experts_per_token = 2
  config.model.expert_mlp_dim = 192
  config.model.tied_embeddings = False
  config.model.scaled_embeddings = True
  config.model.init_std = 0.08
  config.model.unembed_init_std = 0.0
  config.optim.rates = "embed/*=0.03,*router=0.3,unembed=5"
  config.optim.warmup_steps = 200
  config.train.global_batch_size = 16
  config.train.num_steps = 500
  config.eval.every_steps = 250
  config.model.router_balance_weight = 0.5
  if has_biases:
    config.model.router_score = "sigmoid"
    config.model.router_bias_rate = 0.01
    # Biases react only in the next step, too late for a single batch with an
    # unusual row, such as a table of numbers. The loss evens that out.
    config.model.router_balance_weight = 0.1
  return config
