"""A mixture of experts (Shazeer et al. 2017): laptop, fine, mini, 8x7b.

8x7b is Mixtral's form (Jiang et al. 2024): Llama's with eight experts, of
which a token goes to two. Its tokenizer is a file to give by its path:
--config.data.tokenizer=hf:PATH/tokenizer.json. laptop has as many parameters
at work for a token as llama.py:laptop, and 2.9 times as many in all:

  bash launch/local.sh --config=configs/moe.py:laptop

fine has as many at work too, of 64 experts an eighth as wide (DeepSeekMoE, Dai
et al. 2024): two are shared by all tokens, and a token goes to six others. The
first layer has none. Scores are sigmoids, and biases balance the loads
(DeepSeek-V3, 2024).

mini and mini-biases train in minutes, and their busiest expert stays within 1.5
of an even share from the first step to the last, balanced by a loss, and by
biases beside a weaker loss (configs/LOG.md). A language model first learns how
frequent tokens are. Where it writes that into the stream, tokens become alike,
and nearly all go to the same experts. So here embeddings start as large as the
stream and learn slowly, and the output matrix, which is not tied to them,
learns fast.
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
    # Beside the biases, against crowds within a sequence.
    config.model.router_balance_weight = 1e-4
    config.model.router_bias_rate = 0.003
    return config
  config.data.seq_len = config.model.max_len = 4096
  config.model.vocab_size = 32_000
  config.model.rope_theta = 1_000_000.0
  # Each device gathers the tokens of eight: on v5p:4x4x4 the step fits so.
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
    # A row of one kind, such as a table of numbers, is not for biases to know.
    config.model.router_balance_weight = 0.1
  return config
