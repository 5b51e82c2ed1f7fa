"""The ways to make a model smaller, each an option of --method."""

import dataclasses
from typing import Any, NamedTuple

from gpt_jax.config import Config, InputError, nearest

# Method -> (what it does, what its number is or None if it has none, whether it
# reads calibration text).
METHODS = {
  "int8": ("matrices in int8, to nearest", None, False),
  "int4": ("matrices in int4, to nearest", None, False),
  "gptq": ("matrices in int4, by GPTQ", None, True),
  "awq": ("matrices in int4, inputs scaled first as in AWQ", None, True),
  "magnitude": ("the smallest weights are zero", "PERCENT or 2of4", False),
  "wanda": ("weights of little effect are zero", "PERCENT or 2of4", True),
  "rank": ("matrices as two thin ones", "PERCENT", True),
  "layers": ("the layers that are missed least are left out", "COUNT", True),
}


class Method(NamedTuple):
  """A parsed --method.

  Attributes:
    word: a key of METHODS.
    number: the number after the colon; None for 2of4 and without a colon.
    text: as it was given.
  """

  word: str
  number: int | None
  text: str

  @property
  def reads_text(self) -> bool:
    return METHODS[self.word][2]


class Compressed(NamedTuple):
  """A smaller model: config, parameters as stored, and their weight format."""

  config: Config
  params: Any
  weights: str


def parse(text: str) -> Method:
  """Returns a Method.

  Raises:
    InputError: there is no such method, or its number is wrong.
  """
  word, colon, rest = text.partition(":")
  if word not in METHODS:
    raise InputError(
      f"--method is {text!r}, which is none; {nearest(word, METHODS)}"
    )
  wanted = METHODS[word][1]
  if wanted is None:
    if colon:
      raise InputError(f"--method={word} has no number; found {text!r}")
    return Method(word, None, text)
  if rest == "2of4" and "2of4" in wanted:
    return Method(word, None, text)
  is_number = rest.isascii() and rest.isdecimal() and len(rest) < 4
  if not is_number or not 0 < int(rest) < 100:
    raise InputError(
      f"--method is {text!r}; it must be {word}:{wanted}, 1 to 99"
    )
  return Method(word, int(rest), text)


def apply(method: Method, config: Config, model, params, rows_BT) -> Compressed:
  """Returns the smaller model.

  Args:
    model, params: of the run, opened in full.
    rows_BT: ids of calibration text; None where the method reads none.
  """
  from gpt_jax.deploy.compress import factors, layers, pruning, rounding

  if method.word in ("int8", "int4"):
    own = dataclasses.replace(model, weights=method.word)
    return Compressed(config, own.round_matrices(params), method.word)
  if method.word in ("gptq", "awq"):
    own = dataclasses.replace(model, weights="int4")
    make = rounding.round_gptq
    make = make if method.word == "gptq" else rounding.round_scaled
    return Compressed(config, make(own, params, rows_BT), "int4")
  if method.word == "rank":
    assert method.number is not None and rows_BT is not None  # by parse
    made = factors.factor(model, params, method.number, rows_BT)
    return Compressed(config, made, method.text)
  if method.word == "layers":
    assert method.number is not None and rows_BT is not None  # by parse
    dropped = layers.drop(config, model, params, method.number, rows_BT)
    return Compressed(*dropped, "full")
  share = None if method.number is None else method.number / 100
  rows_BT = rows_BT if method.reads_text else None
  pruned = pruning.prune(model, params, share, rows_BT)
  return Compressed(config, pruned, "full")
