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
  _check_sampled(c)
  if OBJECTIVES[d.objective].is_sampled and d.curriculum.parts:
    raise InputError(
      f"data.objective is {d.objective} and data.curriculum is {d.curriculum}; "
      "groups of answers are read by one mixture: leave it none"
    )
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


def _check_sampled(c: Config) -> None:
  """Refuses groups of answers without grpo, and grpo without groups."""
  d, m, t = c.data, c.model, c.train
  asked = f"data.objective is {d.objective}"
  if not OBJECTIVES[d.objective].is_sampled:
    for key, value in (("group_size", 1), ("updates_per_batch", 1)):
      if getattr(t, key) != value:
        raise InputError(
          f"{asked} and train.{key} is {getattr(t, key)}, which is for grpo "
          f"alone; leave it {value}"
        )
    return
  if t.group_size < 2:
    raise InputError(
      f"{asked}, which compares answers to one prompt, and train.group_size is "
      f"{t.group_size}; it must be 2 or more"
    )
  if t.global_batch_size % t.group_size:
    raise InputError(
      f"{asked} and train.group_size is {t.group_size}; it must divide "
      f"train.global_batch_size {t.global_batch_size}"
    )
  if t.init_from is None:
    raise InputError(
      f"{asked}, which learns from answers that are right by chance, and "
      "train.init_from is None; name the workdir of a model that answers"
    )
  wanted = (
    ("data.packing", d.packing, "stream"),
    ("mesh.seq", c.mesh.seq, 1),
    ("train.batch_ramp", str(t.batch_ramp), "none"),
    ("train.max_rollbacks", t.max_rollbacks, 0),
    ("model.num_future_tokens", m.num_future_tokens, 1),
    ("model.dropout_rate", m.dropout_rate, 0),
    ("train.num_loss_chunks", t.num_loss_chunks, 1),
    ("train.z_loss_weight", t.z_loss_weight, 0),
    ("train.label_smoothing", t.label_smoothing, 0),
  )
  for key, found, value in wanted:
    if found != value:
      raise InputError(
        f"{asked}, whose rows hold one sampled answer, and {key} is {found}; "
        f"leave it {value}"
      )
