"""A model of which a step takes milliseconds."""

from gpt_jax import cli, config

DOOR = "lab.bench"
# A model of which a step takes milliseconds.
SMALL = {
  "model.num_layers": "1",
  "model.num_heads": "4",
  "model.model_dim": "32",
  "model.mlp_dim": "64",
  "model.max_len": "96",
  "data.seq_len": "32",
  "train.global_batch_size": "4",
}
FLAGS = [f"--config.{key}={value}" for key, value in SMALL.items()]


def load(variant: str = "tiny", **overrides) -> config.Config:
  values = SMALL | {k.replace("__", "."): v for k, v in overrides.items()}
  return config.freeze(cli.load_config(f"configs/bench.py:{variant}", values))
