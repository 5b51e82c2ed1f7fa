"""What is saved comes back, or a sentence says why not."""

import dataclasses
import gc
import json
import logging
import os
import pathlib
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from states import (
  SECTION,
  WIDE,
  State,
  abstract_of,
  assert_same,
  flip_bit,
  keeper_of,
  make_mesh,
  make_state,
  save,
  truncate_data,
)

from gpt_jax import tree
from gpt_jax.config import InputError
from gpt_jax.runs import checkpoint, integrity, restore, storage

# Python prints these.
pytestmark = [
  pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
  pytest.mark.usefixtures("quiet"),
]


def test_a_saved_state_comes_back_with_its_facts(folder):
  state = make_state(3)
  save(folder, 20, state=state)
  found, meta = keeper_of(folder).restore(abstract_of(state))
  assert_same(found, state)
  assert isinstance(found, State)
  assert meta["step"] == 20 and meta["who"] == "a test"
  assert meta["shapes"] == tree.describe_shapes(state)
  rows = np.asarray(tree.checksum(state)).astype("<u4")
  assert meta["checksum"] == rows.tobytes().hex()
  assert integrity.read_meta(folder, 20) == meta
  with pytest.raises(AssertionError):
    assert_same(found, make_state(4))


def test_nothing_is_on_disk_before_the_first_save(folder):
  keeper = keeper_of(folder)
  assert keeper.steps() == [] and keeper.latest_step() is None
  keeper.save(7, make_state())  # not its turn
  keeper.close()
  assert not os.path.exists(os.path.dirname(folder))
  assert [s for s in range(31) if s and keeper.should_save(s)] == [10, 20, 30]


def test_the_state_may_be_donated_right_after_save(folder):
  overwrite = jax.jit(
    lambda s: jax.tree.map(lambda x: x * 0 - 7, s), donate_argnums=0
  )
  keeper = keeper_of(folder, keep_last=5)
  state = make_state(width=50_000)
  expected = {}
  for step in range(1, 4):
    state = jax.tree.map(lambda x, s=step: x + s, state)
    expected[step] = jax.tree.map(np.array, state)
    keeper.save(step, state, force=True)
    state = jax.block_until_ready(overwrite(state))
  keeper.close()
  for step, values in expected.items():
    found, _ = keeper_of(folder).restore(abstract_of(state), step)
    assert_same(found, values)
    jax.block_until_ready(overwrite(found))
  assert float(state.params["norm"][0]) == -7


@pytest.mark.parametrize("shape, spec", [((1,), P()), ((2, 4), P("fsdp"))])
def test_another_mesh_restores_the_same_values(folder, shape, spec):
  save(folder, 10)
  there, here = make_state(10), make_state(mesh=make_mesh(*shape), spec=spec)
  found, _ = keeper_of(folder).restore(abstract_of(here))
  assert_same(found, there)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(here), strict=True):
    assert a.sharding == b.sharding


def test_the_newest_and_the_multiples_are_kept(folder):
  save(folder, *range(1, 11), keep_last=2, keep_every_steps=4)
  assert keeper_of(folder).steps() == [4, 8, 9, 10]
  save(folder, 11, keep_last=1)
  assert keeper_of(folder).steps() == [11]


def test_parameters_alone_are_restored_into_another_run(folder):
  save(folder, 10, 20)
  mesh = make_mesh(2, 4)
  abstract = abstract_of(make_state(mesh=mesh).params)
  workdir = os.path.dirname(folder)
  found = restore.restore_params(workdir, abstract)
  assert_same(found, make_state(20).params)
  assert found["norm"].sharding.mesh == mesh


def test_the_mean_of_the_newest_steps_is_read(folder):
  save(folder, 10, 20, 60, keep_last=3)
  abstract = abstract_of(make_state(mesh=make_mesh(2, 4)).params)
  workdir = os.path.dirname(folder)
  read = lambda word: restore.restore_params(workdir, abstract, average=word)
  assert_same(read("last:2"), make_state(40).params)
  assert_same(read("last:3"), make_state(30).params)
  assert_same(read("last:1"), make_state(60).params)
  with pytest.raises(InputError, match="last:4 and .* holds 3 checkpoints"):
    read("last:4")
  with pytest.raises(InputError, match="holds no moving average; it needs"):
    read("ema")
  for word in ("last", "last:0", "mean:2", "ema:3", "last:" + "9" * 5000):
    with pytest.raises(InputError, match="it must be ema, or last:N"):
      read(word)


