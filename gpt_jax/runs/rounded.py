"""A run that stores its matrices in int8 or int4, as deploy.compress writes it.

Its record names the format. Opened in that format its integers are used as they
are stored; in any other the matrices are restored first.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from gpt_jax.config import WEIGHTS, InputError
from gpt_jax.models import Model

# What a record calls it.
NAME = "stored"


class Stored(NamedTuple):
  """How the matrices of a run are stored: an entry of config.WEIGHTS."""

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
  own = dataclasses.replace(model, weights=word)
  params = read(*own.abstract_rounded())
  if model.weights == word:
    return params
  return jax.jit(own.restore_matrices)(params)


def stored_weights(workdir: str, record: dict[str, Any]) -> str:
  """Returns the entry of config.WEIGHTS that a run's matrices are stored in."""
  found = record.get(NAME)
  if found is None:
    return "full"
  word = found.get("weights") if isinstance(found, dict) else None
  if word not in WEIGHTS:
    path = os.path.join(workdir, "config.json")
    raise InputError(
      f"{path} says that matrices are stored as {word!r:.40}; it must be one "
      f"of {', '.join(WEIGHTS)}; restore the file that was written"
    )
  return word
