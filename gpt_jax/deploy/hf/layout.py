"""Maps each part of a parameter of ours to a tensor of the hub's layout.

In deploy.hf, "ours" is a name or value of this package, and "theirs" one of
transformers and the hub's files.
"""

import collections
import math
from typing import NamedTuple

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.config import InputError, ModelConfig
from gpt_jax.deploy.hf.rows import PADDING_ROWS, Architecture
from gpt_jax.deploy.hf.tensors import Tensor, check_finite

# Parameters with a row for each token; ours have rows of padding after them.
TABLES = ("embed/tokens", "unembed", "head/bias")
# JAX takes an array as a CPU device's own if it begins at a multiple of this
# number of bytes.
ALIGNMENT = 64
# Other names of the embedding table in an encoder-decoder.
COPIES = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
# End of a second name of the logits' bias.
TWIN = ".decoder.bias"


class Part(NamedTuple):
  """One layer's (and expert's) part of a parameter of ours.

  Attributes:
    path: of the parameter.
    at: (), (layer,) or (layer, expert), its leading indices.
    shape: of the part.
    start, stop: range of its outputs within the hub's tensor, or in form heads
      within each head of it.
  """

  path: str
  at: tuple[int, ...]
  shape: tuple[int, ...]
  start: int
  stop: int

  @property
  def num_in(self) -> int:
    """Returns the number of inputs of the matrix."""
    dims = 2 if self.path.endswith("/o") else 1
    return math.prod(self.shape[:dims])


class Entry(NamedTuple):
  """A tensor of the hub's layout.

  Attributes:
    name, shape: of the tensor.
    parts: the parts of our parameters that it holds.
    form: of its Row.
    num_turned: number of each head's last dims that RoPE rotates; 0 unless form
      is turned.
  """

  name: str
  shape: tuple[int, ...]
  parts: tuple[Part, ...]
  form: str
  num_turned: int = 0

  def take(self, theirs: np.ndarray, part: Part) -> np.ndarray:
    """Returns a part of the tensor in our shape; a view where there is one."""
    if self.form in ("linear", "turned"):
      linear = theirs[part.start : part.stop].T.reshape(part.shape)
      return linear[..., self._order(part)] if self.num_turned else linear
    if self.form == "conv":
      return theirs[:, part.start : part.stop].reshape(part.shape)
    if self.form == "heads":
      heads, width = part.shape[-2], self.parts[-1].stop
      split = theirs.reshape(heads, width, *theirs.shape[1:])
      own = split[:, part.start : part.stop]
      return own if theirs.ndim == 1 else np.moveaxis(own, -1, 0)
    if self.form == "offset":
      return theirs.astype(np.float32) + 1
    if self.form == "padded":
      return theirs[PADDING_ROWS:]
    if self.form == "row":
      return theirs[0]
    if theirs.ndim == 1:
      return theirs[part.start : part.stop].reshape(part.shape)
    return theirs

  def _order(self, part: Part) -> np.ndarray:
    """Returns the index among their dims of a head for each of our dims.

    RoPE rotates pairs of dims: ours are half of the rotated dims apart, theirs
    are neighbours.
    """
    dims = np.arange(part.shape[-1])
    first = len(dims) - self.num_turned
    pairs = dims[first:].reshape(-1, 2)
    return np.concatenate([dims[:first], pairs[:, 0], pairs[:, 1]])

  def give(self, ours: list[np.ndarray]) -> np.ndarray:
    """Returns the tensor that holds the parts' arrays; the inverse of take."""
    if self.form == "heads":
      joined = np.concatenate(ours, axis=-1)
      if len(self.shape) == 1:
        return joined.reshape(-1)
      return joined.reshape(len(joined), -1).T
    flat = [
      a.reshape(p.num_in, -1) for a, p in zip(ours, self.parts, strict=True)
    ]
    if self.form == "turned":
      order = np.argsort(self._order(self.parts[0]))
      flat = [ours[0][..., order].reshape(flat[0].shape)]
    if self.form in ("linear", "turned"):
      return np.concatenate([a.T for a in flat])
    if self.form == "conv":
      return np.concatenate(flat, axis=1)
    if self.form == "offset":
      return ours[0] - np.ones((), ours[0].dtype)
    if self.form == "padded":
      before = np.zeros((PADDING_ROWS, *ours[0].shape[1:]), ours[0].dtype)
      return np.concatenate([before, ours[0]])
    if self.form == "row":
      return ours[0][None]
    if len(self.shape) == 1:
      return np.concatenate([a.reshape(-1) for a in ours])
    return ours[0]


