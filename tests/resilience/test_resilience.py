"""Whatever happens to a run and its files, nothing wrong is believed or lost.

A few trials of each kind are part of the default tests; `-m soak` makes the
hundreds and thousands whose figures docs/resilience.md gives.
"""

import collections
import concurrent.futures
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import time

import damage
import pytest
from trials import (
  HALF,
  STEPS,
  Base,
  checksums,
  copy_of,
  flags_of,
  make_base,
  result_of,
  rows_of,
  words_of,
)


@pytest.fixture(scope="module")
def base(nursery, tmp_path_factory) -> Base:
  return make_base(nursery, tmp_path_factory.mktemp("base"))


VERBS = ("train", "evaluate", "generate")
soak = pytest.mark.soak


def files_of(folder: pathlib.Path) -> dict[str, list[str]]:
  """Returns the files of a run and its text, by the kind of file."""
  found = collections.defaultdict(list)
  for path in sorted(p for p in folder.rglob("*") if p.is_file()):
    name = str(path.relative_to(folder))
    parts = name.split("/")
    if parts[0].startswith("text-") or "tensorboard" in parts:
      continue
    if path.name.startswith(".") or path.stat().st_size == 0:
      continue
    if "checkpoints" in parts:
      kind = "/".join(p for p in parts[1:] if not p.isdigit() and len(p) < 20)
    elif parts[0] == "prepared":
      kind = f"prepared/{path.name}"
    else:
      kind = name
    found[kind].append(name)
  return dict(found)


def counterpart(base, name: str) -> pathlib.Path:
  """Returns the foreign run's file of this place, or another of its files."""
  parts = name.split("/")
  same = base.foreign / name
  if parts[0] == "prepared":
    same = next((base.foreign / "prepared").glob(f"*/{parts[-1]}"))
  if same.is_file():
    return same
  there = [p for p in base.foreign.rglob("*") if p.is_file()]
  return min(there, key=lambda p: p.name != parts[-1])


def ways_of(name: str):
  last = name.split("/")[-1]
  if last == "metrics.jsonl":
    return damage.LINES
  if last.endswith(".json") or last in ("metadata", "_METADATA"):
    return damage.JSON
  return damage.ANY


def verdict(base, verb: str, folder: pathlib.Path, outcome) -> str:
  """Returns how a verb took what was done: "same", "said", "refused", or a
  fault."""
  if outcome.code is None:
    return "HANG"
  if outcome.has_traceback:
    return "TRACEBACK"
  if outcome.peak > 2 << 30:
    return f"MEMORY {outcome.peak >> 20} MiB"
  if outcome.code != 0:
    return "refused" if outcome.is_sentence else f"CODE {outcome.code}"
  found, expected = result_of(verb, folder, outcome), base.expected[verb]
  if found == expected:
    return "same"
  if verb != "train" and "cannot be read" in outcome.err:
    return "said"  # an older step is read, by name
  if verb == "train" and found[0] == expected[0]:
    # Rows that the damage took cannot come back; that it did must be said.
    lost = [row for row in expected[1] if row not in found[1]]
    added = [row for row in found[1] if row not in expected[1]]
    is_other = "not those that were written" in outcome.out
    is_said = is_other or "held no row" in outcome.out
    is_said |= "earlier rows were removed" in outcome.out
    if is_said and (is_other or not added) and len(lost) < len(expected[1]):
      return "said"
    return f"ROWS lost {len(lost)}, added {len(added)}, said {is_said}"
  return "SILENT"


def is_fault(found: str) -> bool:
  return found not in ("same", "said", "refused")


