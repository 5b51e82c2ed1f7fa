"""A stored step is the traced one; a damaged or stale one is never used."""

import dataclasses
import os

import jax
import numpy as np
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.training import build, traced


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  return tmp_path / "gpt_jax" / "steps"


def assembled(**train) -> build.Assembly:
  config = base.get_config()
  with config.unlocked():
    config.model.update(
      num_layers=1, num_heads=2, model_dim=16, mlp_dim=32, max_len=8
    )
    config.model.vocab_size, config.data.seq_len = 50, 8
    config.optim.update(warmup_steps=0, schedule="constant")
    config.train.update(num_steps=20, global_batch_size=2, **train)
    config.mesh.fsdp = 1
  return build.assemble(config_lib.freeze(config), jax.devices()[:1])


def bits_of(run: build.Assembly, step) -> list[bytes]:
  """Returns the bits of three losses, and of all arrays after them."""
  now, seen, random = run.init_state(), [], np.random.default_rng(0)
  for _ in range(3):
    ids = random.integers(0, 50, (2, 9)).astype(np.int32)
    batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:]}
    batch["mask"] = np.ones((2, 8), np.float32)
    now, result = step(now, jax.device_put(batch, run.batch_place))
    seen += [np.asarray(x).tobytes() for x in jax.tree.leaves(result)]
  return seen + [np.asarray(x).tobytes() for x in jax.tree.leaves(now)]


@pytest.fixture
def no_trace(monkeypatch):
  def fail(self):
    def step(state, batch):
      raise AssertionError("traced")

    return step

  monkeypatch.setattr(build.Assembly, "make_step", fail)


def test_a_stored_step_has_the_bits_of_a_traced_one(cache, monkeypatch):
  run = assembled(spike_factor=2.0)
  traced_one, stored_now = run.lower_step().compile(), run.compile_step()[0]
  (file,) = cache.iterdir()
  monkeypatch.setattr(traced, "_write", None)  # what is read is not written
  stored = run.compile_step()[0]
  assert file.exists()
  whole = bits_of(run, traced_one)
  assert bits_of(run, stored_now) == whole and bits_of(run, stored) == whole
  memory = lambda step: step.memory_analysis().alias_size_in_bytes
  assert memory(stored) == memory(traced_one) > 0  # the state is donated


def test_a_stored_step_is_not_traced_again(cache, request):
  assembled().compile_step()
  request.getfixturevalue("no_trace")
  assembled().compile_step()
  with pytest.raises(AssertionError, match="traced"):
    assembled(log_every_steps=7).compile_step()


def test_a_second_start_asks_for_the_program_of_the_first(cache, monkeypatch):
  lower, texts = traced.lower, []

  def record(*args):
    lowered = lower(*args)
    texts.append(lowered.as_text())
    return lowered

  monkeypatch.setattr(traced, "lower", record)
  assembled().compile_step()
  assert len(list(cache.iterdir())) == 1
  assembled().compile_step()
  first, second = texts
  assert first == second


DAMAGES = {
  "a flipped bit": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
  "cut": lambda data: data[: len(data) // 2],
  "empty": lambda data: b"",
  "another file": lambda data: b"hello\n",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_replaced(cache, name):
  run = assembled()
  run.compile_step()
  (file,) = cache.iterdir()
  file.write_bytes(DAMAGES[name](file.read_bytes()))
  run.compile_step()
  seal, _, rest = file.read_bytes().partition(b"\n")
  assert seal == traced.digest.of_bytes(rest).encode() and b"metrics" in rest


def test_what_no_seal_can_tell_is_traced_anew(cache):
  run = assembled()
  run.compile_step()
  (file,) = cache.iterdir()
  rest = b'{"metrics": {}, "arguments": [0]}\nnot a module'
  file.write_bytes(traced.digest.of_bytes(rest).encode() + b"\n" + rest)
  run.compile_step()
  assert not file.exists()


def test_a_pipe_or_a_closed_folder_fails_no_run(cache, monkeypatch):
  run = assembled()
  run.compile_step()
  (file,) = cache.iterdir()
  file.unlink()
  os.mkfifo(file)
  run.compile_step()
  assert file.is_file()
  monkeypatch.setenv("XDG_CACHE_HOME", str(file))  # no folder
  run.compile_step()


def test_the_name_of_a_file_follows_from_all_that_decides_a_step(monkeypatch):
  run = assembled()
  name = lambda: traced.path_of(run.config, run.mesh)
  first = name()
  assert name() == first
  other = dataclasses.replace(run.config, seed=run.config.seed + 1)
  names = {first, traced.path_of(other, run.mesh)}
  for change in (
    lambda patch: patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true"),
    lambda patch: patch.setattr(traced.meeting, "PACKAGES", ("jax",)),
    lambda patch: patch.setattr(traced.meeting, "own_facts", lambda: {"a": 1}),
    lambda patch: patch.setattr(traced.runtime.os, "cpu_count", lambda: 999),
  ):
    with monkeypatch.context() as patch:
      change(patch)
      names.add(name())
  with jax.numpy_dtype_promotion("strict"):
    names.add(name())
  assert len(names) == 7
  assert name() == first


def test_only_the_newest_files_stay(cache, monkeypatch):
  monkeypatch.setattr(traced, "MOST", 2)
  cache.mkdir(parents=True)
  for index in range(4):
    (cache / f"{index}").write_bytes(b"old")
    os.utime(cache / f"{index}", (index, index))
  assembled().compile_step()
  left = {path.name for path in cache.iterdir()}
  assert len(left) == 2 and "3" in left


def test_steps_of_several_devices_are_not_stored():
  config = assembled().config
  mesh = dataclasses.replace(config.mesh, fsdp=2)
  assert not traced.is_served(sharding.make_mesh(mesh, jax.devices()[:2]))
