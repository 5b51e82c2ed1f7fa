"""Refuses labels that a model cannot learn, and class heads without labels."""

from gpt_jax.config.derived import has_classes, has_source
from gpt_jax.config.options import CLASS_HEADS, FAMILIES, OBJECTIVES
from gpt_jax.config.schema import Config
from gpt_jax.exits import InputError


def check_labels(c: Config) -> None:
  """Refuses values that conflict with data.objective=classification.

  Raises:
    InputError: the sentence names the keys.
  """
  d, m = c.data, c.model
  asked = f"data.objective is {d.objective}"
  if has_classes(m) != OBJECTIVES[d.objective].has_labels:
    scored, heads = "tokens", " or ".join(CLASS_HEADS)
    if has_classes(m):
      scored, heads = "classes", "linear or transform"
    raise InputError(
      f"{asked}, and model.head is {m.head}, which scores {scored}; it must be "
      f"{heads}"
    )
  if has_classes(m):
    _check_head(c, f"{asked}, data.label {d.label}")
  elif m.num_classes is not None:
    raise InputError(
      f"model.num_classes is {m.num_classes}, and model.head is {m.head}, "
      "which scores tokens; leave it None"
    )


def _check_head(c: Config, asked: str) -> None:
  d, m, t = c.data, c.model, c.train
  if (m.head == "each") != (d.label == "word"):
    raise InputError(
      f"{asked}, and model.head is {m.head}; each is for labels of words, and "
      "only for them"
    )
  if m.head == "first" and FAMILIES[m.family].is_causal:
    raise InputError(
      f"model.head is first and model.family is {m.family}, whose first token "
      "sees no other; use last or mean"
    )
  if m.head == "each" and has_source(m):
    raise InputError(
      f"{asked}, and model.family is {m.family}, whose decoder reads no word "
      "of the text; use an encoder or a decoder"
    )
  if d.label == "number" and m.num_classes not in (None, 1):
    raise InputError(
      f"{asked}, and model.num_classes is {m.num_classes}; it must be 1"
    )
  if d.label != "number" and m.num_classes == 1:
    raise InputError(
      f"{asked}, and model.num_classes is 1; it must be 2 or more"
    )
  if m.num_future_tokens > 1:
    raise InputError(
      f"{asked}, and model.num_future_tokens is {m.num_future_tokens}, tokens "
      "that a text's classes do not have; leave it 1"
    )
  if d.packing != "stream":
    raise InputError(
      f"{asked}, whose rows hold one text, and data.packing is {d.packing}; "
      "leave it stream"
    )
  if d.split == "tail":
    raise InputError(
      f"{asked}, whose texts are whole, and data.split is tail, which holds "
      "back the end of each; it must be document"
    )
  if c.mesh.seq != 1:
    raise InputError(
      f"{asked}, whose texts are whole, and mesh.seq is {c.mesh.seq}; it must "
      "be 1"
    )
  if m.attention == "cudnn":
    raise InputError(
      f"{asked}, whose rows are filled up, and model.attention is cudnn, which "
      "needs an array of T x T to hide that; use auto or flash"
    )
  for key in ("label_smoothing", "z_loss_weight"):
    if getattr(t, key) and d.label in ("multi", "number"):
      raise InputError(
        f"{asked}, whose loss has no softmax, and train.{key} is "
        f"{getattr(t, key):g}; it must be 0"
      )
