"""Names, counts, differences, keys and checksums of trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import tree

TREE = {"b": {"x": jnp.ones((2, 3))}, "a": [jnp.zeros(4, jnp.int32)]}


def test_leaves_are_named_by_their_path():
  assert list(tree.flatten_with_names(TREE)) == ["a/0", "b/x"]
  named = tree.map_with_names(lambda name, leaf: name, TREE)
  assert named == {"b": {"x": "b/x"}, "a": ["a/0"]}


def test_elements_and_bytes_are_counted_without_arrays():
  abstract = jax.eval_shape(lambda: TREE)
  assert tree.count_elements(abstract) == 10
  assert tree.count_bytes(abstract) == 40


def test_a_difference_names_the_leaf_and_both_sides():
  there = tree.describe_shapes(TREE)
  here = {"b/x": "float32[2,4]", "c": "int32[]"}
  assert tree.diff_shapes(there, here) == [
    "a/0 is int32[4] there and absent here",
    "b/x is float32[2,3] there and float32[2,4] here",
    "c is absent there and int32[] here",
  ]
  assert tree.diff_shapes(there, there) == []


def test_a_key_depends_on_the_name_alone():
  key = jax.random.key(0)
  data = lambda name: jax.random.key_data(tree.key_for(key, name)).tolist()
  assert data("blocks/attn/q") == data("blocks/attn/q")
  assert data("blocks/attn/q") != data("blocks/attn/k")
  assert data("embed/tokens") == [3486657901, 414922896]


@pytest.mark.parametrize(
  "dtype", ["float32", "bfloat16", "int32", "uint8", "bool", "float64"]
)
def test_a_checksum_sees_every_bit_of_every_dtype(dtype):
  rng = np.random.default_rng(0)
  with jax.enable_x64(dtype == "float64"):
    x = jnp.asarray(rng.integers(0, 2, (3, 5, 7)), dtype)
    base = np.asarray(tree.checksum([x]))
    raw = np.array(x)
    view = raw.view(np.uint8).reshape(-1)
    for at in rng.integers(0, view.size, 20):
      view[at] ^= 1
      assert (np.asarray(tree.checksum([jnp.asarray(raw)])) != base).any()
      view[at] ^= 1
    assert (np.asarray(tree.checksum([jnp.asarray(raw)])) == base).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool"])
def test_a_checksum_in_blocks_is_the_same(dtype):
  draw = np.random.default_rng(0).integers(0, 100, (12, 3, 5))
  x = jnp.asarray(draw % 2 if dtype == "bool" else draw, dtype)
  whole = np.asarray(tree.checksum([x]))
  add = lambda x, blocks: sum(
    np.asarray(tree.checksum([x], i, blocks)) for i in range(blocks)
  )
  for blocks in (2, 4, 12):
    np.testing.assert_array_equal(add(x, blocks), whole)
  swapped = x.at[0].set(x[11]).at[11].set(x[0])
  assert (add(swapped, 4) != whole).any()


def test_a_checksum_sees_two_elements_swapped():
  x = jnp.arange(100.0)
  y = x.at[3].set(x[77]).at[77].set(x[3])
  assert (tree.checksum([x]) != tree.checksum([y])).any()
