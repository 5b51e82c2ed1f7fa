"""Sentiment, from our own pre-trained model: pretrain, and tune (the default).

  .venv/bin/python tests/reviews.py runs/reviews
  bash launch/local.sh --config=configs/sentiment.py:pretrain \
    --workdir=runs/sentiment-pretrained
  bash launch/local.sh --config=configs/sentiment.py
  .venv/bin/python -m gpt_jax.lab.sweep run --config=configs/sentiment.py \
    --workdir=runs/sentiment-sweep

The first line makes reviews by a rule: 20,000 without labels, 200 with, whose
adjectives are a fifth of all, and 1,000 others to judge by. The second learns
to fill in words of the first; the third, classes. The sweep compares three
seeds of that with three that start from scratch. As it stands the pre-training
is too short to help: configs/LOG.md has the figures.
"""

from configs import classify

VARIANTS = ("tune", "pretrain")
PRETRAINED = "runs/sentiment-pretrained"
SEEDS = (0, 1, 2)


def get_config(variant: str = "tune"):
  if variant not in VARIANTS:
    raise ValueError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
  config = classify.get_config("laptop")
  config.data.seq_len = config.model.max_len = 48
  config.model.num_layers = 2
  config.model.model_dim = 64
  config.model.mlp_dim = 256
  config.model.norm_placement = "pre"
  if variant == "pretrain":
    config.data.source = "jsonl:runs/reviews/unlabelled.jsonl"
    config.data.objective = "masked_lm"
    config.data.packing = "documents"
    config.data.valid_frac = 0.02
    config.data.tokenizer = "bpe:500"
    config.data.mask_rate = 0.25
    config.model.head = "transform"
    config.optim.learning_rate = 3e-3
    config.train.global_batch_size = 48
    config.train.num_steps = 900
    config.eval.every_steps = 300
    return config
  config.data.source = "labelled:runs/reviews/train.jsonl"
  config.data.valid_source = "labelled:runs/reviews/valid.jsonl"
  config.data.tokenizer = f"hf:{PRETRAINED}/tokenizer.json"
  config.train.init_from = PRETRAINED
  config.model.head = "mean"
  # Named, since lab.sweep takes no number of classes from the data.
  config.model.num_classes = 2
  config.optim.learning_rate = 3e-4
  config.optim.warmup_steps = 20
  config.train.num_steps = 200
  config.eval.every_steps = 50
  return config


def sweep(add):
  add("pretrained", seeds=SEEDS)
  add("from scratch", {"train.init_from": None}, seeds=SEEDS)
