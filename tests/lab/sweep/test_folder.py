"""What the folder of a sweep says of its cells."""

import json
import os
import pathlib
import shutil
import socket

import pytest
from sweeps import load, make_run

from gpt_jax import files
from gpt_jax.lab.scaling import points
from gpt_jax.lab.sweep import folder


def test_a_folder_says_how_its_cell_stands(write, tmp_path):
  lines = [f'add("{w}", seed={i})' for i, w in enumerate("abcdef")]
  a, b, c, d, e, f = load(write(*lines)).cells
  root = tmp_path / "root"
  word = lambda cell: folder.read(str(root), cell.id).word
  assert word(a) == folder.WAITING
  make_run(root, a)
  assert word(a) == folder.DONE
  make_run(root, b, is_done=False)
  path = folder.path_of(str(root), b.id)
  assert word(b) == folder.RUNNING  # of a cluster: its figures are fresh
  ended = {"code": 75, "is_stopped": True, "reason": "exit code 75"}
  folder.release(path, ended)
  assert word(b) == folder.STOPPED
  folder.release(path, {"code": 2, "is_stopped": False, "reason": "why"})
  assert word(b) == folder.FAILED
  assert folder.read(str(root), b.id).reason == "why"
  # The config file was changed between planning and running.
  make_run(root, c, **{"model.num_layers": 7})
  assert word(c) == folder.FAILED
  # A version that had other keys.
  make_run(root, d)
  record = pathlib.Path(folder.path_of(str(root), d.id), "config.json")
  other = json.loads(record.read_text().replace("model.norm_eps", "model.eps"))
  record.write_text(json.dumps(files.seal(other)))
  state = folder.read(str(root), d.id)
  assert state.word == folder.UNREADABLE and "model.eps" in state.reason
  # Held by a process that is gone, and by one on another machine.
  make_run(root, e, is_done=False)
  held = pathlib.Path(folder.path_of(str(root), e.id), "running.json")
  held.write_text(json.dumps({"pid": 2**22 + 1, "host": "elsewhere"}))
  assert word(e) == folder.RUNNING
  assert not folder.claim(str(root), e)
  os.utime(held, (1, 1))
  assert folder.claim(str(root), e)
  # Copied folders are that machine's results.
  other = tmp_path / "other"
  shutil.copytree(root / "cells", other / "cells")
  assert folder.read(str(other), a.id).word == folder.DONE
  assert set(folder.list_ids(str(other))) == {a.id, b.id, c.id, d.id, e.id}
  assert f.id not in folder.list_ids(str(other))


def test_a_disk_without_locks_is_told_and_used(
  write, tmp_path, monkeypatch, capsys
):
  def refuse(file, how):
    raise OSError(number, os.strerror(number))

  cell = load(write('add("a")')).cells[0]
  monkeypatch.setattr(folder.fcntl, "flock", refuse)
  for number in (37, 38, 95, 524):
    assert folder.claim(str(tmp_path / f"root-{number}"), cell)
    said = capsys.readouterr().err
    assert "without locks" in said and len(said.splitlines()) == 1


# What may stand in the place of a file that a sweep has written.
HOSTILE = [
  "[" * 100_000,
  "9" * 5_000,
  "[]",
  "7",
  "{",
  "\xff",
  '{"pid": NaN}',
  "{}",
]


@pytest.mark.parametrize("name", ["cell.json", "ended.json", "running.json"])
def test_damaged_files_of_a_cell_are_said_or_passed_over(
  name, write, call_verb, tmp_path
):
  path, root = write('add("a")', 'add("b", seed=1)'), tmp_path / "root"
  a, b = load(path).cells
  make_run(root, a)
  make_run(root, b)
  file = pathlib.Path(folder.path_of(str(root), b.id), name)
  whole = (
    b.record() if name == "cell.json" else {"code": 1, "is_stopped": False}
  )
  broken = [
    {**whole, key: [7]} for key in (*whole, "trunk", "seconds", "reason")
  ]
  for content in [*HOSTILE, *map(json.dumps, broken), "FIFO"]:
    if content == "FIFO":
      file.unlink()
      os.mkfifo(file)
    else:
      file.write_bytes(content.encode("latin-1"))
    for verb in ("list", "report"):
      result = call_verb("lab.sweep", verb, f"--workdir={root}")
      assert result.returncode == 0, (content[:40], result.stderr)
      assert "a" in result.stdout
    state = folder.read(str(root), b.id)
    assert state.word in (folder.DONE, folder.UNREADABLE, folder.FAILED)
    if name != "cell.json":
      assert state.word == folder.DONE


@pytest.mark.parametrize("pid", [10**20, 2**31, 0, -1, True, None, "7", 1.0])
def test_what_is_no_process_holds_no_cell(pid, write, tmp_path, monkeypatch):
  (cell,) = load(write('add("a")')).cells
  make_run(tmp_path, cell)
  path = pathlib.Path(folder.path_of(str(tmp_path), cell.id))
  held = {"pid": pid, "host": socket.gethostname()}
  (path / "running.json").write_text(json.dumps(held))
  assert folder.is_done(str(tmp_path), cell.id)
  # The control: a process that is there.
  monkeypatch.setattr(folder, "_is_alive", lambda pid: True)
  (path / "running.json").write_text(json.dumps(held | {"pid": os.getpid()}))
  assert folder.read(str(tmp_path), cell.id).word == folder.RUNNING


def test_finished_cells_feed_scaling_laws(write, tmp_path):
  a, b = load(write('add("a")', 'add("b", seed=1)')).cells
  make_run(tmp_path, a)
  waiting = pathlib.Path(folder.path_of(str(tmp_path), b.id))
  waiting.mkdir()
  (waiting / "cell.json").write_text(json.dumps(b.record()))
  found = points.read_workdirs(f"{tmp_path}/cells/*", None, "6N")
  assert len(found) == 1 and "has not begun" in found.left_out[0]
