"""What is saved comes back, or a sentence says why not; on real disks."""

import dataclasses
import gc
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gpt_jax import tree
from gpt_jax.config import CheckpointConfig, InputError
from gpt_jax.runs import checkpoint, integrity, restore, storage

ROOT = pathlib.Path(__file__).parents[2]
SECTION = CheckpointConfig(
  every_steps=10, keep_last=2, keep_every_steps=None, resume="auto"
)


# Python prints these.
pytestmark = pytest.mark.filterwarnings(
  "error::pytest.PytestUnraisableExceptionWarning"
)


class State(struct.PyTreeNode):
  step: jax.Array
  params: dict
  opt_state: tuple


@pytest.fixture(autouse=True)
def quiet(capfd, caplog):
  """Orbax, which logs what it raises too, never reaches the terminal."""
  yield
  out, err = capfd.readouterr()
  assert (out, err) == ("", "") and not caplog.get_records("call")


@pytest.fixture
def folder(tmp_path):
  return str(tmp_path / "run" / "checkpoints")


def make_mesh(*shape: int) -> Mesh:
  devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
  names = ("data", "fsdp")[: len(shape)]
  return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(shape))


ROWS = P("data")
# Rows so wide that a shard is a value of its own in the data file.
WIDE = 2000


def make_state(value=1.0, mesh=None, spec=ROWS, width=24, dtype="float32"):
  """Returns a state whose leaves differ, placed by `spec` where 2-D."""
  mesh = mesh or make_mesh(8)
  place = lambda x: jax.device_put(
    x, NamedSharding(mesh, spec if x.ndim == 2 else P())
  )
  w = value * (1 + jnp.arange(16 * width, dtype=dtype).reshape(16, width))
  params = {"mlp": {"in": w, "out": w * 3}, "norm": jnp.ones(5, dtype) * value}
  return jax.tree.map(
    place, State(jnp.int32(value), params, optax.adam(0.1).init(params))
  )