def list_entries(
  found: Architecture, model: ModelConfig, shapes: dict[str, tuple[int, ...]]
) -> list[Entry]:
  """Returns the entries of a model of ours in the hub's layout.

  Args:
    shapes: of all our parameters, by path.
  """
  entries = []
  heads = () if model.tied_embeddings else found.heads
  for row in (*found.rows, *heads):
    places: list = [(None, "", 0)]
    if "{layer}" in row.theirs:
      places = _places(model, row.ours[0].split("/")[0])
    experts = range(model.num_experts or 0)
    for layer, stack, place in places:
      paths = tuple(
        f"{stack}/{path.partition('/')[2]}" if stack else path
        for path in row.ours
      )
      if row.is_optional and paths[0] not in shapes:
        continue
      theirs = row.theirs if layer or row.first is None else row.first
      for expert in experts if "{expert}" in row.theirs else [None]:
        at = () if layer is None else (place,)
        at += () if expert is None else (expert,)
        name = theirs.format(layer=layer, expert=expert)
        entries.append(_build(name, paths, row.form, at, model, shapes))
  named = {part.path for entry in entries for part in entry.parts}
  assert named == shapes.keys(), named ^ shapes.keys()
  return entries


def _places(model: ModelConfig, name: str) -> list[tuple[int, str, int]]:
  """Returns (layer, stack, index in it) of the layers of "blocks" or "encoder".

  Layers of several kinds are in stacks of their own (config.layer_stacks).
  """
  stacks = config_lib.layer_stacks(config_lib.stack_config(model, name), name)
  counts: dict[str, int] = collections.Counter()
  found = []
  for layer, stack in enumerate(stacks):
    found.append((layer, stack, counts[stack]))
    counts[stack] += 1
  return found


def _build(name, paths, form, at, model, shapes) -> Entry:
  parts, start = [], 0
  for path in paths:
    shape = shapes[path][len(at) :]
    if path in TABLES:
      shape = (config_lib.vocab_size(model), *shape[1:])
    part = Part(path, at, shape, start, start)
    is_matrix = form in ("linear", "turned", "conv")
    out = math.prod(shape) // (part.num_in if is_matrix else 1)
    out = shape[-1] if form == "heads" else out
    start += out
    parts.append(part._replace(stop=start))
  num_in = parts[0].num_in
  whole = {
    "linear": (start, num_in),
    "turned": (start, num_in),
    "conv": (num_in, start),
  }.get(form, parts[0].shape)
  if form == "padded":
    whole = (whole[0] + PADDING_ROWS, *whole[1:])
  if form == "row":
    whole = (1, start)
  if form == "heads":
    *num_in, heads, _ = parts[0].shape
    whole = (heads * start, *num_in)
  is_flat = form == "same" and (len(parts) > 1 or paths[0].endswith("_bias"))
  if is_flat or form == "flat":
    whole = (start,)
  turned = config_lib.rope_dim(model) if form == "turned" else 0
  return Entry(name, whole, tuple(parts), form, turned)


def match(
  entries: list[Entry], tensors: dict[str, Tensor], found: Architecture, where
) -> dict[str, Tensor]:
  """Returns the tensor of each entry by the entry's name.

  Raises:
    InputError: tensors are missing, of another shape or type, or unknown.
  """
  tensors = _rename(tensors, found, where)
  bare = not any(name.startswith(found.prefix) for name in tensors)
  theirs = lambda name: name.removeprefix(found.prefix) if bare else name
  names = [theirs(e.name) for e in entries]
  missing = [name for name in names if name not in tensors]
  if missing:
    raise InputError(f"{where} lacks {_some(missing)}, which config.json needs")
  matched = {e.name: tensors[theirs(e.name)] for e in entries}
  wrong = [
    f"{theirs(e.name)} of {matched[e.name].shape} where config.json needs "
    f"{e.shape}"
    for e in entries
    if matched[e.name].shape != e.shape
  ]
  wrong += [
    f"{theirs(e.name)} of {matched[e.name].dtype}, no type of weights"
    for e in entries
    if matched[e.name].dtype.kind in "iub"
  ]
  if wrong:
    raise InputError(f"{where} holds {_some(wrong)}")
  used = set(names)
  tied = {theirs(row.theirs) for row in found.heads}
  extra = [
    name
    for name in tensors.keys() - used - tied - set(found.zeros)
    if not name.endswith(found.ignored or ("\0",))
  ]
  if extra:
    some = _some([f"{name:.80}" for name in sorted(extra)])
    raise InputError(f"{where} holds {some}, which {found.name} does not have")
  for name in found.zeros:
    if name in tensors and tensors[name].read().any():
      raise InputError(
        f"{where} holds {name}, which is not zero; {found.name} is supported "
        "where it is"
      )
  table = tensors[theirs(entries[0].name)]
  for name in (tied - used) & tensors.keys():
    _check_tied(tensors[name], table, name, where)
  for name in tensors.keys() - used:
    if name.endswith(COPIES) and not _is_same(tensors[name], table):
      raise InputError(
        f"{where} holds {name:.80}, which differs from "
        f"{theirs(entries[0].name)}; sources and targets must have one table"
      )
  _check_twins(tensors, used, where)
  return matched


