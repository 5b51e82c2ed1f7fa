"""Growth along one axis, and memory in parts and without."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from workload import DOOR, SMALL, load

from gpt_jax import config, sharding
from gpt_jax.lab.bench import growth, memory
from gpt_jax.lab.bench import train as train_subject


def test_only_one_axis_grows_at_a_time():
  base = load("growth", model__max_len="32")
  for axis in growth.AXES:
    value, grown = growth.grow(base, axis, 2)
    old, new = config.flatten(base), config.flatten(grown)
    changed = {key for key in old if old[key] != new[key]}
    wanted = {
      "width": {"model.model_dim", "model.num_heads", "model.mlp_dim"},
      "layers": {"model.num_layers"},
      "length": {"data.seq_len", "model.max_len"},
      "batch": {"train.global_batch_size"},
      "vocabulary": {"model.vocab_size"},
    }[axis]
    assert changed == wanted
    assert value in [new[key] for key in wanted]
  assert growth.grow(base, "batch", 1)[1] == base
  work, _ = growth.predict(base, "cpu")
  double, _ = growth.predict(growth.grow(base, "batch", 2)[1], "cpu")
  longer, _ = growth.predict(growth.grow(base, "length", 2)[1], "cpu")
  assert double == 2 * work < longer  # attention grows with the square


@pytest.mark.slow
def test_growth_is_measured_and_drawn_beside_the_ledger(
  tmp_path, call_verb, monkeypatch
):
  monkeypatch.setitem(growth.AXES, "batch", (1, 8))
  small = SMALL | {"train.global_batch_size": "8"}
  flags = [f"--config.{key}={value}" for key, value in small.items()]
  result = call_verb(
    "lab.bench.growth",
    *flags,
    "--axes=batch",
    "--repeats=2",
    f"--out={tmp_path}",
  )
  assert result.returncode == 0, result.stderr
  found = json.loads((tmp_path / "growth.json").read_text())
  first, last = found["points"]
  assert last["flops"] == 8 * first["flops"]
  assert last["temporary_bytes"] > first["temporary_bytes"]
  svg = (tmp_path / "growth-batch.svg").read_text()
  assert svg.count("<polyline") == 4 and "time, ledger" in svg
  result = call_verb("lab.bench.growth", "--axes=depth")
  assert result.returncode == 2 and "did you mean width" in result.stderr


def test_a_vocabulary_that_only_text_would_tell_is_refused():
  train_subject.check_vocab(load())
  with pytest.raises(config.InputError, match="set --config.model.vocab_size"):
    train_subject.check_vocab(load(model__vocab_size="None"))


LONG = dict(
  model__vocab_size="2048",
  model__max_len="2048",
  data__seq_len="2048",
  train__global_batch_size="1",
)


@pytest.mark.parametrize("name", ["attention", "loss"])
def test_in_parts_is_the_same_in_less_memory(name):
  frozen = load("long", **LONG)
  make = getattr(memory, f"make_{name}")
  mesh = sharding.make_mesh(
    dataclasses.replace(frozen.mesh, data=1), jax.devices()[:1]
  )
  naive, parts = (
    memory.compile_piece(*make(frozen, "cpu", is_naive), mesh)
    for is_naive in (True, False)
  )
  largest = {"attention": 4 * 4 * 2048**2, "loss": 4 * 2048 * 2048}[name]
  size = lambda one: one.memory_analysis().temp_size_in_bytes
  assert size(naive) >= largest
  assert size(naive) > 3 * size(parts)
  rng = np.random.default_rng(0)
  arrays = []
  for a in naive.in_avals[0]:
    values = rng.normal(size=a.shape)
    arrays.append(
      jnp.asarray(np.abs(values) if a.dtype.kind == "i" else values, a.dtype)
    )
  pairs = zip(
    *(jax.tree.leaves(f(*arrays)) for f in (naive, parts)), strict=True
  )
  for a, b in pairs:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_memory_in_parts_is_measured_and_told(tmp_path, run_verb):
  keys = SMALL | {k.replace("__", "."): v for k, v in LONG.items()}
  flags = [f"--config.{key}={value}" for key, value in keys.items()]
  told = run_verb(
    f"gpt_jax.{DOOR}",
    "memory",
    "--config=configs/bench.py:long",
    *flags,
    "--repeats=1",
    f"--out={tmp_path}",
    check=0,
  )
  assert "cross-entropy, temporaries" in told.stdout
  rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
  found = {row["name"]: row["ratio"] for row in rows}
  assert found["attention, temporaries"] < 0.5


def test_memory_without_parts_is_refused(call_verb):
  result = call_verb(DOOR, "memory", "--config=configs/bench.py:gpt2")
  assert result.returncode == 2
  assert "train.num_loss_chunks is 1" in result.stderr
