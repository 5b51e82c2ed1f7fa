"""No row of metrics.jsonl is lost, and none is believed that is no row."""

import json
import os
import xml.etree.ElementTree

import pytest

from gpt_jax import metric_names
from gpt_jax.config import InputError
from gpt_jax.runs import goodput, metrics, plot, rows

BAD = {
  "comment": b'#"step": 3, "train/loss": 1.0}',
  "nul": b"\0" * 40,
  "number": b"7",
  "list": b"[]",
  "no step": b'{"train/loss": 1.0}',
  "null step": b'{"step": null}',
  "true step": b'{"step": true}',
  "text step": b'{"step": "3"}',
  "text loss": b'{"step": 3, "train/loss": "a"}',
  "infinite": b'{"step": 3, "train/loss": Infinity}',
  "too large": b'{"step": 3, "train/loss": 1e999}',
  "long": b'{"step": ' + 5000 * b"1" + b"}",
  "deep": 200_000 * b"[",
  "latin": b'{"step": 3, "a\xe9": 1}',
  "wide": b" " * (rows.MAX_LINE + 9) + b"7",
  "negative": b'{"step": -1}',
}


def write(path, *lines: bytes) -> str:
  path.write_bytes(b"".join(line + b"\n" for line in lines))
  return str(path)


def row(step: int, **more) -> bytes:
  return json.dumps({"step": step, "train/loss": step / 3} | more).encode()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_costs_no_other_row_and_is_set_aside(tmp_path, name):
  lines = [row(1), row(2), BAD[name], row(4), row(5)]
  path = write(tmp_path / "metrics.jsonl", *lines)
  before = (tmp_path / "metrics.jsonl").read_bytes()
  assert [r["step"] for r in rows.read_rows(path)] == [1, 2, 4, 5]
  said = []
  rows.rewind(path, 4, say=said.append)
  assert [r["step"] for r in rows.read_rows(path)] == [1, 2, 4]
  assert len(said) == 1 and "line 3" in said[0] and "damaged-1" in said[0]
  assert (tmp_path / "metrics.jsonl.damaged-1").read_bytes() == before
  # What is left is whole: nothing is said again, nothing else is written.
  rows.rewind(path, 4, say=said.append)
  assert len(said) == 1 and len(os.listdir(tmp_path)) == 2
  (tmp_path / "metrics.jsonl").write_bytes(before)
  rows.rewind(path, 4, say=said.append)
  assert (tmp_path / "metrics.jsonl.damaged-2").exists()


def test_only_the_last_line_may_be_torn(tmp_path):
  path = write(tmp_path / "metrics.jsonl", row(1), row(2), row(3))
  whole = (tmp_path / "metrics.jsonl").read_bytes()
  for cut in range(len(row(3)) + 1):
    (tmp_path / "metrics.jsonl").write_bytes(whole[: len(whole) - 1 - cut])
    rows.rewind(path, 3, say=pytest.fail)
    kept = [1, 2, 3] if cut == 0 else [1, 2]
    assert [r["step"] for r in rows.read_rows(path)] == kept
    left = b"".join(row(step) + b"\n" for step in kept)
    assert (tmp_path / "metrics.jsonl").read_bytes() == left
  assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_rows_that_are_gone_are_told(tmp_path):
  path, said = tmp_path / "metrics.jsonl", []
  rows.rewind(str(path), 0, say=pytest.fail)  # a new run
  rows.rewind(str(path), 9, say=said.append)
  write(path, row(6), row(7))
  rows.rewind(str(path), 9, say=said.append)
  assert "has no rows, but 9 steps are done" in said[0]
  assert "begins at step 6" in said[1]
  write(path, row(1), row(7))
  rows.rewind(str(path), 9, say=pytest.fail)


@pytest.mark.parametrize(
  "make, said",
  [
    (lambda p: p.symlink_to("none"), "leads nowhere"),
    (os.mkfifo, "named pipe"),
    (lambda p: p.symlink_to("/dev/zero"), "a device"),
    (lambda p: p.mkdir(), "a folder"),
  ],
  ids=["link", "pipe", "zero", "folder"],
)
def test_what_is_no_file_is_refused_and_left(tmp_path, make, said):
  make(tmp_path / "metrics.jsonl")
  with pytest.raises(InputError, match=said):
    metrics.Writers(str(tmp_path), 0)
  with pytest.raises(InputError, match=said):
    metrics.read_rows(str(tmp_path / "metrics.jsonl"))
  assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_what_is_not_finite_is_left_out_of_a_row(tmp_path):
  writers = metrics.Writers(str(tmp_path), 0)
  values = {"a": float("nan"), "b": float("inf"), "c": 1.5, "d": 2}
  writers.write(3, values)
  writers.close()
  path = str(tmp_path / "metrics.jsonl")
  assert metrics.read_rows(path) == [{"step": 3, "c": 1.5, "d": 2}]
  # Other programs write null for it.
  write(tmp_path / "metrics.jsonl", b'{"step": 3, "a": null, "c": 1}')
  assert metrics.read_rows(path) == [{"step": 3, "c": 1}]


