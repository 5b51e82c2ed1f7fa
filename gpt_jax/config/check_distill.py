"""Refuses a teacher that a student cannot learn from."""

from gpt_jax.config.derived import has_classes
from gpt_jax.config.options import OBJECTIVES
from gpt_jax.config.schema import Config
from gpt_jax.exits import InputError


def check_distill(c: Config) -> None:
  """Refuses values of section distill that conflict with each other or others.

  Raises:
    InputError: the sentence names the keys.
  """
  d, m = c.distill, c.model
  if d.teacher is None:
    if d.top_k is not None:
      raise InputError(
        f"distill.top_k is {d.top_k} and distill.teacher is None; name the "
        "folder of stored logits, or leave both None"
      )
    return
  if d.top_k is not None and c.train.max_rollbacks:
    raise InputError(
      f"distill.top_k is {d.top_k} and train.max_rollbacks is "
      f"{c.train.max_rollbacks}; leave it 0, since after a rollback sequences "
      "come that have no stored logits"
    )
  asked = f"distill.teacher is {d.teacher!r}"
  how = OBJECTIVES[c.data.objective]
  if how.is_preference or how.is_sampled:
    raise InputError(
      f"{asked}, and data.objective is {c.data.objective}, whose loss is over "
      "pairs of answers; leave it None"
    )
  if m.family != "decoder" or has_classes(m):
    raise InputError(
      f"{asked}, for a decoder that scores tokens, and model.family is "
      f"{m.family}, model.head {m.head}; leave it None"
    )
