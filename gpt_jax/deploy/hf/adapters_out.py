"""Writes a run's adapters in PEFT's format.

One matrix of the hub may hold several of ours (GPT-2's c_attn holds those of
queries, keys and values). Its adapter then holds all of their adapters: A is
their A matrices one above the other, and B has theirs as diagonal blocks.
"""

import collections
import json
import math
import os
from typing import Any, NamedTuple

import numpy as np

from gpt_jax import cli, files, tree
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.deploy.hf import architectures, layout, stated, tensors
from gpt_jax.deploy.hf.adapters import CONFIG, PREFIX, TENSORS
from gpt_jax.deploy.hf.folders import whole_folder
from gpt_jax.models import Model


class Pair(NamedTuple):
  """An adapter of a matrix of the hub's layout.

  Attributes:
    a, b: (rank, in) and (out, rank).
    alpha: the scale of the product b a, times the rank.
    magnitude: (out,), DoRA's norm of each output; None is LoRA.
  """

  a: np.ndarray
  b: np.ndarray
  alpha: float
  magnitude: np.ndarray | None


def export_adapters(model: Model, learned: Any, base: Any, out: str) -> str:
  """Writes adapter_config.json and tensors; returns the base's model_type.

  Args:
    model: with adapters.
    learned: the adapters' arrays.
    base: the parameters that they adapt, for DoRA; None for LoRA.
    out: folder, must not exist yet.

  Raises:
    InputError: no architecture of the hub has this model, or its adapters are
      of experts; nothing is written then.
  """
  defaults = config_lib.freeze(cli.load_config("configs/base.py", {})).model
  word = stated.choose(model.config, defaults)
  found = architectures.ARCHITECTURES[word]
  flat = tree.flatten_with_names(model.abstract_params()[0])
  shapes = {name: leaf.shape for name, leaf in flat.items()}
  arrays = {
    name: np.asarray(leaf)
    for name, leaf in tree.flatten_with_names(learned).items()
  }
  assert model.adapter is not None
  base = {
    name: np.asarray(leaf, np.float32)
    for name, leaf in tree.flatten_with_names(base).items()
  }
  pairs = {}
  for entry in layout.list_entries(found, model.config, shapes):
    if any(f"{part.path}/lora_a" in arrays for part in entry.parts):
      if any(len(part.at) > 1 for part in entry.parts):
        raise InputError(
          f"the adapters of {entry.parts[0].path} are of experts, which PEFT "
          "does not load; merge them: python -m gpt_jax.deploy.merge"
        )
      name = entry.name.removesuffix(".weight")
      pairs[name] = _join(entry, arrays, base, model.adapter.alpha)
  is_conv = any(row.form == "conv" for row in found.rows)
  planned = []
  for name, pair in pairs.items():
    tensor = lambda key, x, name=name: tensors.Planned(
      f"{PREFIX}{name}.lora_{key}", x.dtype, x.shape, lambda: x
    )
    planned += [tensor("A.weight", pair.a), tensor("B.weight", pair.b)]
    if pair.magnitude is not None:
      planned.append(tensor("magnitude_vector", pair.magnitude))
  with whole_folder("--out", out) as partial:
    tensors.write_file(os.path.join(partial, TENSORS), planned)
    text = json.dumps(_describe(pairs, is_conv), indent=2) + "\n"
    files.write_text(os.path.join(partial, CONFIG), text)
  return word


def _join(entry: layout.Entry, arrays: dict, base: dict, alpha: float) -> Pair:
  """Returns the adapter of a matrix of the hub, from those of its parts."""
  found = {}
  for i, part in enumerate(entry.parts):
    if f"{part.path}/lora_a" in arrays:
      a, b = (arrays[f"{part.path}/lora_{c}"][part.at] for c in "ab")
      found[i] = a.reshape(-1, a.shape[-1]).T, b
  scales = [alpha / a.shape[0] for a, _ in found.values()]
  rank = sum(a.shape[0] for a, _ in found.values())
  is_one = len(set(scales)) == 1
  wide, start = (
    [np.zeros((rank, *_outs(p)), np.float32) for p in entry.parts],
    0,
  )
  for (i, (a, b)), scale in zip(found.items(), scales, strict=True):
    stop = start + a.shape[0]
    wide[i][start:stop] = np.float32(1 if is_one else scale) * b
    start = stop
  a_all = np.concatenate([a for a, _ in found.values()])
  magnitude = None
  if base:
    norms = [_norms(part, arrays, base)[None] for part in entry.parts]
    magnitude = _by_outputs(entry, norms)[:, 0]
  alpha = rank * (scales[0] if is_one else 1.0)
  return Pair(a_all, _by_outputs(entry, wide), alpha, magnitude)


def _outs(part: layout.Part) -> tuple[int, ...]:
  """Returns the output dims of a part."""
  dims = range(1, len(part.shape))
  return next(
    part.shape[d:] for d in dims if math.prod(part.shape[:d]) == part.num_in
  )


def _by_outputs(entry: layout.Entry, rows: list[np.ndarray]) -> np.ndarray:
  """Returns (out, R): R rows, with outputs in the order of the hub's tensor.

  Args:
    rows: (R, *outputs) of each part.
  """
  pairs = zip(entry.parts, rows, strict=True)
  parts = tuple(p._replace(path="", shape=x.shape) for p, x in pairs)
  joined = entry._replace(parts=parts).give(rows)
  return joined.T if entry.form == "conv" else joined


def _norms(part: layout.Part, arrays: dict, base: dict) -> np.ndarray:
  """Returns the norm of each output's weights, times its magnitude if any."""
  w = base[part.path][part.at].reshape(part.num_in, *_outs(part))
  norms = np.sqrt(np.square(w).sum(0))
  own = f"{part.path}/lora_magnitude"
  return norms * arrays[own][part.at] if own in arrays else norms


def _describe(pairs: dict[str, Pair], is_conv: bool) -> dict[str, Any]:
  """Returns adapter_config.json, whose patterns list only unusual values."""
  ranks = {name: len(pair.a) for name, pair in pairs.items()}
  alphas = {name: pair.alpha for name, pair in pairs.items()}
  usual = lambda values: collections.Counter(values).most_common(1)[0][0]
  rank, alpha = usual(ranks.values()), usual(alphas.values())
  others = lambda named, most: {k: v for k, v in named.items() if v != most}
  return {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": None,
    "inference_mode": True,
    "r": rank,
    "lora_alpha": alpha,
    "rank_pattern": others(ranks, rank),
    "alpha_pattern": others(alphas, alpha),
    "target_modules": list(pairs),
    "fan_in_fan_out": is_conv,
    "lora_dropout": 0.0,
    "bias": "none",
    "use_dora": any(p.magnitude is not None for p in pairs.values()),
    "use_rslora": False,
    "modules_to_save": None,
  }
