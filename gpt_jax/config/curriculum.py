"""data.curriculum: weights of sources that change over training."""

import re

from gpt_jax.config.options import ParsedOption
from gpt_jax.exits import InputError


class Stages(ParsedOption):
  """data.curriculum.

  Attributes:
    parts: ((weights, first step), ...) in order; () for none.
  """

  FORMS = ("none", "WEIGHT,WEIGHT@STEP+...")
  parts: tuple[tuple[tuple[float, ...], int], ...]

  def __init__(self, text: str):
    parts, last = [], 0
    for part in text.split("+") if text != "none" else ():
      words, at, step = part.partition("@")
      weights = tuple(map(_read_weight, words.split(",")))
      is_step = step.isdecimal() and len(step) <= 10 and int(step) > last
      if not at or not is_step or not all(weights):
        raise InputError(
          f"data.curriculum is {text!r}; it must be none or "
          "WEIGHT,WEIGHT@STEP+..., with weights above 0 and increasing steps, "
          "as in 1,3@1000+1,9@2000"
        )
      last = int(step)
      parts.append((weights, last))
    self.parts = tuple(parts)


def _read_weight(word: str) -> float:
  """Returns the number in `word`, or 0 if it is not a valid number."""
  plain = re.fullmatch(r"\s*\d{1,9}(\.\d{1,9})?\s*", word)
  return float(word) if plain else 0.0
