"""A run whose matrices are stored in int8, int4 or factors, by deploy.compress.

Its record names the format. Integers are used as they are stored where the run
is opened in their format; for any other the matrices are restored first.
Factors stay what they are.
"""

import dataclasses
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from gpt_jax.config import WEIGHTS, InputError
from gpt_jax.models import Model

# What a record calls it.
NAME = "stored"
FACTORS = "rank:"


class Stored(NamedTuple):
  """How the matrices of a run are stored.

  Attributes:
    weights: an entry of config.WEIGHTS, or "rank:PERCENT" of factors.
  """

  weights: str


def read_params(workdir: str, record: dict, model: Model, read: Callable):
  """Returns the parameters of a run.

  Args:
    record: its config.json.
    model: its weights say in which format matrices are wanted.
    read: function of (shapes, specs) that returns what is stored.

  Raises:
    InputError: the record names a format that does not exist.
  """
  word = stored_weights(workdir, record)
  if word == "full":
    return read(*model.abstract_learned())
  if word.startswith(FACTORS):
    percent = int(word.removeprefix(FACTORS))
    return read(*model.abstract_factored(percent))
  own = dataclasses.replace(model, weights=word)
  params = read(*own.abstract_rounded())
  if model.weights == word:
    return params
  return jax.jit(own.restore_matrices)(params)


def stored_weights(workdir: str, record: dict[str, Any]) -> str:
  """Returns Stored.weights of a run."""
  found = record.get(NAME)
  if found is None:
    return "full"
  word = found.get("weights") if isinstance(found, dict) else None
  is_factors = re.fullmatch(rf"{FACTORS}[1-9][0-9]?", str(word))
  if not isinstance(word, str) or (word not in WEIGHTS and not is_factors):
    path = os.path.join(workdir, "config.json")
    raise InputError(
      f"{path} says that matrices are stored as {word!r:.40}; it must be one "
      f"of {', '.join(WEIGHTS)}, {FACTORS}PERCENT; restore the file that was "
      "written"
    )
  return word
