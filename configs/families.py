"""Four ways to learn from text, at equal parameters and equal FLOPs.

  bash launch/families.sh

Variants, the first stage: causal, a decoder; prefix, the same with prefixes;
masked, an encoder; spans, an encoder-decoder that fills in hidden spans. All
read the interpreter's text. `sweep` tunes each on two tasks that
tests/functions.py makes of the same library: which package a function is from,
and what its name is. Controls start from nothing.

Equal parameters: two layers of encoder and two of decoder, with their third
sublayer, have those of four layers whose MLP is four thirds as wide. Equal
FLOPs: STEPS, by the ledger, which counts an encoder-decoder's tokens where they
pass (tests/lab/test_families_study.py). Tuning has equal examples.

A model is tuned in the form in which the literature uses it. To classify,
prefix becomes an encoder, as the whole text is its prefix, and the causal one
reads its last token. To write, masked becomes a decoder (Rothe et al. 2020),
as it has the same arrays, and all decoders read their sources causally.
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
# (layers, MLP width) of 48 WIDTH^2 parameters.
SHAPES = {
  "decoder": (4, 4 * WIDTH),
  "encoder": (4, 4 * WIDTH),
  "encoder_decoder": (2, 3 * WIDTH),
}
# The family that each is tuned as: (to classify, to write), and its head.
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
  # Rows for the marks of every objective.
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
  """Returns the values of a family."""
  layers, mlp_dim = SHAPES[family]
  return {
    "model.family": family,
    "model.num_layers": layers,
    "model.mlp_dim": mlp_dim,
  }


def sweep(add):
  # The vocabulary is that of the first stage, whose rates are a quarter here.
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
  # All cells of a seed before the next seed's.
  for seed in SEEDS:
    for stage, (reader, head, writer) in TUNED.items():
      start = {"train.init_from": f"{FOLDER}/{stage}"}
      placed = place_it | shape_of(reader) | {"model.head": head}
      named = name_it | shape_of(writer)
      add(f"package, {stage}", placed | start, seeds=[seed])
      add(f"name, {stage}", named | start, seeds=[seed])
      # The forms of prefix and the writer of masked are those of others.
      if stage != "prefix":
        add(f"package, {reader} from nothing", placed, seeds=[seed])
      if stage in ("causal", "spans"):
        add(f"name, {writer} from nothing", named, seeds=[seed])
