"""Checks and times gpt_jax on a GPU in minutes: python -m gpt_jax.lab.card.

Parts run in order of importance, each in its own process with its own time
limit, so that an error or a hang costs only one part. Each row is printed as a
line of JSON as soon as it is known; the tables of docs/performance.md come
last. `launch/gpu_check.sh` runs it with only jax for CUDA, flax, optax and
ml_collections installed.
"""

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

from gpt_jax import cli
from gpt_jax.config import InputError
from gpt_jax.machine import chips, runtime


@dataclasses.dataclass(frozen=True)
class Part:
  """A part of the check.

  Attributes:
    about: what it checks or times.
    limit: seconds after which its process is killed. A check of more than
      MINUTES scales the limit up; --toy and --compile set none.
  """

  about: str
  limit: float


PARTS = {
  "check": Part("attention and steps against the CPU's values", 110),
  "gpt2": Part("GPT-2 124M, T=1024, and packed documents", 90),
  "llama-1b": Part("Llama 1B, T=2048", 110),
  "llama-3b": Part("Llama 3B, the largest of 80 GiB with AdamW", 90),
  "llama-8b": Part("Llama 8B, the largest, on a card of 120 GiB or more", 90),
  "families": Part("BERT and T5 base", 100),
  "decode": Part("Llama 8B, tokens one by one", 200),
  "flags": Part("GPT-2 124M, one option of the compiler at a time", 120),
}
MINUTES = 8.0


def main(argv: list[str]) -> int:
  parser = cli.build_parser(
    "lab.card",
    "Checks and times this project on a GPU, part by part.",
    needs_config=False,
  )
  parser.add_argument(
    "--minutes",
    type=float,
    default=MINUTES,
    metavar="N",
    help="time for all parts; those that it does not reach are left out "
    "(default %(default)s)",
  )
  parser.add_argument(
    "--parts",
    default=",".join(PARTS),
    metavar="NAME,...",
    help="which to run, in this order (default %(default)s)",
  )
  parser.add_argument(
    "--toy",
    action="store_true",
    help="every part at a size that a CPU runs in seconds",
  )
  parser.add_argument(
    "--compile",
    metavar="CHIP",
    help="only compile every program, for a card that is not here: h100, h200",
  )
  parser.add_argument(
    "--out", metavar="DIR", help="folder for card.jsonl, programs and profiles"
  )
  parser.add_argument("--part", help=argparse.SUPPRESS)  # in this process
  args = cli.parse_flags(parser, argv)
  names = args.parts.split(",")
  for name in names:
    if name not in PARTS:
      raise InputError(f"--parts names {name!r}; there are {', '.join(PARTS)}")
  if not 0 < args.minutes < 1000:
    raise InputError(
      f"--minutes is {args.minutes:g}; it must be above 0 and below 1000"
    )
  cards = sorted(w for w, c in chips.CHIPS.items() if c.platform == "gpu")
  if args.compile is not None and args.compile not in cards:
    raise InputError(
      f"--compile is {args.compile!r}; it must be one of {', '.join(cards)}"
    )
  if not (args.toy or args.compile or runtime.find_accelerator()):
    raise InputError(
      "there is no GPU here; --toy runs every part at a small size on a CPU, "
      "--compile=h100 compiles for a card that is not here"
    )
  runtime.start(args.devices)
  if args.compile:
    runtime.start_compiler("gpu")
    from gpt_jax.lab.plan import gpus

    gpus.require_compiler()
    if names != ["decode"]:
      gpus.require_cudnn()
  if args.part:
    from gpt_jax.lab.card import parts

    return parts.run(args.part, args.toy, args.compile, args.out)
  return _run_all(names, args)


def _run_all(names: list[str], args) -> int:
  from gpt_jax.lab.card import table

  if args.out:
    os.makedirs(args.out, exist_ok=True)
  deadline = time.monotonic() + 60 * args.minutes
  is_timed = not (args.compile or args.toy)
  scale = max(1, args.minutes / MINUTES) if is_timed else 1e3
  rows, failed = [], []
  for name in names:
    left = deadline - time.monotonic()
    limit = min(PARTS[name].limit * scale, left if is_timed else 1e6)
    if limit < 5:
      failed.append(f"{name}: no time was left")
      continue
    found, fault = _run_part(name, limit, args)
    rows += found
    if fault:
      failed.append(f"{name}: {fault}")
      print(json.dumps({"part": name, "error": fault}), flush=True)
  if args.out:
    with open(os.path.join(args.out, "card.jsonl"), "w") as file:
      file.writelines(json.dumps(row) + "\n" for row in rows)
  print("\n".join(["", *table.lines(rows)]))
  for line in failed:
    print(f"gpt_jax: {line}", file=sys.stderr)
  wrong = [r for r in rows if r.get("is_right") is False or "error" in r]
  return 1 if failed or wrong else 0


def _run_part(name: str, limit: float, args) -> tuple[list[dict], str]:
  """Runs a part; returns (rows, why it did not finish, "" if it did)."""
  words = [sys.executable, "-m", "gpt_jax.lab.card", f"--part={name}"]
  words += ["--toy"] if args.toy else []
  words += [f"--compile={args.compile}"] if args.compile else []
  words += [f"--out={args.out}"] if args.out else []
  process = subprocess.Popen(
    words, stdout=subprocess.PIPE, text=True, start_new_session=True
  )
  is_late = threading.Event()

  def stop() -> None:
    is_late.set()
    os.killpg(process.pid, signal.SIGKILL)

  timer = threading.Timer(limit, stop)
  timer.start()
  rows = []
  assert process.stdout is not None
  for line in process.stdout:
    if line.startswith("{"):
      rows.append(json.loads(line))
    print(line, end="", flush=True)
  code = process.wait()
  timer.cancel()
  if is_late.is_set():
    return rows, f"stopped after {limit:.0f} s"
  return rows, "" if code == 0 else f"its process ended with {code}"
