"""A full disk and a failed sample cost no more than themselves."""

import itertools
import os
import pathlib
import shutil
import subprocess

import pytest
from refusals import assert_refused, content_of, flag

from gpt_jax import metric_names
from gpt_jax.config import InputError
from gpt_jax.inference import texts
from gpt_jax.runs import metrics, restore


@pytest.mark.wide
def test_a_sample_that_cannot_be_made_is_a_line_and_the_run_goes_on(
  train, tmp_path, monkeypatch
):
  flags = [
    flag("train.num_steps", 4),
    flag("sample.every_steps", 2),
    flag("sample.num_tokens", 3),
    flag("optim.warmup_steps", 1),
  ]
  # A vocabulary of the text's own characters, and a prompt of others.
  result = train(
    *flags,
    flag("data.tokenizer", "chars"),
    flag("sample.prompt", "國"),
    is_kept=True,
    workdir=tmp_path / "chars",
  )
  assert (result.returncode, result.stderr) == (0, "")
  assert "no samples will be written: sample.prompt is '國'" in result.stdout
  assert not (tmp_path / "chars" / "samples").exists()
  assert (tmp_path / "chars" / "checkpoints" / "4").exists()

  def fail(*args, **kwargs):
    raise RuntimeError("out of\nmemory")

  monkeypatch.setattr(texts, "generate_text", fail)
  result = train(*flags, is_kept=True, workdir=tmp_path / "failing")
  assert (result.returncode, result.stderr) == (0, "")
  told = "step 2: no sample of sample.prompt: out of memory"
  assert result.stdout.count("no sample") == 1 and told in result.stdout
  assert (tmp_path / "failing" / "plots" / "loss.svg").exists()


@pytest.fixture
def disk(tmp_path):
  """Mounts a disk of a given size; gives its path and a way to fill it."""
  mounted = []

  def mount(size: str) -> pathlib.Path:
    path = tmp_path / f"disk{len(mounted)}"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path]
    try:
      result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
      pytest.skip("no small disk can be mounted: there is no mount")
    if result.returncode:
      pytest.skip(f"no small disk can be mounted: {result.stderr.strip()}")
    mounted.append(path)
    return path

  yield mount
  for path in mounted:
    subprocess.run(["umount", "-l", path], check=True)


def fill(disk: pathlib.Path) -> None:
  """Takes what room is left."""
  free = os.statvfs(disk)
  (disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize))


def test_a_disk_full_of_prepared_text_is_left_empty(train, disk):
  kept = disk("64k") / "prepared"
  result = train(flag("data.dir", kept))
  assert_refused(result, "no space is left", str(kept), "data.dir")
  assert content_of(kept) == {}


def test_a_disk_full_of_what_was_fetched_is_named_and_left_as_it_was(
  disk, tmp_path, call_verb, monkeypatch
):
  cached, kept = disk("64k"), tmp_path / "prepared"
  monkeypatch.setenv("XDG_CACHE_HOME", str(cached))
  (tmp_path / "small.txt").write_text("some text " * 900)
  (tmp_path / "large.txt").write_text("some text " * 20_000)
  prepare = lambda name: call_verb(
    "data.__main__",
    f"--config.data.source=text:file://{tmp_path}/{name}.txt",
    f"--config.data.dir={kept}",
    "--config.data.tokenizer=bytes",
  )
  result = prepare("large")
  assert_refused(result, "/large.txt cannot be read", f"disk of {cached}")
  left = [path for path in cached.rglob("*") if path.is_file()]
  assert [path.suffix for path in left] == [".lock"]
  fill(cached)
  assert_refused(prepare("small"), f"disk of {cached}", "is full; make room")
  assert all(name[:6] == ".lock-" for name in content_of(kept))
  (cached / "ballast").unlink()
  assert prepare("small").returncode == 0


@pytest.mark.wide
def test_a_disk_that_fills_while_saving_keeps_the_earlier_steps(
  run_verb, call_verb, base, disk
):
  workdir = disk("1500k") / "run"
  words = [flag("checkpoint.every_steps", 2), flag("checkpoint.keep_last", 20)]
  result = run_verb("gpt_jax.train", *base[1], *words, f"--workdir={workdir}")
  # Whichever finds the disk full first: a step, or a row of metrics.
  assert_refused(result, str(workdir), "make room and go on")
  steps = restore.list_steps(str(workdir / "checkpoints"))
  assert 0 < len(steps) < 10
  assert call_verb("evaluate", f"--workdir={workdir}").returncode == 0


@pytest.mark.wide
def test_a_full_disk_stops_a_run_at_its_metrics_and_spoils_none(
  train, trained, disk
):
  path = disk("8m")
  workdir = pathlib.Path(shutil.copytree(trained, path / "run"))
  shutil.rmtree(workdir / "checkpoints" / "20")
  fill(path)
  result = train(workdir=workdir)
  assert_refused(result, f"{workdir}/metrics.jsonl", "No space left")
  (path / "ballast").unlink()
  result = train(workdir=workdir, is_kept=True)
  assert result.returncode == 0 and "going on from step 16" in result.stdout


def test_metrics_that_fill_the_disk_are_whole_rows_up_to_there(disk):
  path = disk("100k")
  writers = metrics.Writers(str(path), 0)
  with pytest.raises(InputError, match="metrics.jsonl cannot be written"):
    for step in itertools.count():
      writers.write(step, {metric_names.LOSS: step / 3})
  with pytest.raises(InputError, match="cannot be written"):
    writers.close()
  rows = metrics.read_rows(str(path / "metrics.jsonl"))
  assert [r["step"] for r in rows] == list(range(len(rows)))
  assert step - 5 <= len(rows) <= step + 1


def test_a_record_that_finds_no_room_leaves_no_part_of_a_run(train, disk):
  path = disk("64k")
  fill(path)
  result = train(workdir=path / "run")
  assert_refused(result, str(path / "run"), "No space left")
  assert content_of(path / "run") == {}
