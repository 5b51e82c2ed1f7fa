"""Refuses gradient noise (DP-SGD) where it would not protect the text."""

from gpt_jax.config.options import OBJECTIVES
from gpt_jax.config.schema import Config
from gpt_jax.exits import InputError


def check_privacy(c: Config) -> None:
  """Refuses values that conflict with optim.noise_multiplier.

  Raises:
    InputError: the sentence names the keys.
  """
  if c.optim.noise_multiplier is None:
    return
  asked = f"optim.noise_multiplier is {c.optim.noise_multiplier:g}"
  if c.optim.clip_norm is None:
    raise InputError(
      f"{asked}, in units of optim.clip_norm, to which the gradient of each "
      "sequence is clipped, and that is None; set it, to 1.0 for example"
    )
  how = OBJECTIVES[c.data.objective]
  if how.is_preference or how.is_sampled:
    raise InputError(
      f"{asked}, and data.objective is {c.data.objective}, whose gradient is "
      "of pairs and groups of answers; leave it None"
    )
  wanted = (
    ("data.packing", c.data.packing, "stream", "several documents share a row"),
    (
      "model.num_experts",
      c.model.num_experts,
      None,
      "experts are balanced over the batch",
    ),
    ("distill.teacher", c.distill.teacher, None, "a teacher has seen texts"),
    (
      "train.batch_ramp",
      str(c.train.batch_ramp),
      "none",
      "epsilon is of one size of batch",
    ),
    (
      "train.spike_factor",
      c.train.spike_factor,
      None,
      "which steps are left out would tell of the text",
    ),
    (
      "data.curriculum",
      str(c.data.curriculum),
      "none",
      "epsilon is of one mixture",
    ),
    ("mesh.seq", c.mesh.seq, 1, "sequences are whole"),
  )
  for key, found, value, why in wanted:
    if found != value:
      raise InputError(f"{asked} and {key} is {found}; {why}: leave it {value}")
