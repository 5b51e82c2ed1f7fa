"""Sentiment, from our own pre-trained model: pretrain, and tune (the default).

  .venv/bin/python tests/reviews.py runs/reviews
  bash launch/local.sh --config=configs/sentiment.py:pretrain \
    --workdir=runs/sentiment-pretrained
  bash launch/local.sh --config=configs/sentiment.py
  .venv/bin/python -m gpt_jax.evaluate --workdir=runs/sentiment \
    --data=runs/reviews/valid.jsonl
  .venv/bin/python -m gpt_jax.lab.sweep run --config=configs/sentiment.py \
    --workdir=runs/sentiment-sweep

The first command generates reviews by a rule: 20,000 without labels, 200 with
labels, which use only a fifth of the words that reveal the sentiment, and 1,000
held-out ones. The second command pretrains a language model on the unlabelled
reviews, the third tunes it to classify, and the fourth evaluates it. The sweep
tunes with three seeds from the pretrained model and with three from scratch;
docs/classification.md has the results.
"""

from configs import tiny

VARIANTS = ("tune", "pretrain")
PRETRAINED = "runs/sentiment-pretrained"
SEEDS = (0, 1, 2)


def get_config(variant: str = "tune"):
  if variant not in VARIANTS:
    raise ValueError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
  config = tiny.get_config()
  config.data.seq_len = config.model.max_len = 64
  config.model.num_layers = 2
  config.sample.every_steps = 0
  config.checkpoint.every_steps = 0
  if variant == "pretrain":
    config.data.source = "jsonl:runs/reviews/unlabelled.jsonl"
    config.data.valid_frac = 0.02
    config.data.tokenizer = "bpe:800"
    config.data.packing = "documents"
    config.train.global_batch_size = 32
    config.train.num_steps = 1_000
    config.eval.every_steps = 250
    return config
  config.data.source = "labelled:runs/reviews/train.jsonl"
  config.data.valid_source = "labelled:runs/reviews/valid.jsonl"
  config.data.objective = "classification"
  config.data.tokenizer = f"hf:{PRETRAINED}/tokenizer.json"
  config.train.init_from = PRETRAINED
  config.model.head = "mean"
  # Set here because lab.sweep does not infer it from the data.
  config.model.num_classes = 2
  config.optim.optimizer = "adamw"
  config.optim.beta1 = 0.9
  config.optim.learning_rate = 3e-4
  config.optim.warmup_steps = 20
  config.train.global_batch_size = 32
  config.train.num_steps = 100
  config.eval.every_steps = 25
  return config


def sweep(add):
  add("pretrained", seeds=SEEDS)
  add("from scratch", {"train.init_from": None}, seeds=SEEDS)
