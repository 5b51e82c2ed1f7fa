"""A text classifier: laptop (a minute on two cores), base.

  bash launch/local.sh --config=configs/classify.py \
    --config.data.source=labelled:reviews.jsonl

BERT's encoder (configs/bert.py) with BERT's pooler and a classification head.
Each line of the file has a text and a label (docs/classification.md shows an
example). base has BERT's size and the learning rate of its fine-tuning (Devlin
et al. 2019, appendix A.3); it should start from a run of configs/bert.py:base:

  --config.train.init_from=runs/bert --config.model.vocab_size=30522
"""

from configs import bert

VARIANTS = ("laptop", "base")


def get_config(variant: str = "laptop"):
  if variant not in VARIANTS:
    raise ValueError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
  config = bert.get_config(variant)
  config.data.objective = "classification"
  config.data.source = "labelled:reviews.jsonl"
  config.model.head = "first"
  config.optim.weight_decay = 0.01
  if variant == "laptop":
    config.data.tokenizer = "bpe:1024"
    config.data.seq_len = config.model.max_len = 64
    config.model.num_layers = 2
    config.model.model_dim = 128
    config.model.mlp_dim = 512
    config.optim.learning_rate = 5e-4
    config.optim.warmup_steps = 50
    config.train.global_batch_size = 32
    config.train.num_steps = 400
    config.eval.every_steps = 100
    return config
  config.data.seq_len = 128
  config.optim.learning_rate = 2e-5
  config.optim.warmup_steps = 200
  config.train.num_steps = 2_000
  config.train.global_batch_size = 32
  config.checkpoint.every_steps = 500
  return config
