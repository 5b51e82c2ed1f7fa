"""LoRA adapters in PEFT's format, merged into the tensors of their base.

W + scale * B A (Hu et al. 2021, 4.1), with scale = alpha / rank, or alpha /
sqrt(rank) (Kalajdzievski 2023).

Design choice: each tensor of the hub's layout is merged as it is read. So our
parameters need to know nothing of adapters, and no more than one merged matrix
is in memory beside the model.
"""

import dataclasses
import math
import os
import re
from typing import Any

import numpy as np

from gpt_jax.config import InputError, nearest
from gpt_jax.deploy.hf import layout, tensors

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
# Forms of a layout.Entry that are matrices: (out, in), but conv is (in, out).
MATRICES = ("linear", "turned", "heads", "conv")
# Prefix of the tensors' names.
PREFIX = "base_model.model."
# {key of adapter_config.json: values that are supported}; a missing key means
# the first of them.
WANTED: dict[str, tuple] = {
  "peft_type": ("LORA",),
  "use_dora": (False, None),
  "bias": ("none", None),
  "lora_bias": (False, None),
  "modules_to_save": (None, [], False),
  "layer_replication": (None, [], False),
  "target_parameters": (None, [], False),
  "trainable_token_indices": (None, [], {}, False),
  "alora_invocation_tokens": (None, [], False),
  "use_bdlora": (None, False),
  "use_qalora": (False, None),
}


@dataclasses.dataclass(frozen=True)
class Merged:
  """A tensor of the base, to which an adapter is added when it is read.

  Attributes:
    base, a, b: tensors; a is (rank, in), b (out, rank).
    scale: factor of the product b a.
    form: form of the base's layout.Entry, one of MATRICES.
  """

  base: tensors.Tensor
  a: tensors.Tensor
  b: tensors.Tensor
  scale: float
  form: str

  @property
  def path(self) -> str:
    return self.base.path

  @property
  def name(self) -> str:
    return self.base.name

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  @property
  def dtype(self) -> np.dtype:
    return self.base.dtype

  def read(self) -> np.ndarray:
    """Returns base + scale * b a in float32.

    Raises:
      InputError: the adapter holds NaN or infinity.
    """
    wide = lambda tensor: np.asarray(tensor.read(), np.float32)
    for tensor in (self.a, self.b):
      tensors.check_finite(wide(tensor), tensor)
    delta = np.float32(self.scale) * (wide(self.b) @ wide(self.a))
    return wide(self.base) + (delta.T if self.form == "conv" else delta)


def merge(
  folder: str,
  entries: list[layout.Entry],
  matched: dict[str, tensors.Tensor],
) -> dict[str, Any]:
  """Returns a base's tensors, with a Merged for each that an adapter changes.

  Args:
    folder: with adapter_config.json and adapter_model.safetensors.
    entries: entries of the base.
    matched: the base's tensors, by the name of their entry.

  Raises:
    InputError: the adapter is of another kind or base, or is damaged.
  """
  where = os.path.join(folder, CONFIG)
  read = _read_config(where)
  opened = tensors.open_folder(folder, TENSORS)
  where = os.path.join(folder, TENSORS)
  forms = {
    e.name.removesuffix(".weight"): e
    for e in entries
    if e.form in MATRICES and e.name.endswith(".weight")
  }
  merged: dict[str, Any] = dict(matched)
  for name in opened:
    module, _, part = name.removeprefix(PREFIX).rpartition(".lora_")
    is_part = part in ("A.weight", "B.weight")
    if not (name.startswith(PREFIX) and is_part and module in forms):
      raise InputError(
        f"{where} holds {name!r:.120}, which adapts no matrix of this model; "
        f"{nearest(module, forms)}"
      )
    entry = forms[module]
    pair = [f"{PREFIX}{module}.lora_{letter}.weight" for letter in "AB"]
    missing = [other for other in pair if other not in opened]
    if missing:
      raise InputError(f"{where} holds {name} without {missing[0]}")
    a, b = (opened[other] for other in pair)
    scale = _check(read, module, entry, a, b, where)
    merged[entry.name] = Merged(matched[entry.name], a, b, scale, entry.form)
  if not opened:
    raise InputError(f"{where} holds no tensors; give the folder of an adapter")
  return merged


def _read_config(where: str) -> dict:
  read = tensors.read_object(where)
  for key, values in WANTED.items():
    if read.get(key, values[0]) not in values:
      raise InputError(
        f"{where} has {key} {read[key]!r:.80}, which is not read; it must be "
        f"{values[0]!r}"
      )
  preset: dict[str, Any] = {"r": 8, "lora_alpha": 8, "use_rslora": False}
  read = preset | read
  for key in ("rank_pattern", "alpha_pattern"):
    patterns = read[key] = read.get(key) or {}
    if not isinstance(patterns, dict):
      raise InputError(f"{where} has {key} {patterns!r:.80}, no JSON object")
    for pattern, value in patterns.items():
      # Others are regular expressions, and one from an untrusted file is not
      # run: matching it could take forever.
      if not re.fullmatch(r"\^?[A-Za-z0-9_.]+", pattern):
        raise InputError(
          f"{where} has the {key} {pattern!r:.80}; it must be the name of a "
          "module, or the end of one"
        )
      _check_number(value, f"{key} of {pattern}", where)
  for key in ("r", "lora_alpha"):
    _check_number(read[key], key, where)
  return read


def _check_number(value: Any, key: str, where: str) -> None:
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if not is_number or not 0 < value < 1e9:
    raise InputError(
      f"{where} has {key} {value!r:.80}; it must be a number above 0"
    )


def _check(read, module: str, entry, a, b, where: str) -> float:
  """Checks an adapter's shapes against its matrix, and returns its scale."""
  num_in, num_out = entry.shape if entry.form == "conv" else entry.shape[::-1]
  rank = _find(read["rank_pattern"], module, read["r"])
  most = min(num_in, num_out)
  if rank > most:
    raise InputError(
      f"{where} has rank {rank} for {module}, a matrix of {num_in} by "
      f"{num_out}; the rank must be at most {most}"
    )
  if a.shape != (rank, num_in) or b.shape != (num_out, rank):
    raise InputError(
      f"{where} has matrices of {a.shape} and {b.shape} for {module}, and "
      f"{CONFIG} and the base need {(rank, num_in)} and {(num_out, rank)}; the "
      "adapter is of another base"
    )
  alpha = _find(read["alpha_pattern"], module, read["lora_alpha"])
  return alpha / (math.sqrt(rank) if read["use_rslora"] else rank)


def _find(patterns: dict, module: str, default):
  """Returns the value of the first pattern that a module's name ends with.

  As in PEFT, a pattern that begins with ^ must be the whole name.
  """
  for pattern, value in patterns.items():
    if pattern.startswith("^"):
      is_match = module == pattern[1:]
    else:
      is_match = f".{module}".endswith(f".{pattern}")
    if is_match:
      return value
  return default