def _check_twins(tensors: dict, used: set[str], where: str) -> None:
  """Refuses a model whose two copies of the logits' bias differ.

  We read one of them. transformers ties them if it ties the tables, and adds
  only the decoder's otherwise.
  """
  for name in tensors.keys() - used:
    twin = name.removesuffix(TWIN) + ".bias"
    if not name.endswith(TWIN) or twin not in used:
      continue
    if not np.array_equal(tensors[name].read(), tensors[twin].read()):
      raise InputError(
        f"{where} holds {name:.80}, which differs from {twin:.80}; they must "
        "be one bias of the logits"
      )


def _rename(tensors: dict, found: Architecture, where: str) -> dict:
  """Returns tensors by their current names, which differ in older files."""
  renamed = {}
  for name, tensor in tensors.items():
    now = name
    for old, new in found.renamed:
      if name.endswith(old):
        now = name.removesuffix(old) + new
    if now != name and now in tensors:
      raise InputError(
        f"{where} holds {name:.80} and {now:.80}, which are one; it must hold "
        "one"
      )
    renamed[now] = tensor
  return renamed


def _check_tied(head: Tensor, table: Tensor, name: str, where: str) -> None:
  """Refuses an output matrix that differs from the embedding it is tied to."""
  if not _is_same(head, table):
    for tensor in (table, head):  # NaN differs from itself
      check_finite(tensor.read(), tensor)
    raise InputError(
      f"{where} holds {name}, which differs from the embedding, and "
      "config.json says that they are one (tie_word_embeddings)"
    )


def _is_same(one: Tensor, other: Tensor) -> bool:
  return one.shape == other.shape and np.array_equal(one.read(), other.read())


def _some(names: list[str]) -> str:
  rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
  return ", ".join(names[:3]) + rest


def _aligned(shape: list[int], dtype: np.dtype) -> np.ndarray:
  """Returns zeros, aligned so that a CPU device takes them without a copy."""
  size = math.prod(shape) * dtype.itemsize
  room = np.zeros(size + ALIGNMENT, np.uint8)
  start = -room.ctypes.data % ALIGNMENT
  return room[start : start + size].view(dtype).reshape(shape)


def read_part(
  path: str,
  index: tuple[slice, ...],
  shape: tuple[int, ...],
  dtype: np.dtype,
  sources: dict[tuple[str, tuple[int, ...]], tuple[Entry, Part, Tensor]],
) -> np.ndarray:
  """Returns a device's shard of a parameter of ours.

  Args:
    index: slices of the shard.
    shape: of the whole parameter.
    sources: {(path, leading indices): where that part is read from}.

  Raises:
    InputError: a tensor holds NaN or infinity.
  """
  spans = [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
  out = _aligned([stop - start for start, stop in spans], dtype)
  depth = len(next(at for name, at in sources if name == path))
  for place in np.ndindex(*out.shape[:depth]):
    at = tuple(i + spans[d][0] for d, i in enumerate(place))
    entry, part, tensor = sources[path, at]
    piece = entry.take(tensor.read(), part)[index[depth:]]
    # A table's rows of padding stay zero.
    own = out[place][tuple(slice(n) for n in piece.shape)]
    with np.errstate(over="ignore"):  # which the next line refuses
      own[...] = piece
    check_finite(own, tensor)
  return out
