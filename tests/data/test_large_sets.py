"""Parquet as corpora have it: memory, workers and kills at its size.

The default test is small; the slow ones make up to 2 GB, and print figures.
"""

import contextlib
import hashlib
import pathlib
import random
import subprocess
import sys
import threading
import time

import pyarrow as pa
import pytest
from pyarrow import parquet
from test_chunks import CODE, ROOT

from gpt_jax.data import chunks, sources
from gpt_jax.data.sources.document import Divisible

GIB = 1 << 30
# Bytes of text of a row, on average, and rows of a row group, as in FineWeb.
ROW_BYTES, GROUP_ROWS = 3000, 1000


def make_corpus(folder: pathlib.Path, num_bytes: int, num_files: int) -> str:
  """Writes files of parquet like FineWeb's; returns their spec.

  The first file is one row group, as some writers leave it.
  """
  dice, folder = random.Random(0), pathlib.Path(folder)
  folder.mkdir()
  letters = "etaoinshrdlucmfwypvbgkjqxz"
  make_word = lambda: "".join(dice.choices(letters, k=dice.randrange(1, 11)))
  words = [make_word() for _ in range(20_000)]
  weights = [1 / (i + 1) for i in range(len(words))]
  parts = [
    " ".join(dice.choices(words, weights, k=90)) + ".\n" for _ in range(4000)
  ]
  rows = num_bytes // num_files // ROW_BYTES
  for i in range(num_files):
    writer = None
    path = folder / f"{i:03d}.parquet"
    size = rows if i == 0 else GROUP_ROWS
    for start in range(0, rows, size):
      texts = []
      for row in range(start, min(rows, start + size)):
        k = min(60, int(dice.lognormvariate(1.6, 0.8)) + 1)
        texts.append(f"{i} {row} " + "".join(dice.choices(parts, k=k)))
      count = len(texts)
      table = pa.table(
        {
          "text": texts,
          "id": [f"<urn:uuid:{i}-{start + k}>" for k in range(count)],
          "url": [f"https://example.org/{i}/{start + k}" for k in range(count)],
          "language_score": [dice.random() for _ in range(count)],
          "token_count": [len(text) // 4 for text in texts],
        }
      )
      writer = writer or parquet.ParquetWriter(path, table.schema)
      writer.write_table(table, row_group_size=size)
    assert writer is not None
    writer.close()
  return f"parquet:{folder}"


class Peak:
  """The largest sum of the memory of a process and those that it started."""

  def __init__(self, pid: int):
    self.bytes, self._pid = 0, pid
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._watch)
    self._thread.start()

  def _watch(self):
    while not self._stop.wait(0.05):
      self.bytes = max(self.bytes, sum(map(_pss, _family(self._pid))))

  def end(self) -> int:
    self._stop.set()
    self._thread.join()
    return self.bytes


def _family(pid: int) -> list[int]:
  with contextlib.suppress(OSError):
    path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    return [pid, *(int(child) for child in path.read_text().split())]
  return []


def _pss(pid: int) -> int:
  """Returns the memory of a process; what it shares is shared out."""
  with contextlib.suppress(OSError):
    text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    for line in text.split("\n"):
      if line.startswith("Pss:"):
        return int(line.split()[1]) << 10
  return 0


def prepare(spec, folder, num_workers, chunk_bytes) -> tuple[dict, int, float]:
  """Returns ({file: digest}, peak in bytes, seconds)."""
  code = CODE.format(
    source=spec, dir=str(folder), workers=num_workers, chunk_bytes=chunk_bytes
  )
  start = time.monotonic()
  run = subprocess.Popen(
    [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL
  )
  peak = Peak(run.pid)
  status = run.wait()
  found = peak.end()
  assert status == 0
  return read_set(folder), found, time.monotonic() - start


def read_set(folder) -> dict[str, str]:
  (root,) = pathlib.Path(folder).glob("parquet-*")
  found = {}
  for path in sorted(root.iterdir()):
    with open(path, "rb") as file:
      found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
  return found


def kill_as_it_goes(spec, folder, kills: int, chunk_bytes: int) -> list[int]:
  """Prepares with 2 workers, killed at random places of one way through.

  Places are numbers of chunks that are done, so that all kills hit, whatever
  the machine does beside. The last is when all are, and the set is made.

  Returns:
    The chunks that were done at each kill that hit.
  """
  code = CODE.format(
    source=spec, dir=str(folder), workers=2, chunk_bytes=chunk_bytes
  )
  words, dice = [sys.executable, "-c", code], random.Random(1)
  source = sources.open_source(spec)
  assert isinstance(source, Divisible)
  total = len(chunks.divide(source))
  places = sorted(dice.randrange(total) for _ in range(kills - 1))
  count = lambda: len(list(folder.glob(".chunks-*/chunk-*.json")))
  hit = []
  for place in [*places, total]:
    run = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    while count() < place and run.poll() is None:
      time.sleep(0.01)
    if place < total:
      time.sleep(dice.uniform(0.5, 1.5))  # into a chunk, or into the start
    run.kill()
    if run.wait() != 0:
      hit.append(count())
  subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
  return hit


@pytest.mark.wide
def test_memory_does_not_grow_with_row_groups(tmp_path):
  spec = make_corpus(tmp_path / "corpus", 60 << 20, 2)
  found, peak, _ = prepare(spec, tmp_path / "two", 2, 8 << 20)
  assert peak < GIB / 5 and len(found) >= 6
  # All of it held at once, the first file alone would be 30 MiB of text more.
  assert peak > 50 << 20  # the measure measures


# {size: (bytes of text, bytes of a chunk, workers of each preparation, GiB of
# the largest of them at most)}. The bar is 1 GiB; 0.61 to 0.65 were measured
# for 2 GB.
SIZES = {
  "120MB": (12 * 10**7, 4 << 20, (8, 1, 2), 0.6),
  "2GB": (2 * 10**9, 64 << 20, (8, 1), 0.8),
}


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_large_sets_are_the_same_by_all_ways(
  tmp_path, capsys, monkeypatch, size
):
  num_bytes, chunk_bytes, counts, most = SIZES[size]
  spec = make_corpus(tmp_path / "corpus", num_bytes, 8)
  lines, sets, peaks = [], [], []
  for count in counts:
    into = tmp_path / str(count)
    found, peak, seconds = prepare(spec, into, count, chunk_bytes)
    lines.append(f"{count} workers: {seconds:.0f} s, {peak / GIB:.2f} GiB")
    sets.append(found)
    peaks.append(peak)
  start = time.monotonic()
  monkeypatch.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
  killed_at = kill_as_it_goes(spec, tmp_path / "killed", 10, chunk_bytes)
  spent = time.monotonic() - start
  lines.append(f"killed at {killed_at} chunks, {spent:.0f} s")
  with capsys.disabled():
    print("", *lines, sep="\n")
  sets.append(read_set(tmp_path / "killed"))
  assert all(found == sets[0] for found in sets)
  assert len(killed_at) == 10
  assert max(peaks) == peaks[0] < most * GIB