def abstract_of(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


def keeper_of(folder, say=print, **changes):
  section = dataclasses.replace(SECTION, **changes)
  return checkpoint.Checkpointer(folder, section, {"who": "a test"}, say)


def save(folder, *steps, state=None, **changes):
  """Saves step N with values N, or `state` under every step."""
  keeper = keeper_of(folder, **changes)
  for step in steps:
    keeper.save(step, make_state(step) if state is None else state, force=True)
  keeper.close()


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def flip_bit(folder, step, values):
  """Flips a bit in the stored bytes of one row of values; returns undo."""
  needle = np.asarray(values).tobytes()
  (path, at), *rest = [
    (path, path.read_bytes().index(needle))
    for path in pathlib.Path(folder, str(step)).rglob("*")
    if path.is_file() and needle in path.read_bytes()
  ]
  before = path.read_bytes()
  assert not rest and before.count(needle) == 1
  after = bytearray(before)
  after[at + len(needle) // 2] ^= 1
  path.write_bytes(bytes(after))
  return lambda: path.write_bytes(before)


# What goes well


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


# What is damaged


def test_a_flipped_bit_is_found_though_orbax_does_not(folder):
  import orbax.checkpoint as ocp

  state = make_state(2, width=WIDE)
  save(folder, 10, state=state)
  abstract = abstract_of(state)
  undo = flip_bit(folder, 10, state.params["mlp"]["out"][3])
  item = {"params": {"mlp": {"out": abstract.params["mlp"]["out"]}}}
  silent = ocp.PyTreeCheckpointHandler().restore(
    pathlib.Path(folder, "10", "state"),
    args=ocp.args.PyTreeRestore(
      item,
      ocp.checkpoint_utils.construct_restore_args(item),
      partial_restore=True,
    ),
  )
  wrong = np.asarray(silent["params"]["mlp"]["out"])
  assert (wrong != np.asarray(state.params["mlp"]["out"])).sum() == 1
  with pytest.raises(InputError, match="checksum of params/mlp/out does not"):
    keeper_of(folder).restore(abstract)
  undo()
  assert_same(keeper_of(folder).restore(abstract)[0], state)


def truncate_data(step):
  for path in step.glob("state/**/d/*"):
    os.truncate(path, path.stat().st_size // 2)


def change_meta(step):
  path = step / "meta" / "metadata"
  path.write_text(path.read_text().replace("float32[5]", "float32[7]"))


def replace(path, make):
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink()
  make(path)


def link_to(target):
  return lambda path: path.symlink_to(target)


DAMAGES = {
  "arrays truncated": (truncate_data, "its arrays are unreadable"),
  "arrays removed": (
    lambda s: shutil.rmtree(s / "state"),
    "its arrays are unreadable",
  ),
  "manifest removed": (
    lambda s: (s / "state" / "manifest.ocdbt").unlink(),
    "its arrays are unreadable",
  ),
  "tree truncated": (
    lambda s: os.truncate(s / "state" / "_METADATA", 99),
    "its arrays are unreadable",
  ),
  "meta removed": (
    lambda s: (s / "meta" / "metadata").unlink(),
    "meta/metadata does not exist",
  ),
  "meta truncated": (
    lambda s: os.truncate(s / "meta" / "metadata", 60),
    "meta/metadata is not JSON: ",
  ),
  "meta changed": (change_meta, "meta/metadata does not match its own digest"),
  "meta nested deep": (
    lambda s: (s / "meta" / "metadata").write_text("[" * 200_000),
    "meta/metadata is nested too deep",
  ),
  "meta a pipe": (
    lambda s: replace(s / "meta" / "metadata", os.mkfifo),
    "meta/metadata is a named pipe, not a regular file",
  ),
  "meta endless": (
    lambda s: replace(s / "meta" / "metadata", link_to("/dev/zero")),
    "meta/metadata is a link that leads outside of the step",
  ),
  "index a pipe": (
    lambda s: replace(s / "state" / "manifest.ocdbt", os.mkfifo),
    "state/manifest.ocdbt is a named pipe, not a regular file",
  ),
  "tree a pipe": (
    lambda s: replace(s / "state" / "_METADATA", os.mkfifo),
    "state/_METADATA is a named pipe, not a regular file",
  ),
  "data a device": (
    lambda s: [replace(p, link_to("/dev/full")) for p in s.glob("state/d/*")],
    "is a link that leads outside of the step",
  ),
  "arrays of another folder": (
    lambda s: replace(s / "state", link_to(s.parent / "10" / "state")),
    "state is a link that leads outside of the step",
  ),
  "a link to nowhere": (
    lambda s: replace(s / "state" / "_METADATA", link_to(s / "no")),
    "state/_METADATA cannot be read: No such file",
  ),
  "tree too large": (
    lambda s: os.truncate(s / "state" / "_METADATA", 1 << 40),
    "state/_METADATA is larger than",
  ),
  "all removed": (
    lambda s: [
      shutil.rmtree(p) if p.is_dir() else p.unlink() for p in s.iterdir()
    ],
    "meta/metadata does not exist",
  ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_gives_way_to_the_older_one_with_a_line(folder, damage):
  break_step, clause = DAMAGES[damage]
  save(folder, 10, 20)
  abstract = abstract_of(make_state())
  lines = []
  keeper = keeper_of(folder, lines.append)
  assert keeper.restore(abstract)[1]["step"] == 20 and not lines
  break_step(pathlib.Path(folder, "20"))
  found, meta = keeper.restore(abstract)
  assert meta["step"] == 10
  assert_same(found, make_state(10))
  (line,) = lines
  assert line.startswith(f"step 20 in {folder} cannot be read: ")
  assert clause in line
  assert line.endswith("; trying step 10")
  with pytest.raises(InputError, match="no checkpoint can be read: step 20"):
    keeper.restore(abstract, step=20)
  assert checkpoint.choose_resume(folder, "auto") == "restore"


def test_a_run_whose_every_step_is_damaged_is_not_started_afresh(folder):
  save(folder, 10, 20)
  for step in (10, 20):
    truncate_data(pathlib.Path(folder, str(step)))
  assert checkpoint.choose_resume(folder, "auto") == "restore"
  lines = []
  with pytest.raises(InputError) as caught:
    keeper_of(folder, lines.append).restore(abstract_of(make_state()))
  text = str(caught.value)
  assert "step 20 in" in text and "step 10 in" in text and folder in text
  assert "give another workdir, or move that folder away" in text
  assert len(lines) == 1 and "\n" not in text


def test_going_on_from_an_older_step_sets_the_damaged_one_aside(folder):
  save(folder, 10, 20)
  truncate_data(pathlib.Path(folder, "20"))
  keeper = keeper_of(folder, [].append, keep_last=1)
  state, _ = keeper.restore(abstract_of(make_state()))
  assert keeper.steps() == [10, 20]
  keeper.save(15, state, force=True)
  keeper.wait()
  # Had 20 been left in place, keeping one would have deleted 15.
  assert keeper.steps() == [15]
  assert sorted(os.listdir(folder)) == ["15", "20.aside"]
  assert keeper_of(folder).restore(abstract_of(state))[1]["step"] == 15
  keeper.save(20, state, force=True)
  keeper.close()
  assert sorted(os.listdir(folder)) == ["20", "20.aside"]


# What is of another kind


@pytest.mark.parametrize(
  "other, clause",
  [
    (
      dict(width=32),
      "params/mlp/in is float32[16,24] there and float32[16,32] here",
    ),
    (
      dict(dtype="bfloat16"),
      "params/mlp/in is float32[16,24] there and bfloat16[16,24] here",
    ),
  ],
)
def test_another_model_is_refused_by_its_leaves(folder, other, clause):
  save(folder, 10, 20)
  lines = []
  abstract = abstract_of(make_state(**other))
  with pytest.raises(InputError) as caught:
    keeper_of(folder, lines.append).restore(abstract)
  text = str(caught.value)
  assert text.startswith(f"step 20 in {folder} is of another model: ")
  assert text.count(" there and ") == 3 and " more" in text
  with pytest.raises(InputError) as caught:
    restore.restore_params(os.path.dirname(folder), abstract.params)
  assert clause in str(caught.value)
  assert lines == []  # not damage: no older step is tried


def test_another_tree_is_refused_by_its_leaves(folder):
  state = make_state()
  save(folder, 10, state=state)
  params = {k: v for k, v in state.params.items() if k != "norm"}
  params["bias"] = state.params["norm"]
  clause = "params/norm is float32[5] there and absent here"
  with pytest.raises(InputError, match="of another model") as caught:
    keeper_of(folder).restore(abstract_of(state.replace(params=params)))
  assert clause in str(caught.value)
  assert "params/bias is absent there" in str(caught.value)


# Whether to go on


def test_resume_decides_by_what_is_on_disk(folder):
  choose = lambda word: checkpoint.choose_resume(folder, word)

  def nothing():
    assert choose("auto") == choose("never") == "fresh"
    with pytest.raises(InputError, match="is must and .* holds no checkpoint"):
      choose("must")
    with pytest.raises(InputError, match="holds no checkpoint"):
      keeper_of(folder).restore(abstract_of(make_state()))

  nothing()
  os.makedirs(folder)
  nothing()
  os.makedirs(os.path.join(folder, "10.orbax-checkpoint-tmp", "state"))
  nothing()
  save(folder, 10)
  assert choose("auto") == choose("must") == "restore"
  with pytest.raises(InputError, match="give another workdir, or remove"):
    choose("never")


def test_a_file_in_place_of_the_folder_is_a_sentence(folder):
  os.makedirs(os.path.dirname(folder))
  pathlib.Path(folder).write_text("")
  with pytest.raises(InputError, match="cannot be read as a folder"):
    checkpoint.choose_resume(folder, "auto")


def test_a_workdir_without_checkpoints_is_a_sentence(tmp_path):
  abstract = abstract_of(make_state().params)
  for workdir, clause in [
    (tmp_path, "holds no checkpoint"),
    (tmp_path / "no", "does not exist"),
  ]:
    with pytest.raises(InputError, match=clause):
      restore.restore_params(str(workdir), abstract)


def test_a_damaged_record_is_a_sentence(folder):
  save(folder, 10)
  change_meta(pathlib.Path(folder, "10"))
  abstract = abstract_of(make_state().params)
  with pytest.raises(InputError, match="step 10 in .* its own digest"):
    restore.restore_params(os.path.dirname(folder), abstract)


def test_a_step_is_never_written_over(folder):
  save(folder, 10)
  with pytest.raises(InputError, match="already holds step 10"):
    save(folder, 10)
  assert_same(
    keeper_of(folder).restore(abstract_of(make_state()))[0], make_state(10)
  )


# What the machine does to it


@pytest.fixture
def small_disk(tmp_path):
  """A folder on a disk of 3 MB."""
  path = tmp_path / "disk"
  path.mkdir()
  mounted = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", path],
    capture_output=True,
    text=True,
  )
  if mounted.returncode:
    pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
  yield path
  subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_keeps_the_older_step_and_says_so(small_disk):
  folder = str(small_disk / "checkpoints")
  keeper = keeper_of(folder)
  keeper.save(10, make_state(10), force=True)
  keeper.wait()
  ballast = small_disk / "ballast"
  ballast.write_bytes(bytes(2_600_000))
  wide = make_state(width=4000)
  keeper.save(20, wide, force=True)
  with pytest.raises(InputError) as caught:
    keeper.wait()
  assert str(caught.value) == (
    f"the disk of {folder} is full: step 20 was not saved, step 10 is safe; "
    "make room and go on with the same command"
  )
  assert keeper.steps() == [10]
  abstract = abstract_of(make_state())
  assert_same(keeper.restore(abstract)[0], make_state(10))
  # The next save, which waits for this one, says so too.
  keeper.save(20, wide, force=True)
  with pytest.raises(InputError, match="step 20 was not saved"):
    keeper.save(30, wide, force=True)
  ballast.unlink()
  keeper.save(30, make_state(30), force=True)
  keeper.close()
  assert keeper.steps() == [10, 30]
  assert sorted(os.listdir(folder)) == ["10", "30"]


# Imports once and forks runs from there, each killed while it saves.
KILLED_RUNS = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from gpt_jax.machine import runtime
runtime.start()
import jax, jax.numpy as jnp
from gpt_jax.runs import checkpoint, storage, restore
from gpt_jax.config import CheckpointConfig

folder, num_kills = sys.argv[2], 5

def run():
  keeper = checkpoint.Checkpointer(folder, CheckpointConfig(1, 2, None, ""), {})
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  state = {"step": jnp.int32(0), "w": jnp.zeros(300_000)}
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state)
  if checkpoint.choose_resume(folder, "auto") == "restore":
    state, meta = keeper.restore(abstract)
    assert (state["w"] == state["step"]).all() and state["step"] == meta["step"]
    print("resumed", meta["step"], flush=True)
  while True:
    state = jax.tree.map(lambda x: x + 1, state)
    keeper.save(int(state["step"]), state)

print("orbax", int("orbax" in sys.modules))
storage.import_orbax()
print("orbax", int("orbax" in sys.modules), flush=True)
for kill in range(num_kills):
  before = set(os.listdir(folder)) if os.path.isdir(folder) else set()
  child = os.fork()
  if not child:
    try:
      run()
    finally:
      os._exit(1)
  deadline = time.time() + 60
  num_seen = 0
  while num_seen < 3 and time.time() < deadline:
    names = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    num_seen += any("tmp" in n for n in names - before)
    before |= names
    time.sleep(0.0005)
  time.sleep(0.01 * kill)
  os.kill(child, signal.SIGKILL)
  os.waitpid(child, 0)
  print("left", sum("tmp" in n for n in os.listdir(folder)), flush=True)
"""


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory):
  """(folder of checkpoints, [(word, number)] that the runs said)."""
  folder = str(tmp_path_factory.mktemp("killed") / "checkpoints")
  done = subprocess.run(
    [sys.executable, "-W", "ignore", "-c", KILLED_RUNS, ROOT, folder],
    capture_output=True,
    text=True,
    timeout=120,
    env={**os.environ, "XLA_FLAGS": ""},
  )
  assert done.returncode == 0 and not done.stderr, done.stderr
  lines = [line.split() for line in done.stdout.splitlines()]
  return folder, [(word, int(number)) for word, number in lines]


def test_runs_killed_while_saving_go_on_consistently(killed_runs):
  folder, said = killed_runs
  resumed = [n for word, n in said if word == "resumed"]
  assert len(resumed) == 4 and resumed == sorted(set(resumed))
  # The kills did fall into saves: some left an unfinished one behind.
  assert any(n for word, n in said if word == "left")
  place = NamedSharding(make_mesh(8), P())
  shape = lambda s, d: jax.ShapeDtypeStruct(s, d, sharding=place)
  abstract = {"step": shape((), "int32"), "w": shape((300_000,), "float32")}
  state, meta = keeper_of(folder).restore(abstract)
  assert meta["step"] == state["step"] > resumed[-1]
  assert (state["w"] == state["step"]).all()


def test_the_module_does_not_import_orbax_by_itself(killed_runs):
  _, said = killed_runs
  assert [n for word, n in said if word == "orbax"] == [0, 1]


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