def try_damage(nursery, base, root: pathlib.Path, seed: int):
  """Damages one file by the seed and runs one verb; returns (what, verdict)."""
  rng = random.Random(seed)
  kinds = files_of(base.folder)
  kind = sorted(kinds)[seed % len(kinds)]
  verb = VERBS[seed // len(kinds) % len(VERBS)]
  name = rng.choice(kinds[kind])
  way = rng.choice(ways_of(name))
  folder = copy_of(base.folder, root / f"damage-{seed}")
  way(folder / name, rng, counterpart(base, name))
  outcome = nursery.run(verb, *words_of(verb, folder, base.flags))
  found = verdict(base, verb, folder, outcome)
  shutil.rmtree(folder, ignore_errors=True)
  return f"{seed}: {verb} after {way.__name__} of {name}", found, outcome


def try_hostile(nursery, base, root: pathlib.Path, seed: int):
  """Puts what is no honest file in a file's place, and runs one verb."""
  kinds = files_of(base.folder)
  kind = sorted(kinds)[seed % len(kinds)]
  way = damage.HOSTILE[seed // len(kinds) % len(damage.HOSTILE)]
  verb = VERBS[(seed + seed // len(kinds)) % len(VERBS)]
  name = kinds[kind][-1]
  folder = copy_of(base.folder, root / f"hostile-{seed}")
  way(folder / name)
  outcome = nursery.run(verb, *words_of(verb, folder, base.flags))
  found = verdict(base, verb, folder, outcome)
  shutil.rmtree(folder, ignore_errors=True)
  return f"{seed}: {verb} with {way.__name__} as {name}", found, outcome


def run_trials(trial, seeds, nursery, base, root):
  """Runs trials two at a time; reports and checks their verdicts."""
  counts, faults = collections.Counter(), []
  run = lambda seed: trial(nursery, base, root, seed)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for number, (what, found, outcome) in enumerate(pool.map(run, seeds), 1):
      counts[found] += 1
      if is_fault(found):
        said = (outcome.err or outcome.out)[-300:]
        faults.append(f"{what}: {found}: {said!r}")
        print(f"\n  {faults[-1]}", flush=True)
      if number % 100 == 0 or number == len(seeds):
        print(
          f"\n{trial.__name__}: {number} trials, {dict(counts)}", flush=True
        )
  assert not faults, f"{len(faults)} of {len(seeds)}: {faults[0]}"
  return counts


def spread(count: int, over: int = 1009) -> list[int]:
  """Returns seeds that are spread over kinds of files, damages and verbs."""
  return [(i * 37) % over for i in range(count)]


@pytest.mark.wide
@pytest.mark.parametrize(
  "count", [9, pytest.param(1000, marks=soak)], ids=["few", "soak"]
)
def test_no_damage_is_believed(nursery, base, tmp_path, count):
  seeds = spread(count) if count < 100 else range(count)
  counts = run_trials(try_damage, seeds, nursery, base, tmp_path)
  assert counts["refused"] and counts["same"]


@pytest.mark.wide
@pytest.mark.parametrize(
  "count", [6, pytest.param(150, marks=soak)], ids=["few", "soak"]
)
def test_no_hostile_file_hangs_or_fills_memory(nursery, base, tmp_path, count):
  seeds = spread(count) if count < 100 else range(count)
  run_trials(try_hostile, seeds, nursery, base, tmp_path)


@pytest.mark.wide
def test_a_damage_that_is_believed_is_seen(nursery, base, tmp_path):
  """The control: what the trials look at does change with the data."""
  folder = copy_of(base.folder, tmp_path / "control")
  flags = [*base.flags, "--config.optim.clip_norm=0.01"]
  shutil.rmtree(folder / "run")
  outcome = nursery.run("train", *words_of("train", folder, flags))
  assert verdict(base, "train", folder, outcome) == "SILENT"


def finish(nursery, folder, flags, rng, kills: int, sent=signal.SIGKILL):
  """Ends a run again and again at any moment; returns the last outcome."""
  words = words_of("train", folder, flags)
  for _ in range(kills):
    child = nursery.start("train", *words)
    deadline = time.monotonic() + rng.uniform(0.05, 3.0)
    while child.is_running() and time.monotonic() < deadline:
      time.sleep(0.01)
    child.signal(sent)
    outcome = child.wait()
    assert not outcome.has_traceback, outcome
    if sent != signal.SIGKILL:
      assert outcome.code in (0, 75, 130), outcome
  return nursery.run("train", *words)


@pytest.mark.wide
@pytest.mark.parametrize(
  "runs, kills", [(1, 3), pytest.param(20, 10, marks=soak)], ids=["few", "soak"]
)
def test_killed_at_any_moment_it_is_the_run_never_killed(
  nursery, tmp_path, runs, kills
):
  def one(index: int) -> None:
    rng = random.Random(index)
    root = tmp_path / str(index)
    (root / "straight").mkdir(parents=True)
    (root / "killed").mkdir()
    changes = {
      "model.dropout_rate": rng.choice((0.0, 0.1)),
      "data.packing": rng.choice(("stream", "documents")),
      "checkpoint.every_steps": rng.choice((1, 3, 5)),
      "train.num_microbatches": rng.choice((1, 2)),
    }
    flags = flags_of(root, index, **changes)
    straight = nursery.run(
      "train", *words_of("train", root / "straight", flags)
    )
    assert straight.code == 0, straight
    ended = finish(nursery, root / "killed", flags, rng, kills)
    assert ended.code == 0, ended
    for read in (checksums, rows_of):
      assert read(root / "killed" / "run") == read(root / "straight" / "run")
    shutil.rmtree(root)

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    list(pool.map(one, range(runs)))


SIGNALS = (
  signal.SIGTERM,
  signal.SIGHUP,
  signal.SIGUSR1,
  signal.SIGINT,
  signal.SIGUSR2,
  signal.SIGQUIT,
)


@pytest.mark.wide
@pytest.mark.parametrize(
  "count", [3, pytest.param(120, marks=soak)], ids=["few", "soak"]
)
def test_a_signal_at_any_moment_saves_and_loses_nothing(
  nursery, base, tmp_path, count
):
  def one(index: int) -> None:
    rng = random.Random(index)
    folder = copy_of(base.folder, tmp_path / str(index))
    sent = SIGNALS[index % len(SIGNALS)]
    ended = finish(nursery, folder, base.flags, rng, 1, sent)
    assert ended.code == 0, (sent, ended)
    assert verdict(base, "train", folder, ended) == "same", (sent, ended)
    shutil.rmtree(folder)

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    list(pool.map(one, range(count)))


@pytest.mark.wide
@pytest.mark.parametrize(
  "pairs", [1, pytest.param(50, marks=soak)], ids=["few", "soak"]
)
def test_of_two_starts_in_one_workdir_one_goes_on(
  nursery, base, tmp_path, pairs
):
  for index in range(pairs):
    rng = random.Random(index)
    folder = copy_of(base.folder, tmp_path / str(index))
    if index % 2:
      shutil.rmtree(folder / "run")
    words = words_of("train", folder, base.flags)
    first = nursery.start("train", *words)
    time.sleep(rng.uniform(0, 2.0))
    second = nursery.start("train", *words)
    ended = [first.wait(), second.wait()]
    assert not any(o.has_traceback for o in ended), ended
    codes = sorted(o.code for o in ended)
    # The second may also have come when the first was done.
    assert codes in ([0, 2], [0, 0]), ended
    if codes == [0, 2]:
      refused = next(o for o in ended if o.code == 2)
      assert "process" in refused.err and len(refused.err.splitlines()) <= 2
    assert result_of("train", folder, None) == base.expected["train"], ended
    shutil.rmtree(folder)


def greetings(count: int) -> list[bytes]:
  """Returns what may come to an open port."""
  rng = random.Random(0)
  hello = {"magic": "gpt_jax processes 1", "index": 1, "count": 2}
  known = [
    b"[]\n",
    b"5\n",
    b"{}\n",
    b"null\n",
    b"\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"[" * 200_000 + b"\n",
    b"9" * 9_999 + b"\n",
    b'{"magic": "gpt_jax processes 1"}\n',
    json.dumps(hello).encode() + b"\n",
    json.dumps(hello | {"facts": None}).encode() + b"\n",
    json.dumps(hello | {"facts": {}}).encode() + b"\n",
    json.dumps(hello | {"facts": {"a": 1}, "index": -1}).encode() + b"\n",
    json.dumps(hello | {"facts": {}, "index": 10**30}).encode() + b"\n",
    json.dumps(hello | {"facts": {}, "index": "1"}).encode() + b"\n",
    json.dumps(hello | {"facts": {}, "count": [2]}).encode() + b"\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\xff" * 5_000 + b"\n",
    b"half a line",
    b"",
  ]
  while len(known) < count:
    text = bytearray(json.dumps(hello | {"facts": {"a": 1}}).encode() + b"\n")
    for _ in range(rng.randrange(1, 6)):
      text[rng.randrange(len(text))] = rng.randrange(256)
    known.append(bytes(text))
  return known[:count]


@pytest.mark.wide
@pytest.mark.parametrize(
  "count", [20, pytest.param(50, marks=soak)], ids=["few", "soak"]
)
def test_strangers_at_the_meeting_port_are_passed_over(
  run_verb, tmp_path, count
):
  """Two real processes meet while strangers talk to process 0's port."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
  env = {
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": "2",
    "GPT_JAX_JOIN_SECONDS": "60",
  }
  flags = flags_of(tmp_path, 0, **{"train.num_steps": 6})
  words = words_of("train", tmp_path, flags)
  held = []
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    start = lambda index: pool.submit(
      run_verb, "gpt_jax.train", *words, JAX_PROCESS_ID=str(index), **env
    )
    first = start(0)
    deadline = time.monotonic() + 60
    for text in greetings(count):
      while True:
        try:
          link = socket.create_connection(("127.0.0.1", port), 1)
          break
        except OSError:
          assert time.monotonic() < deadline and not first.done(), first
          time.sleep(0.05)
      link.sendall(text)
      # Some stay on the line, as a slow client does.
      held.append(link)
    second = start(1)
    results = [first.result(), second.result()]
  for link in held:
    link.close()
  for result in results:
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.wide
def test_the_trials_reach_every_kind_of_file(base):
  kinds = files_of(base.folder)
  for name in (
    "run/config.json",
    "run/metrics.jsonl",
    "run/tokenizer.json",
    "prepared/manifest.json",
    "prepared/tokenizer.json",
    "prepared/train-00000.bin",
    "prepared/train.offsets.bin",
    "prepared/valid-00000.bin",
    "checkpoints/meta/metadata",
    "checkpoints/state/_METADATA",
  ):
    assert name in kinds, sorted(kinds)
  assert os.path.isdir(base.folder / "run/checkpoints" / str(HALF))
  assert not os.path.isdir(base.folder / "run/checkpoints" / str(STEPS))