def test_a_row_without_its_times_is_what_a_run_repeats():
  there = {"step": 1, "train/loss": 2.0, "perf/mfu": 0.1, "time/unix": 9.0}
  assert metrics.without_time(there) == {"step": 1, "train/loss": 2.0}


def test_a_folder_that_cannot_be_written_is_not_told_to_make_room(tmp_path):
  error = PermissionError(13, "Permission denied")
  assert "make room" not in str(metrics._unwritable("x", error))
  full = OSError(28, "No space left on device")
  assert "make room" in str(metrics._unwritable("x", full))


# Where the time went


def test_every_second_is_of_one_kind(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(goodput.time, "perf_counter", lambda: now[0])

  def spend(seconds):
    now[0] += seconds

  clock = goodput.Clock()
  spend(2)
  with clock.spend("data"):
    spend(3)
  clock.switch("step")
  spend(10)
  with clock.spend("evaluation"):
    spend(4)
    with clock.spend("save"):
      spend(5)
    spend(1)
  found = clock.row()
  assert found.pop("time/unix") > 1.7e9
  assert found == {
    "time/run_seconds": 25.0,
    "time/restart_seconds": 2.0,
    "time/data_seconds": 3.0,
    "time/step_seconds": 10.0,
    "time/evaluation_seconds": 5.0,
    "time/save_seconds": 5.0,
  }
  assert "step 40%" in clock.describe() and "% of 25 s" in clock.describe()


def test_what_is_done_again_was_lost_however_often(tmp_path):
  times = lambda run, step: {
    "time/run_seconds": run,
    "time/step_seconds": step,
    "time/restart_seconds": run - step,
  }
  path = write(
    tmp_path / "metrics.jsonl",
    row(1, **times(10.0, 5.0)),
    row(2, **times(12.0, 7.0)),
    row(3, **times(20.0, 15.0)),
  )
  for _ in range(2):  # a process that was killed before its first row
    carried, _ = rows.rewind(path, 2)
    assert carried["time/lost_seconds"] == 8.0
    assert carried["time/run_seconds"] == 20.0
  clock = goodput.Clock()
  clock.go_on(carried)
  found = clock.row()
  assert found["time/lost_seconds"] == 8.0
  assert found["time/step_seconds"] == 7.0
  kinds = [v for k, v in found.items() if k.endswith("_seconds")]
  assert sum(kinds) == pytest.approx(2 * found["time/run_seconds"], abs=1e-2)
  # Of before the first step that was saved.
  path = write(tmp_path / "other.jsonl", row(1, **times(10.0, 5.0)))
  assert rows.rewind(path, 0)[0]["time/lost_seconds"] == 10.0


def test_the_time_left_is_smooth_and_knows_nothing_of_the_first_interval():
  left = metrics.TimeLeft()
  assert left.note(1, 0.0) is None
  assert left.note(10, 900.0) is None  # compiling, and a cold cache
  assert left.note(20, 910.0) == pytest.approx(1.0)
  seen = [left.note(20 + 10 * i, 910.0 + 10 * i) for i in range(1, 9)]
  assert seen == pytest.approx([1.0] * 8)
  # One interval of twice the time, as beside an evaluation.
  assert 1.0 < left.note(110, 910.0 + 100) < 1.25


def test_a_measured_peak_is_never_beaten(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
  for is_measured, most in ((True, 1.0), (False, 4.0)):
    meter = metrics.Meter(100, 10, peak=250.0, is_measured=is_measured)
    found = []
    for seconds in (8.0, 1.0, 2.0):
      meter.restart()
      for _ in range(2):
        meter.mark()
        now[0] += seconds
      found.append(meter.rates()[metric_names.MFU])
    assert found == [0.5, most, 0.5 if is_measured else 2.0]


def test_a_pause_that_is_left_out_is_in_no_rate(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
  meter = metrics.Meter(100, 10, peak=None)
  meter.leave_out(9.0)  # before anything is marked
  for pause in (0.0, 5.0, 0.0, 7.0):
    meter.mark()
    now[0] += 2.0 + pause
    meter.leave_out(pause)
  meter.mark()
  assert meter.rates()[metric_names.STEP_SECONDS] == 2.0


def test_an_image_is_xml_whatever_its_names():

  name = "a\x00\x1b[31m]]><b>&\ud800\uffff\U0001f600é"
  text = plot.draw_curves(name, name, {name: [(1, 1.0), (2, 2.0)]})
  xml.etree.ElementTree.fromstring(text.encode())
  assert "é" in text and "\x1b" not in text
  layer = plot.Layer("line", [(1, 1.0), (2, 2.0)], "red", name)
  text = plot.draw_layers(name, name, name, [layer])
  xml.etree.ElementTree.fromstring(text.encode())


# In a run


@pytest.mark.wide
def test_a_report_that_was_cut_short_is_made_once(
  call_verb, small_flags, tmp_path, monkeypatch
):
  from gpt_jax.training import reporter

  flags = [*small_flags(tmp_path), f"--workdir={tmp_path / 'run'}"]
  flags += ["--config.train.num_steps=8", "--config.eval.every_steps=4"]
  path = str(tmp_path / "run" / "metrics.jsonl")
  plain = lambda: [metrics.without_time(r) for r in rows.read_rows(path)]
  with monkeypatch.context() as patch:
    patch.setattr(reporter.Reporter, "_plot", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      call_verb("train", *flags)
  cut = plain()
  assert "eval/valid/num_tokens" in cut[-1]
  result = call_verb("train", *flags)
  assert result.returncode == 0, result.stderr
  assert plain() == cut
  # Every second of both processes is of one kind.
  last = rows.read_rows(path)[-1]
  assert "\ntime: " in result.stdout and "compile" in result.stdout
  spent = [last.get(f"time/{k}_seconds", 0.0) for k in goodput.KINDS]
  assert sum(spent) == pytest.approx(last["time/run_seconds"], abs=0.01)
  assert {"time/step_seconds", "time/lost_seconds"} <= last.keys()
  # A run that is whole is left as it is, to the byte.
  before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
  result = call_verb("train", *flags)
  assert "this run is finished" in result.stdout
  assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_rows_that_are_not_those_of_the_checkpoint_are_set_aside(tmp_path):
  path = tmp_path / "metrics.jsonl"
  made = [{"step": n, "train/loss": 1 / n, "time/unix": n} for n in range(1, 7)]
  text = "".join(json.dumps(row) + "\n" for row in made)
  seal = rows.Seal(made[:4]).value()
  path.write_text(text)
  # More rows of the same step may follow those that were sealed.
  _, found = rows.rewind(str(path), 5, say=pytest.fail, seal=seal)
  assert found.value() == rows.Seal(made[:5]).value()

  path.write_text(text.replace('"time/unix": 2', '"time/unix": 9'))
  rows.rewind(str(path), 5, say=pytest.fail, seal=seal)  # a clock's figure

  for wrong in (
    text.replace("0.5", "0.6"),
    text.replace("train/loss", "train/lost", 1),
    text[text.index("\n") + 1 :],
  ):
    path.write_text(wrong)
    said = []
    rows.rewind(str(path), 5, say=said.append, seal=seal)
    assert "not those that were written" in said[0]
    aside = path.with_name(said[0].split(" is ")[1].split(",")[0])
    assert aside.read_text() == wrong
    assert len(rows.read_rows(str(path))) == len(wrong.splitlines()) - 1


def test_a_rewound_record_ends_at_its_step(tmp_path):
  path = tmp_path / "metrics.jsonl"
  writers = metrics.Writers(str(tmp_path), 0)
  for step in range(1, 8):
    writers.write(step, {metric_names.LOSS: 1 / step})
  writers.close()
  with open(path, "a") as file:
    file.write('{"step": 8, "train/lo')
  assert [r["step"] for r in metrics.read_rows(str(path))] == [*range(1, 8)]
  rows.rewind(str(path), 5)
  assert [r["step"] for r in metrics.read_rows(str(path))] == [*range(1, 6)]
  assert metrics.read_rows(str(path))[2] == {
    "step": 3,
    metric_names.LOSS: 1 / 3,
  }
  assert [p.name for p in tmp_path.glob("metrics*")] == ["metrics.jsonl"]
  rows.rewind(str(tmp_path / "none.jsonl"), 0)
  assert not (tmp_path / "none.jsonl").exists()


def test_tensorboard_reads_the_rows_and_the_rewind(tmp_path):
  from tensorboardX.proto import event_pb2

  for start in (0, 2):
    writers = metrics.Writers(str(tmp_path), start)
    writers.write(start + 1, {metric_names.LOSS: 0.5, metric_names.MFU: 0.25})
    writers.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    events, data = [], path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], "little")
      events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
    path.unlink()
    assert events[0].file_version == "brain.Event:2"
    starts = [e.step for e in events if e.session_log.status == 1]
    # It hides what an earlier process wrote from that step on.
    assert starts == ([start + 1] if start else [])
    values = {v.tag: v.simple_value for v in events[-1].summary.value}
    assert values == {metric_names.LOSS: 0.5, metric_names.MFU: 0.25}
    assert events[-1].step == start + 1
