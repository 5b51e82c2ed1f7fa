"""Safetensors: a folder of named arrays, read piece by piece, and written.

A file is the length of a header, the header (JSON: dtype, shape and place of
each tensor), and the bytes. Design choice: our own reader. It maps the file
instead of reading it, so that a model larger than memory can be imported, and
it says what is wrong with a file in one sentence. Nothing else is opened: the
pickles of .bin files run code.
"""

import glob
import json
import math
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gpt_jax import files
from gpt_jax.config import InputError

DTYPES = {
  "F64": np.dtype("float64"),
  "F32": np.dtype("float32"),
  "F16": np.dtype("float16"),
  "BF16": np.dtype(jnp.bfloat16),
  # Types of position ids and masks, which older files hold.
  "I64": np.dtype("int64"),
  "U8": np.dtype("uint8"),
  "BOOL": np.dtype("bool"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Most bytes of a header (the limit of the format's own library), or an index.
MAX_HEADER_BYTES = 100_000_000
# Most characters of a file's name.
MAX_NAME = 255
# Most dims of a tensor (numpy's limit).
MAX_DIMS = 64
# Most bytes of the tensors in a written file.
MAX_SHARD_BYTES = 5_000_000_000
# Tensors begin at a multiple of this.
ALIGNMENT = 8
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Tensor(NamedTuple):
  """Where a tensor lies: its file, its name there, its first byte."""

  path: str
  name: str
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int

  def read(self) -> np.ndarray:
    """Returns the array, which is read from disk where it is used."""
    if math.prod(self.shape) == 0:
      return np.zeros(self.shape, self.dtype)
    return np.memmap(
      self.path, self.dtype, "r", offset=self.start, shape=self.shape
    )


def check_finite(array: np.ndarray, tensor) -> None:
  """Refuses NaN and infinity among the numbers of a tensor.

  Read as an integer, an infinity is larger than all finite numbers of its sign,
  and only NaNs are larger still, so two maxima suffice. Design choice: no
  np.isfinite, which allocates a mask and takes 40 times as long in bfloat16.

  Args:
    array: the tensor's numbers, or a part of them, in any type of floats.
    tensor: a Tensor, or another object with path, name and `read`.

  Raises:
    InputError: the sentence names the tensor and its file.
  """
  if array.size == 0:
    return
  size = array.dtype.itemsize
  infinity = np.array([np.inf, -np.inf], array.dtype)
  above, below = (infinity.view(f"{kind}{size}") for kind in "iu")
  is_finite = array.view(f"i{size}").max() < above[0]
  if is_finite and array.view(f"u{size}").max() < below[1]:
    return
  stored = tensor.read()
  what = f"a number that {array.dtype} cannot hold"
  if not np.isfinite(stored).all():
    what = "NaN" if np.isnan(stored).any() else "infinity"
  raise InputError(
    f"{tensor.path} holds {what} in {tensor.name}; the file is damaged, or its "
    "model diverged when it was trained: get another"
  )


def open_folder(folder: str, name: str = WHOLE) -> dict[str, Tensor]:
  """Returns the tensors of a folder's safetensors by name.

  Args:
    name: of the file, unless the tensors are in several files with an index.

  Raises:
    InputError: there are none, or a file is damaged or outside of the folder.
  """
  index = os.path.join(folder, INDEX)
  if name == WHOLE and os.path.lexists(index):
    return _open_indexed(folder, index)
  whole = os.path.join(folder, name)
  if os.path.lexists(whole):
    return _open_file(_inside(folder, name, folder))
  pickles = sorted(glob.glob(os.path.join(glob.escape(folder), "*.bin")))
  if pickles:
    raise InputError(
      f"{folder} holds {os.path.basename(pickles[0])}, a pickle, which can run "
      "code and is never opened; convert it where you trust it: "
      "AutoModelForCausalLM.from_pretrained(DIR)"
      ".save_pretrained(OUT, safe_serialization=True)"
    )
  index = f" and no {INDEX}" if name == WHOLE else ""
  raise InputError(f"{folder} holds no {name}{index}")


def read_object(where: str, max_bytes: int = files.MAX_BYTES) -> dict[str, Any]:
  """Returns the JSON object of a file of the hub; its keys must be unique.

  Raises:
    InputError: the file is damaged, larger, or holds something else.
  """
  try:
    read = files.parse_json(files.read_bytes(where, max_bytes), is_unique=True)
  except files.Damage as damage:
    raise InputError(f"{where} {damage}") from None
  if not isinstance(read, dict):
    raise InputError(f"{where} is no JSON object")
  return read


def _open_indexed(folder: str, index: str) -> dict[str, Tensor]:
  table = read_object(index, MAX_HEADER_BYTES).get("weight_map")
  if not isinstance(table, dict) or not table:
    raise InputError(f"{index} has no weight_map of tensors' files")
  opened: dict[str, dict[str, Tensor]] = {}
  tensors = {}
  for name, file in table.items():
    if not isinstance(file, str):
      raise InputError(f"{index} gives {name:.80} the file {file!r:.60}")
    if file not in opened:
      opened[file] = _open_file(_inside(folder, file, index))
    if name not in opened[file]:
      raise InputError(
        f"{index} says that {name:.80} is in {file}, which lacks it"
      )
    tensors[name] = opened[file][name]
  for file, own in opened.items():
    extra = sorted(own.keys() - table.keys())
    if extra:
      raise InputError(
        f"{file} holds {extra[0]:.80}, which {index} does not name"
      )
  return tensors


def refuse_links(folder: str, names: Iterable[str]) -> None:
  """Refuses those files of a folder that are links to files elsewhere.

  Otherwise private files could be copied into a run, and be shared with it.
  """
  for name in names:
    if os.path.isfile(os.path.join(folder, name)):
      _inside(folder, name, folder)


def _inside(folder: str, file: str, where: str) -> str:
  """Returns the path of a file of the folder, which must lie in it."""
  # No NUL and no lone surrogate: the system allows neither in a name.
  if not file.isprintable() or len(file) > MAX_NAME:
    raise InputError(
      f"{where} names {file!r:.80}, which no file can be called; it must be "
      "the name of a file of the folder"
    )
  path = os.path.join(folder, file)
  real, home = os.path.realpath(path), os.path.realpath(folder)
  if file != os.path.basename(file) or os.path.dirname(real) != home:
    raise InputError(
      f"{where} names {file!r:.80}, which lies outside of the folder; copy the "
      "file into it"
    )
  return path


def _open_file(path: str) -> dict[str, Tensor]:
  """Returns the tensors of one file by name."""
  try:
    with files.open_bytes(path) as file:
      size = os.fstat(file.fileno()).st_size
      head = file.read(8)
      length = int.from_bytes(head, "little")
      if len(head) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
        raise files.Damage(
          f"begins with a header of {length:,} bytes and has {size:,}; it is "
          "cut off, or no file of safetensors"
        )
      header = files.parse_json(file.read(length), is_unique=True)
    if not isinstance(header, dict):
      raise files.Damage("has a header that is no JSON object")
    header.pop("__metadata__", None)
    tensors = {
      name: _place(path, name, entry, 8 + length)
      for name, entry in header.items()
    }
    _check_cover(tensors, 8 + length, size)
  except files.Damage as damage:
    raise InputError(f"{path} {damage}") from None
  return tensors


def _place(path: str, name: str, entry, base: int) -> Tensor:
  is_whole = lambda n: type(n) is int and n >= 0
  try:
    dtype, shape = entry["dtype"], entry["shape"]
    start, stop = entry["data_offsets"]
    is_placed = all(map(is_whole, [*shape, start, stop]))
    if not is_placed or len(shape) > MAX_DIMS or not isinstance(dtype, str):
      raise TypeError
  except (TypeError, KeyError, ValueError):
    raise files.Damage(f"does not describe its tensor {name!r:.80}") from None
  if dtype not in DTYPES:
    raise files.Damage(
      f"holds {name!r:.80} as {dtype!r:.20}; it must be {', '.join(DTYPES)}"
    )
  needed = math.prod(shape) * DTYPES[dtype].itemsize
  if stop - start != needed:
    raise files.Damage(
      f"gives {name!r:.80} {stop - start:,} bytes; its shape "
      f"{tuple(shape)} needs {needed:,}"
    )
  return Tensor(path, name, DTYPES[dtype], tuple(shape), base + start)


def _check_cover(tensors: dict[str, Tensor], base: int, size: int) -> None:
  """Raises Damage unless tensors follow each other up to the file's end."""
  at = base
  for name, t in sorted(tensors.items(), key=lambda item: item[1].start):
    if t.start != at:
      raise files.Damage(
        f"has a gap or an overlap before its tensor {name!r:.80}"
      )
    at += math.prod(t.shape) * t.dtype.itemsize
  if at != size:
    raise files.Damage(f"has {size:,} bytes, and its tensors end at {at:,}")


class Planned(NamedTuple):
  """A tensor to write; `make` returns its array."""

  name: str
  dtype: np.dtype
  shape: tuple[int, ...]
  make: Callable[[], np.ndarray]

  @property
  def num_bytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


def write_folder(
  folder: str, planned: Iterable[Planned], max_bytes: int = MAX_SHARD_BYTES
) -> None:
  """Writes tensors, in one file or in several with an index.

  Each array is made only when it is written, to save memory.

  Args:
    max_bytes: most bytes of a file's tensors.
  """
  shards: list[list[Planned]] = [[]]
  for each in planned:
    used = sum(p.num_bytes for p in shards[-1])
    if shards[-1] and used + each.num_bytes > max_bytes:
      shards.append([])
    shards[-1].append(each)
  if len(shards) == 1:
    write_file(os.path.join(folder, WHOLE), shards[0])
    return
  table = {}
  for number, shard in enumerate(shards, 1):
    file = f"model-{number:05}-of-{len(shards):05}.safetensors"
    write_file(os.path.join(folder, file), shard)
    table |= {each.name: file for each in shard}
  total = sum(each.num_bytes for shard in shards for each in shard)
  index = {"metadata": {"total_size": total}, "weight_map": table}
  text = json.dumps(index, indent=2) + "\n"
  files.write_text(os.path.join(folder, INDEX), text)


def write_file(path: str, shard: list[Planned]) -> None:
  """Writes tensors as one file; each array is made when it is written."""
  header: dict = {"__metadata__": {"format": "pt"}}
  at = 0
  for each in shard:
    header[each.name] = {
      "dtype": NAMES[each.dtype],
      "shape": list(each.shape),
      "data_offsets": [at, at + each.num_bytes],
    }
    at += each.num_bytes
  head = json.dumps(header).encode()
  head += b" " * (-len(head) % ALIGNMENT)
  with open(path, "wb") as file:
    file.write(len(head).to_bytes(8, "little") + head)
    for each in shard:
      array = np.ascontiguousarray(each.make())
      assert (array.dtype, array.shape) == (each.dtype, each.shape), each.name
      file.write(array.reshape(-1).view(np.uint8).data)
    file.flush()
    os.fsync(file.fileno())