def test_parameters_are_verified_apart_from_the_optimizer_state(folder):
  state = make_state(width=WIDE)
  moment = jnp.arange(16.0 * WIDE).reshape(16, WIDE) + 0.25
  moment = jax.device_put(moment, state.params["mlp"]["in"].sharding)
  adam = state.opt_state[0]
  mu = {**adam.mu, "mlp": {**adam.mu["mlp"], "in": moment}}
  adam = adam._replace(mu=mu)
  state = state.replace(opt_state=(adam, *state.opt_state[1:]))
  save(folder, 10, state=state)
  abstract, workdir = abstract_of(state), os.path.dirname(folder)
  undo = flip_bit(folder, 10, moment[4])
  found = restore.restore_params(workdir, abstract.params)
  assert_same(found, state.params)
  with pytest.raises(InputError, match=r"checksum of opt_state/0/mu/mlp/in "):
    keeper_of(folder).restore(abstract)
  undo()
  flip_bit(folder, 10, state.params["mlp"]["out"][4])
  with pytest.raises(InputError, match=r"checksum of params/mlp/out does not"):
    restore.restore_params(workdir, abstract.params)


@pytest.mark.battery
@pytest.mark.parametrize(
  "name", ["lr[3e-4]", "a[b/x]y", "back\\slash", "a*b?c", "gs:", "x\udcff"]
)
def test_a_path_is_never_taken_for_a_pattern(tmp_path, name):
  folder = str(tmp_path / name / "checkpoints")
  other = tmp_path / "aXbYc" / "checkpoints"  # what a*b?c would match
  save(str(other), 10)
  save(folder, 10, 20, 30)
  found, _ = keeper_of(folder).restore(abstract_of(make_state()))
  assert_same(found, make_state(30))
  assert sorted(os.listdir(folder)) == ["20", "30"]
  save(folder, 40)  # another manager, as when the run goes on
  workdir = os.path.dirname(folder)
  params = abstract_of(make_state().params)
  assert_same(restore.restore_params(workdir, params), make_state(40).params)


def test_a_save_is_opened_before_an_older_step_is_deleted(folder, monkeypatch):
  keeper = keeper_of(folder, keep_last=1)
  keeper.save(10, make_state(10), force=True)
  keeper.wait()
  keeper.save(20, make_state(20), force=True)
  # As if the merge of what each process wrote had come to nothing.
  keeper._manager.wait_until_finished()
  os.remove(os.path.join(folder, "20", "state", "manifest.ocdbt"))
  with pytest.raises(InputError) as caught:
    keeper.save(30, make_state(30), force=True)
  assert str(caught.value).startswith(
    f"step 20 was saved in {folder} and cannot be read back: "
    "state/manifest.ocdbt does not exist; no older step was deleted"
  )
  assert keeper.steps() == [10, 20]
  # A leaf that the index lacks is seen as well.
  save(folder, 30, keep_last=5)
  leaves = storage.list_leaves(folder, 30)
  assert leaves == set(tree.describe_shapes(make_state()))
  monkeypatch.setattr(
    storage, "list_leaves", lambda *_: leaves - {"params/norm"}
  )
  with pytest.raises(InputError, match="its arrays lack params/norm; no older"):
    save(folder, 40, keep_last=1)
  assert keeper.steps() == [10, 20, 30, 40]


def test_the_newest_good_step_outlives_those_of_a_run_gone_bad(folder):
  bad = make_state(2)
  params = {**bad.params, "norm": bad.params["norm"].at[3].set(jnp.nan)}
  bad = bad.replace(params=params)
  save(folder, 10, 20, keep_last=1)
  save(folder, 30, 40, state=bad, keep_last=1)
  assert restore.list_steps(folder) == [20, 40]
  lines = []
  found, meta = keeper_of(folder, lines.append).restore(abstract_of(bad))
  assert meta["step"] == 20
  assert_same(found, make_state(20))
  (line,) = lines
  assert "step 40" in line and "params/norm is not finite" in line
  save(folder, 50, keep_last=1)
  assert restore.list_steps(folder) == [50]
  # Parameters that nobody has updated do not push out an older step either.
  skipping = {"w": jnp.ones(3), "skipped_in_row": jnp.int32(4)}
  save(folder, 60, 70, state=skipping, keep_last=1)
  assert restore.list_steps(folder) == [50, 70]
  is_good = {"w": jnp.ones(3), "skipped_in_row": jnp.int32(0)}
  save(folder, 80, state=is_good, keep_last=1)
  assert restore.list_steps(folder) == [80]


def test_averages_pass_over_what_cannot_be_read(folder):
  save(folder, 10, 20, 60, 70, keep_last=9)
  workdir = os.path.dirname(folder)
  params = abstract_of(make_state().params)
  (pathlib.Path(folder) / "70" / "meta" / "metadata").write_text("no")
  truncate_data(pathlib.Path(folder, "20"))
  lines = []
  read = lambda word: restore.restore_params(
    workdir, params, lines.append, word
  )
  assert_same(read("last:2"), make_state(35).params)
  assert [line.split(" in ")[0] for line in lines] == ["step 70", "step 20"]
  with pytest.raises(InputError, match="last:3 and only 2 of the checkpoints"):
    read("last:3")
  with pytest.raises(InputError, match="step 60 in .* no moving average"):
    read("ema")


