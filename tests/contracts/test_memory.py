"""What the compiled step of a sharded model never holds on one device.

Read from the compiler's own output: no array in it has the dims of all logits
of a device's tokens, or those of a whole parameter; and remat, chunks and
donation take the memory away that they are there to take away.
"""

import collections
import functools
import math
import re

import jax
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import sharding, tree
from gpt_jax.models import build_model
from gpt_jax.training import optim, state, step

pytestmark = pytest.mark.battery

# All dims differ, and no product of two is a third.
T, B, D, F, V, L = 48, 16, 64, 160, 768, 6
MESHES = {
  "fsdp 8": dict(fsdp=8),
  "fsdp 4 x tensor 2": dict(fsdp=4, tensor=2),
  "data 2 x fsdp 2 x seq 2": dict(data=2, fsdp=2, seq=2),
}


def make_config(mesh, chunks=4, tied=False, rules="standard", **model):
  config = base.get_config()
  config.model.update(
    num_layers=L,
    model_dim=D,
    num_heads=8,
    mlp_dim=F,
    max_len=T,
    vocab_size=V,
    norm="rmsnorm",
    position="rope",
    mlp="swiglu",
    tied_embeddings=tied,
    scan_layers=True,
    **dict(remat="full") | model,
  )
  config.data.seq_len = T
  config.train.update(global_batch_size=B, num_loss_chunks=chunks)
  config.mesh.update(dict.fromkeys(sharding.AXES, 1) | mesh, rules=rules)
  return config_lib.freeze(config)


@functools.cache
def compile_step(config):
  """Returns (abstract state, compiled step, mesh)."""
  mesh = sharding.make_mesh(config.mesh)
  model = build_model(config.model, config.mesh.rules)
  tx = optim.build_optimizer(config.optim, model.abstract_params()[1])
  schedule = optim.build_schedule(config.optim, config.train.num_steps)
  abstract = state.abstract_state(model, tx, config, mesh)
  compiled, _, _ = step.compile_step(
    step.make_train_step(model, tx, schedule, config),
    abstract,
    config,
    mesh,
    sharding.batch_sharding(mesh, config.mesh.rules),
  )
  return abstract, compiled, mesh


def dims_in(compiled) -> collections.Counter:
  """Returns how often arrays of these dims (sorted, without ones) occur."""
  found = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", compiled.as_text())
  return collections.Counter(bare(map(int, s.split(","))) for s in found)


def bare(shape) -> tuple[int, ...]:
  return tuple(sorted(n for n in shape if n > 1))


def whole_parameters(abstract, compiled, mesh) -> list[str]:
  """Returns the matrices that some array in the program is as large as.

  Of a table over vocabulary and width, also what is whole but for the tensor
  axis, which only splits the vocabulary.
  """
  dims, names = dims_in(compiled), []
  for name, leaf in tree.flatten_with_names(abstract.params).items():
    shapes = [leaf.shape]
    if leaf.shape[0] == V:
      shapes.append((V // mesh.shape["tensor"], D))
    if leaf.ndim > 1 and "norm" not in name:
      names += [name for s in shapes if dims[bare(s)]]
  return sorted(set(names))


def has_all_logits(compiled, mesh) -> bool:
  shards = {a: mesh.shape[a] for a in mesh.shape}
  rows = B // (shards["data"] * shards["fsdp"])
  local = rows, T // shards["seq"], V // shards["tensor"]
  flat = rows * T // shards["seq"], V // shards["tensor"]
  dims = dims_in(compiled)
  return bool(dims[bare(local)] or dims[bare(flat)])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", MESHES)
def test_no_device_holds_all_logits_or_a_whole_parameter(name, tied):
  config = make_config(MESHES[name], tied=tied)
  abstract, compiled, mesh = compile_step(config)
  assert not has_all_logits(compiled, mesh)
  assert whole_parameters(abstract, compiled, mesh) == []


def test_the_search_finds_what_it_looks_for():
  config = make_config(MESHES["fsdp 8"], chunks=1, rules="replicated")
  abstract, compiled, mesh = compile_step(config)
  assert has_all_logits(compiled, mesh)
  found = whole_parameters(abstract, compiled, mesh)
  assert {"embed/tokens", "unembed", "blocks/mlp/in"} <= set(found)


def test_the_state_is_donated():
  abstract, compiled, _ = compile_step(make_config(MESHES["fsdp 8"]))
  local = sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(abstract)
  )
  memory = compiled.memory_analysis()
  assert memory.alias_size_in_bytes >= local
  # What is not a scalar metric goes out where it came in.
  assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 1024


@pytest.mark.slow
def test_what_is_saved_by_name_lies_between_all_and_nothing():
  def temporary(remat):
    config = make_config({"fsdp": 8}, remat=remat)
    return compile_step(config)[1].memory_analysis().temp_size_in_bytes

  order = ["full", "save:attn", "save:qkv+attn", "save:qkv+attn+mlp", "none"]
  sizes = [temporary(remat) for remat in order]
  assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes), sizes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_dots_are_not_made_again(dtype):
  def dots(remat):
    config = make_config({"fsdp": 8}, remat=remat, compute_dtype=dtype)
    return compile_step(config)[1].as_text().count(" dot(")

  none = dots("none")
  assert dots("dots") == none
  if dtype == "float32":  # the control, of one type
    assert none < dots("full")


def test_moments_in_bfloat16_halve_them():
  def moment_bytes(dtype):
    config = base.get_config()
    config.optim.moment_dtype = dtype
    config.model.vocab_size = V
    config = config_lib.freeze(config)
    model = build_model(config.model)
    tx = optim.build_optimizer(config.optim, model.abstract_params()[1])
    shapes = jax.eval_shape(tx.init, model.abstract_params()[0])
    return tree.count_bytes(shapes)

  exact, half = moment_bytes("float32"), moment_bytes("bfloat16")
  assert exact // 2 <= half < exact // 2 + 64
