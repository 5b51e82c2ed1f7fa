"""The start subject: imports, the first start, and later starts from a cache.

Every figure is measured in a fresh process.
"""

import collections
import re
import statistics
import subprocess
import sys
import tempfile
import time

from gpt_jax.config import Config
from gpt_jax.lab.bench import worker
from gpt_jax.lab.bench.samples import (
  REPEATS,
  Measurement,
  Row,
  format_number,
)
from gpt_jax.lab.bench.train import check_vocab

VERBS = ("train", "generate", "evaluate")
# Modules that each command imports after it has read its flags and config.
LOADED = {
  "train": "gpt_jax.training.loop",
  "generate": "gpt_jax.inference.generation, gpt_jax.runs.workdir",
  "evaluate": "gpt_jax.inference.scoring, gpt_jax.runs.workdir",
}
# Number of packages that are named as the slowest to import.
MOST_NAMED = 8
_IMPORT_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \| \s*([\w.]+)")


def measure(
  config: Config, repeats: int = REPEATS, devices: int | None = None
) -> Measurement:
  """Times imports and starts.

  Args:
    config: frozen, with a known vocabulary.
    devices: number of simulated devices, or None.
  """
  check_vocab(config)
  repeat = lambda words: [time_python(*words) for _ in range(repeats)]
  rows = [Row("python alone", "s", repeat(["-c", ""]))]
  for verb in VERBS:
    words = ["-m", f"gpt_jax.{verb}", "--help"]
    rows.append(Row(f"{verb} --help", "s", repeat(words)))
  rows.append(Row("import jax", "s", repeat(["-c", import_line("jax")])))
  for verb, modules in LOADED.items():
    code = ["-c", import_line(modules)]
    rows.append(Row(f"import what {verb} needs", "s", repeat(code)))
  parts = time_imports(LOADED["train"])
  # A first start finds no compiled program in its cache.
  first = [start_once(config, devices, None) for _ in range(repeats)]
  with tempfile.TemporaryDirectory() as cache:
    start_once(config, devices, cache)
    later = [start_once(config, devices, cache) for _ in range(repeats)]
  for name, found in (("first", first), ("cached", later)):
    for part in found[0]:
      values = [one[part] for one in found]
      rows.append(Row(f"{name} start: {part}", "s", values))
  dominating = {
    name: {p: statistics.median(one[p] for one in found) for p in found[0]}
    for name, found in (("first", first), ("cached", later))
  }
  return Measurement(
    "start",
    config,
    rows,
    about={"imports_seconds": parts, "starts_seconds": dominating},
    packages=("orbax-checkpoint", "grain", "tokenizers"),
    remarks=_remark(parts, dominating),
  )


def _remark(parts: dict, dominating: dict) -> list[str]:
  """Returns lines on the slowest imports and the slowest part of a start."""
  lines = [
    "",
    "slowest imports of train, each package without its own imports:",
  ]
  whole = sum(parts.values())
  for name in list(parts)[:MOST_NAMED]:
    share = f"{100 * parts[name] / whole:5.1f} %"
    lines.append(f"  {name:24} {format_number(parts[name]):>8} s  {share}")
  for name, seconds in dominating.items():
    most = max((p for p in seconds if p != "in all"), key=seconds.get)
    share = seconds[most] / seconds["in all"]
    lines.append(f"the {name} start: {most} takes {share:.0%} of it")
  return lines


def import_line(modules: str) -> str:
  """Returns Python code that imports modules as a command does."""
  return (
    f"from gpt_jax.machine import runtime; runtime.start(); import {modules}"
  )


def time_python(*words: str) -> float:
  """Returns the seconds that python takes with these arguments."""
  start = time.perf_counter()
  subprocess.run(
    [sys.executable, *words],
    check=True,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  return time.perf_counter() - start


def time_imports(modules: str) -> dict[str, float]:
  """Returns {package: seconds in its own modules}, the slowest first."""
  found = subprocess.run(
    [sys.executable, "-X", "importtime", "-c", import_line(modules)],
    check=True,
    capture_output=True,
    text=True,
  )
  return sum_imports(found.stderr)


def sum_imports(text: str) -> dict[str, float]:
  """Returns {package: seconds} of the output of `python -X importtime`."""
  seconds: dict[str, float] = collections.defaultdict(float)
  for microseconds, name in _IMPORT_LINE.findall(text):
    seconds[name.partition(".")[0]] += int(microseconds) / 1e6
  return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def start_once(config: Config, devices, cache: str | None) -> dict[str, float]:
  """Returns {part: seconds} of a start up to its first step.

  Args:
    cache: folder of compiled programs; None takes an empty one.
  """
  if cache is None:
    with tempfile.TemporaryDirectory() as empty:
      return start_once(config, devices, empty)
  variables = dict.fromkeys(
    ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"), cache
  )
  start = time.perf_counter()
  with worker.Worker("gpt_jax", "train", config, devices, variables) as one:
    built = one.built
    one.ask(do="run", count=1)
    whole = time.perf_counter() - start
    first_step = whole - built["ready_seconds"]
  parts = {
    "model and optimizer": built["build_seconds"],
    "compile": built["compile_seconds"],
    "initial state": built["init_seconds"],
  }
  imports = built["ready_seconds"] - sum(parts.values())
  return {
    "python and imports": imports,
    **parts,
    "first step": first_step,
    "in all": whole,
  }