def test_a_folder_with_a_number_beyond_counting_is_no_step(folder):
  save(folder, 10)
  for name in ("9" * 20, "9" * 200, str(2**31), "²"):
    os.makedirs(os.path.join(folder, name))
  assert restore.list_steps(folder) == [10]
  save(folder, 20, keep_last=1)
  assert restore.list_steps(folder) == [20]


def test_a_step_of_another_run_is_refused_by_name(folder):
  facts = dict.fromkeys(integrity.FACTS, "a" * 16)
  section = dataclasses.replace(SECTION)
  make = lambda **facts: checkpoint.Checkpointer(folder, section, facts)
  keeper = make(**facts)
  keeper.save(10, make_state(10), force=True)
  keeper.close()
  abstract = abstract_of(make_state())
  workdir = os.path.dirname(folder)
  for key, name in integrity.FACTS.items():
    others = facts | {key: "b" * 16}
    match = f"step 10 in .* is of another run: its {name} is aaaaaaaaaaaa and "
    with pytest.raises(InputError, match=match):
      make(**others).restore(abstract)
    with pytest.raises(InputError, match=match):
      restore.restore_params(workdir, abstract.params, facts=others)
  assert make(**facts).restore(abstract)[1]["step"] == 10
  # What an earlier version wrote says nothing of its run, and is read.
  save(folder, 20)
  assert make(**facts).restore(abstract)[1]["step"] == 20


@pytest.mark.wide
def test_saves_do_not_make_the_process_grow(folder):
  state = {f"w{i}": jnp.ones(3) for i in range(20)}
  keeper = keeper_of(folder, keep_last=1)

  def count_blocks(first: int) -> int:
    for step in range(first, first + 8):
      keeper.save(step, state, force=True)
    keeper.wait()
    gc.collect()
    return sys.getallocatedblocks()

  count_blocks(1)
  grown = count_blocks(9) - count_blocks(17)
  keeper.close()
  # 370 a save where nothing is done about it.
  assert abs(grown) < 8 * 60


@pytest.mark.parametrize(
  "error",
  [
    FileNotFoundError(2, "No such file or directory", "commit_success.txt"),
    ValueError("NOT_FOUND: Error opening 'zarr' driver\nmore"),
    RuntimeError("Timed out"),
  ],
)
def test_errors_of_orbax_are_sentences(folder, monkeypatch, error):
  def fail():
    raise error

  keeper = keeper_of(folder)
  keeper.save(10, make_state(10), force=True)
  keeper.wait()
  keeper.save(20, make_state(20), force=True)
  keeper._manager.wait_until_finished()
  shutil.rmtree(os.path.join(folder, "20"))
  monkeypatch.setattr(keeper._manager, "wait_until_finished", fail)
  with pytest.raises(InputError) as caught:
    keeper.wait()
  text = str(caught.value)
  assert "\n" not in text and "step 10 is safe; check the disk" in text
  assert text.startswith(f"step 20 could not be saved in {folder}: ")


def test_a_mistake_in_the_program_is_no_sentence_about_disks(folder):
  keeper = keeper_of(folder)
  keeper._saving = 10
  with pytest.raises(KeyError):
    keeper._fail(KeyError("x"))


def test_a_step_is_never_written_over(folder):
  save(folder, 10)
  with pytest.raises(InputError, match="already holds step 10"):
    save(folder, 10)
  assert_same(
    keeper_of(folder).restore(abstract_of(make_state()))[0], make_state(10)
  )


def test_only_orbax_is_kept_from_logging(folder, caplog):
  save(folder, 10)
  for name in ("absl", "asyncio"):
    logging.getLogger(name).error("not of a checkpoint")
  assert [r.name for r in caplog.records] == ["absl", "asyncio"]
  caplog.clear()


def test_the_record_is_plain_json(folder):
  save(folder, 10)
  path = pathlib.Path(folder, "10", "meta", "metadata")
  assert json.loads(path.read_text())["who"] == "a test"


def test_simulated_devices_sum_one_array_at_a_time(monkeypatch):
  waiting = []  # programs that were started and not waited for

  def compiled(self, leaf):
    def start(leaf, index):
      assert not waiting, "two programs are in flight"
      waiting.append(index)
      return types.SimpleNamespace(block_until_ready=waiting.clear)

    return start

  monkeypatch.setattr(integrity.Checksum, "_compile", compiled)
  monkeypatch.setattr(integrity.jax, "device_get", lambda rows: rows)
  monkeypatch.setattr(
    integrity.np, "concatenate", lambda rows: np.zeros((len(rows), 3))
  )
  mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
  place = jax.sharding.NamedSharding(mesh, P("data"))
  leaves = [jax.device_put(np.zeros(4), place) for _ in range(3)]
  sums, is_finite = integrity.Checksum()(leaves)
  assert len(sums) == len(is_finite) == 3 and not waiting
