"""What is damaged or of another kind is passed over, or refused by name."""

import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from states import (
  ROWS,
  WIDE,
  abstract_of,
  assert_same,
  change_meta,
  flip_bit,
  keeper_of,
  make_state,
  save,
  truncate_data,
)

from gpt_jax.config import InputError
from gpt_jax.machine import signals
from gpt_jax.runs import checkpoint, restore, storage

# Python prints these.
pytestmark = [
  pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
  pytest.mark.usefixtures("quiet"),
]


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


@pytest.mark.parametrize("most", [1, 1 << 24])
def test_leaves_are_read_in_groups_whose_memory_is_given_back(
  folder, most, monkeypatch
):
  state, given = make_state(2, width=WIDE), []
  save(folder, 10, state=state)
  read, back = storage.read_arrays, restore.runtime.give_back_memory
  sizes: list[list[int]] = []

  def spy(directory, step, flat):
    assert len(given) == len(sizes)
    sizes.append([leaf.size * leaf.dtype.itemsize for leaf in flat.values()])
    return read(directory, step, flat)

  monkeypatch.setattr(storage, "MAX_GROUP", most)
  monkeypatch.setattr(storage, "read_arrays", spy)
  monkeypatch.setattr(
    restore.runtime, "give_back_memory", lambda: given.append(back())
  )
  found = keeper_of(folder).restore(abstract_of(state))[0]
  assert_same(found, state)
  count = sum(map(len, sizes))
  assert count > 3 and len(sizes) == (count if most == 1 else 1)
  assert all(len(group) == 1 or sum(group) <= most for group in sizes)
  flat = [size for group in sizes for size in group]
  assert flat == sorted(flat, reverse=True) and flat[0] > flat[-1]


def test_a_leaf_is_converted_before_the_next_is_read(folder, monkeypatch):
  state, seen = make_state(2, width=WIDE), []
  save(folder, 10, state=state)
  monkeypatch.setattr(storage, "MAX_GROUP", 1)
  read = storage.read_arrays

  def spy(directory, step, flat):
    seen.append(f"read {[*flat]}")
    return read(directory, step, flat)

  def convert(name, leaf):
    seen.append(f"read ['params/{name}'] made")
    return {"twice": 2 * leaf}

  monkeypatch.setattr(storage, "read_arrays", spy)
  workdir, abstract = os.path.dirname(folder), abstract_of(state).params
  found = restore.restore_params(workdir, abstract, convert=convert)
  twice = jax.tree.map(lambda leaf: {"twice": 2 * leaf}, state.params)
  assert_same(found, twice)
  assert len(seen) == 6
  assert seen[1::2] == [f"{word} made" for word in seen[::2]]


@pytest.mark.parametrize("spec", [ROWS, P(None, "data")])
def test_no_more_is_read_at_once_than_the_largest_leaf(
  folder, spec, monkeypatch
):
  from orbax.checkpoint._src.serialization import limits

  class Spy(limits.LimitInFlightBytes):
    async def wait_for_bytes(self, requested_bytes):
      await super().wait_for_bytes(requested_bytes)
      held.append(self.max_bytes - self._available_bytes)

  state = make_state(2, width=WIDE)
  save(folder, 10, state=state)
  held: list[int] = []
  monkeypatch.setattr(storage, "MIN_READ", 1)
  monkeypatch.setattr(limits, "LimitInFlightBytes", Spy)
  abstract = abstract_of(make_state(2, width=WIDE, spec=spec))
  found = keeper_of(folder).restore(abstract)[0]
  assert_same(found, state)
  largest = state.params["mlp"]["in"].nbytes
  assert 0 < max(held) < largest + 1001  # six of them are in the state


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


@pytest.mark.battery
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


@pytest.mark.parametrize("is_interrupted", [True, False])
def test_an_interrupted_read_is_no_damage(folder, is_interrupted, monkeypatch):
  """TensorStore turns a KeyboardInterrupt in a callback into its own error."""
  save(folder, 10, 20)
  abstract = abstract_of(make_state())

  def read(*args):
    monkeypatch.setattr(signals, "_is_interrupted", is_interrupted)
    raise ValueError("Encountered error while reading array index")

  monkeypatch.setattr(storage, "_state_handler", read)
  lines = []
  expected = KeyboardInterrupt if is_interrupted else InputError
  with pytest.raises(expected):
    keeper_of(folder, lines.append).restore(abstract)
  assert bool(lines) != is_interrupted


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
