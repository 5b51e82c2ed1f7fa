"""Reads a run that deploy.compress stored in int8, int4 or low-rank factors.

The run's record names the format. Integers are used as stored if the run is
opened in the same format; for any other format, the matrices are dequantized
first. Factors are always used as stored.
"""

import dataclasses
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from gpt_jax.config import WEIGHTS, InputError
from gpt_jax.models import Model

# The key of Stored in a run's record.
NAME = "stored"
FACTORS = "rank:"


class Stored(NamedTuple):
  """How the matrices of a run are stored.

  Attributes:
    weights: an entry of config.WEIGHTS, or "rank:PERCENT" for factors.
  """

  weights: str


def read_params(workdir: str, record: dict, model: Model, read: Callable):
  """Returns the parameters of a run.

  Args:
    record: its config.json.
    model: model.weights is the format to return.
    read: function of (shapes, specs) that reads the stored arrays.

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
