"""Refuses preferences that a run cannot be trained on."""

from gpt_jax.config.options import OBJECTIVES
from gpt_jax.config.schema import Config
from gpt_jax.exits import InputError


def check_preferences(c: Config) -> None:
  """Refuses values that conflict with an objective of preferences.

  Raises:
    InputError: the sentence names the keys.
  """
  d, m, t = c.data, c.model, c.train
  how, asked = OBJECTIVES[d.objective], f"data.objective is {d.objective}"
  if not how.is_preference:
    return
  if how.has_reference and t.init_from is None:
    raise InputError(
      f"{asked}, which compares a model with the one that it begins as, and "
      "train.init_from is None; name the workdir of that reference"
    )
  wanted = (
    ("data.split", d.split, "document", "whole preferences are held out"),
    ("data.packing", d.packing, "stream", "a row holds one preference"),
    ("mesh.seq", c.mesh.seq, 1, "answers are whole"),
    ("model.num_future_tokens", m.num_future_tokens, 1, "answers are compared"),
    ("train.num_loss_chunks", t.num_loss_chunks, 1, "answers are compared"),
    ("train.z_loss_weight", t.z_loss_weight, 0, "answers are compared"),
    ("train.label_smoothing", t.label_smoothing, 0, "answers are compared"),
  )
  for key, found, value, why in wanted:
    if found != value:
      raise InputError(f"{asked} and {key} is {found}; {why}: leave it {value}")
