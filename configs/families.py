"""Four ways to learn from text, at equal parameters and equal FLOPs.

  bash launch/families.sh

The variants are the pretrained models: causal, a decoder; prefix, the same
decoder with bidirectional prefixes; masked, an encoder; spans, an
encoder-decoder that fills in masked spans. All read the interpreter's text.
`sweep` tunes each on two tasks that tests/functions.py makes from the standard
library: which package a function is from, and what its name is. Controls are
trained on the tasks without pretraining.

Equal parameters: two encoder layers and two decoder layers (with
cross-attention) have as many as four decoder layers whose MLP is four thirds
as wide. Equal FLOPs: the steps in STAGES follow from gpt_jax.flops, which
counts each of an encoder-decoder's tokens only in the stack that processes it
(tests/lab/test_families_study.py). Tuning has equal numbers of examples.

Each model is tuned in the form that the literature uses. For classification,
prefix becomes an encoder, since the whole text is its prefix, and causal
classifies from its last token. For generation, masked becomes a decoder (Rothe
et al. 2020), which has the same arrays, and all decoders read their sources
causally.
"""

from configs import base

# variant: (family, objective, steps of 5.89e12 FLOPs)
STAGES = {
  "causal": ("decoder", "causal", 400),
  "prefix": ("decoder", "prefix_lm", 400),
  "masked": ("encoder", "masked_lm", 400),
  "spans": ("encoder_decoder", "span_corruption", 852),
}
WIDTH = 128
# family: (layers, MLP width), with 48 WIDTH^2 parameters.
SHAPES = {
  "decoder": (4, 4 * WIDTH),
  "encoder": (4, 4 * WIDTH),
  "encoder_decoder": (2, 3 * WIDTH),
}
# What each is tuned as: (family to classify, its head, family to generate).
TUNED = {
  "causal": ("decoder", "last", "decoder"),
  "prefix": ("encoder", "mean", "decoder"),
  "masked": ("encoder", "mean", "decoder"),
  "spans": ("encoder_decoder", "last", "encoder_decoder"),
}
FOLDER = "runs/families"
SEEDS = range(3)


def get_config(variant: str = "causal"):
  if variant not in STAGES:
    raise ValueError(f"no variant {variant!r}; there are {', '.join(STAGES)}")
  family, objective, steps = STAGES[variant]
  config = base.get_config()
  config.data.tokenizer = "bpe:2048"
  config.data.objective = objective
  config.data.seq_len = config.model.max_len = 128
  # With rows for the special tokens of every objective.
  config.model.vocab_size = 2176
  for key, value in shape_of(family).items():
    config.model[key.removeprefix("model.")] = value
  config.model.model_dim = WIDTH
  config.model.norm = "rmsnorm"
  config.model.position = "rope"
  config.model.mlp = "relu_squared"
  config.model.qk_norm = True
  config.model.init_std = 0.08
  config.optim.optimizer = "muon"
  config.optim.learning_rate = 8e-3
  config.optim.beta1 = 0.95
  config.optim.schedule = "linear"
  config.optim.final_rate_frac = 0.0
  config.optim.warmup_steps = 40
  config.optim.clip_norm = 1.0
  config.train.num_steps = steps
  config.train.global_batch_size = 16
  config.train.log_every_steps = 25
  config.checkpoint.every_steps = 0
  config.eval.every_steps = 0
  config.sample.every_steps = 0
  return config


def shape_of(family: str) -> dict:
  """Returns the config values that select a family and its size."""
  layers, mlp_dim = SHAPES[family]
  return {
    "model.family": family,
    "model.num_layers": layers,
    "model.mlp_dim": mlp_dim,
  }


def sweep(add):
  # The tokenizer of pretraining, and a quarter of its learning rate.
  both = {
    "data.tokenizer": f"hf:{FOLDER}/causal/tokenizer.json",
    "data.seq_len": 96,
    "optim.learning_rate": 2e-3,
    "optim.warmup_steps": 10,
    "train.num_steps": 100,
  }
  name_it = both | {
    "data.objective": "sequence_to_sequence",
    "data.source": f"pairs:{FOLDER}/names.tsv",
  }
  place_it = both | {
    "data.objective": "classification",
    "data.source": f"labelled:{FOLDER}/packages.jsonl",
    "data.valid_frac": 0.2,
    "model.num_classes": 6,
  }
  # Seeds are the outer loop: each seed's cells run before the next seed's.
  for seed in SEEDS:
    for stage, (reader, head, writer) in TUNED.items():
      start = {"train.init_from": f"{FOLDER}/{stage}"}
      placed = place_it | shape_of(reader) | {"model.head": head}
      named = name_it | shape_of(writer)
      add(f"package, {stage}", placed | start, seeds=[seed])
      add(f"name, {stage}", named | start, seeds=[seed])
      # prefix, and masked as a decoder, share the controls of other stages.
      if stage != "prefix":
        add(f"package, {reader} from nothing", placed, seeds=[seed])
      if stage in ("causal", "spans"):
        add(f"name, {writer} from nothing", named, seeds=[seed])
