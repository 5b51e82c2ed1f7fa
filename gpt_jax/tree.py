"""Trees of arrays: path names, counts, differences, keys by name, checksums.

Random keys are derived by name: `key_for(key, "blocks/attn/q")` depends on
nothing else in the model, so adding a tensor never changes another's numbers.
"""

import fnmatch
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import tree_util

from gpt_jax.config import InputError, nearest


def path_name(path: Sequence[Any]) -> str:
  """Returns "a/b/0" for a jax key path."""
  words = []
  for entry in path:
    word = next(
      getattr(entry, name)
      for name in ("key", "name", "idx")
      if hasattr(entry, name)
    )
    words.append(str(word))
  return "/".join(words)


def flatten_with_names(tree: Any) -> dict:
  """Returns {"a/b": leaf} in jax's order of leaves."""
  leaves, _ = tree_util.tree_flatten_with_path(tree)
  return {path_name(path): leaf for path, leaf in leaves}


def map_with_names(function: Callable, tree: Any, *rest: Any):
  """Returns the tree of function("a/b", leaf, *other leaves)."""
  return tree_util.tree_map_with_path(
    lambda path, *leaves: function(path_name(path), *leaves), tree, *rest
  )


def find_names(pattern: str, names: Iterable[str]) -> list[str]:
  """Returns the names that a pattern of shell wildcards matches.

  A pattern matches a whole name, or its beginning up to a slash. A pattern
  without a slash also matches any one part: "q" matches "blocks/attn/q", as
  "attn" does.
  """

  def is_match(name: str) -> bool:
    words = name.split("/")
    found = words if "/" not in pattern else []
    found += ["/".join(words[: n + 1]) for n in range(len(words))]
    return any(fnmatch.fnmatchcase(word, pattern) for word in found)

  return [name for name in names if is_match(name)]


def match_parts(
  key: str, parts: Iterable[tuple[str, Any]], names: Iterable[str], kind: str
) -> dict[str, Any]:
  """Returns {name: value} of (pattern, value) parts; a later one wins.

  Args:
    key: the config key that holds the parts, for errors.
    kind: what the names stand for, for errors.

  Raises:
    InputError: a pattern matches no name.
  """
  names, values = list(names), {}
  for pattern, value in parts:
    found = find_names(pattern, names)
    if not found:
      raise InputError(
        f"{key} names {pattern!r}, which matches no {kind}; "
        f"{nearest(pattern, names)}"
      )
    values |= dict.fromkeys(found, value)
  return values


def leave_out(tree: Any, is_out: Any):
  """Returns the tree with None in place of each leaf that is left out."""
  return jax.tree.map(lambda out, x: None if out else x, is_out, tree)


def fill(tree: Any, others: Any):
  """Returns `others` with each leaf replaced by that of `tree` unless None."""
  return jax.tree.map(lambda other, x: other if x is None else x, others, tree)


def count_elements(tree: Any) -> int:
  """Returns the number of array elements, also of abstract leaves."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def count_bytes(tree: Any) -> int:
  """Returns the bytes of all array elements."""
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def describe_shapes(tree: Any) -> dict[str, str]:
  """Returns {"a/b": "float32[3,4]"} for a tree of arrays."""
  return {
    name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    for name, leaf in flatten_with_names(tree).items()
  }


def diff_shapes(there: dict[str, str], here: dict[str, str]) -> list[str]:
  """Returns a clause for each difference between two describe_shapes."""
  clauses = []
  for name in sorted(there.keys() | here.keys()):
    if name not in here:
      clauses.append(f"{name} is {there[name]} there and absent here")
    elif name not in there:
      clauses.append(f"{name} is absent there and {here[name]} here")
    elif there[name] != here[name]:
      clauses.append(f"{name} is {there[name]} there and {here[name]} here")
  return clauses


def key_for(key: jax.Array, name: str):
  """Returns `key` with a hash of the name folded in, equal on all machines."""
  return jax.random.fold_in(key, hash_name(name))


def hash_name(name: str) -> int:
  """Returns 32 bits of a name's SHA-256."""
  digest = hashlib.sha256(name.encode()).digest()
  return int.from_bytes(digest[:4], "little")


def checksum(tree: Any, index: Any = 0, blocks: int = 1):
  """Returns uint32[number of leaves, 2]: a checksum of each leaf's bits.

  Each is a sum of the bits times an odd hash of the position, modulo 2^32.
  Integer sums do not depend on their order, so the result is the same on any
  mesh; since the factors are odd, a flipped bit always changes it. Leaves are
  arrays of any dtype of 1, 2, 4 or 8 bytes.

  Args:
    index, blocks: sum only block `index` of `blocks` equal blocks along the
      first dim. The sums of all blocks add up to the leaf's.
  """
  leaves = jax.tree.leaves(tree)
  return jnp.stack([_leaf_checksum(leaf, index, blocks) for leaf in leaves])


def _leaf_checksum(x, index, blocks: int):
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  if blocks == 1:
    return _sum_bits(x, jnp.uint32(0))
  part = take_block(x, index, blocks)
  words = part.size * (2 if x.dtype.itemsize == 8 else 1)
  first = jnp.uint32(index) * jnp.uint32(words % 2**32)
  return _sum_bits(part, first)


def take_block(x, index, blocks: int):
  """Returns block `index` of an array that is divided along its first dim."""
  size = len(x) // blocks
  return jax.lax.dynamic_slice_in_dim(x, index * size, size)


def _sum_bits(x, start):
  """Returns the two sums over an array whose first word is at `start`."""
  width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
  bits = jax.lax.bitcast_convert_type(x, width[x.dtype.itemsize])
  bits = bits.astype(jnp.uint32)
  position = jnp.full(bits.shape, start, jnp.uint32)
  stride = 1
  for axis in reversed(range(bits.ndim)):
    index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    position += index * jnp.uint32(stride % 2**32)
    stride *= bits.shape[axis]
  mixed = position * jnp.uint32(2654435761)
  mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(2246822519)
  first = jnp.sum(bits * (mixed | 1), dtype=jnp.uint32)
  mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(3266489917)
  second = jnp.sum(bits * (mixed | 1), dtype=jnp.uint32)
  return jnp.stack([first, second])


def hash_batch(batch: dict):
  """Returns a uint32 hash of the ids of a global batch.

  It depends on their order. A sum of integers modulo 2^32 over all positions,
  so it is the same for any sharding of the batch.
  """
  total = jnp.uint32(0)
  for name in ("tokens", "targets", "sources"):
    if name not in batch:
      continue
    ids_BT = batch[name]
    if jnp.issubdtype(ids_BT.dtype, jnp.floating):
      ids_BT = jax.lax.bitcast_convert_type(ids_BT, jnp.uint32)
    ids_BT = ids_BT.astype(jnp.uint32)
    index_BT = jnp.arange(ids_BT.size, dtype=jnp.uint32).reshape(ids_BT.shape)
    # MurmurHash3's finalizer, applied to the index and then to both.
    total = 31 * total + _mix(ids_BT ^ _mix(index_BT + 1)).sum(dtype=jnp.uint32)
  return total


def _mix(x):
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
