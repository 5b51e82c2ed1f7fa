"""The model sizes that this project started from, trained in two stages.

A small version of Vaswani et al. (2017): 2 layers, 4 heads, width 512, MLP
2048, dropout 0.1, 512 positions, norms after the residual sum, GELU in place
of ReLU, Adam at 1e-3.

Variants: generate, a language model; masked, its first stage, an encoder that
predicts masked tokens. Both have the same parameter arrays, so that generate
can start from what masked has learned (`launch/article.sh` runs both):

  bash launch/local.sh --config=configs/article.py:masked
  bash launch/local.sh --config=configs/article.py:generate \
    --config.train.init_from=runs/article-masked
"""

from configs import base

VARIANTS = ("masked", "generate")


def get_config(variant: str = "generate"):
  if variant not in VARIANTS:
    raise ValueError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
  config = base.get_config()
  # One id is left for the mask token: both stages have 4096 embedding rows.
  config.data.tokenizer = "bpe:4095"
  config.data.seq_len = config.model.max_len = 512
  config.model.num_layers = 2
  config.model.num_heads = 4
  config.model.model_dim = 512
  config.model.mlp_dim = 2048
  config.model.norm_placement = "post"
  config.model.bias = True
  config.model.dropout_rate = 0.1
  config.optim.optimizer = "adam"
  config.optim.learning_rate = 1e-3
  config.optim.beta2 = 0.98
  config.optim.schedule = "inverse_sqrt"
  config.optim.warmup_steps = 400
  config.train.num_steps = 4000
  config.train.global_batch_size = 16
  config.sample.prompt = "def "
  if variant == "masked":
    config.model.family = "encoder"
    config.data.objective = "masked_lm"
    config.sample.every_steps = 0
  return config
