"""Plants secrets in a text, and says which of them a run has memorised.

`plant` writes a source with lines of random digits between its documents, and
beside it a list of them. `measure` reads runs that were trained on it, and
prints the exposure of these lines by how often they were planted.
"""

import argparse
import dataclasses
import json

import numpy as np

from gpt_jax import cli, files
from gpt_jax.exits import InputError
from gpt_jax.lab import canaries
from gpt_jax.lab.canaries import Canary, figure

MAX_COPIES = 100_000
BATCH_SIZE = 256


def _parser() -> argparse.ArgumentParser:
  parser = cli.build_parser("lab.canaries", __doc__, needs_config=False)
  parser.add_argument("verb", choices=["plant", "measure"])
  parser.add_argument(
    "--list",
    required=True,
    metavar="FILE.json",
    help="the list of canaries: plant writes it, measure reads it",
  )
  parser.add_argument(
    "--source", metavar="SOURCE", help="plant: as data.source has it"
  )
  parser.add_argument(
    "--out",
    metavar="FILE",
    help="plant: JSON lines with name and text; measure: a figure, .svg",
  )
  parser.add_argument(
    "--copies",
    default="1,4,16,64",
    metavar="N,N",
    help="plant: how often canaries are planted (default %(default)s)",
  )
  parser.add_argument(
    "--each",
    type=int,
    default=8,
    help="plant: canaries of each number of copies (default %(default)s)",
  )
  parser.add_argument(
    "--seed", type=int, default=0, help="plant: of what is drawn (default 0)"
  )
  parser.add_argument(
    "--runs",
    action="append",
    default=[],
    metavar="NAME=DIR,DIR",
    help="measure: workdirs of runs that are averaged, such as several seeds; "
    "may be given several times",
  )
  return parser


def main(argv: list[str]) -> int:
  """Runs `python -m gpt_jax.lab.canaries`; returns the exit status."""
  args = cli.parse_flags(_parser(), argv)
  if args.verb == "plant":
    return _plant(args)
  return _measure(args)


def _plant(args: argparse.Namespace) -> int:
  from gpt_jax.data.cleaning import clean

  if args.source is None or args.out is None:
    raise InputError("plant needs --source and --out; give both")
  copies = _parse_copies(args.copies)
  if not 1 <= args.each <= 10_000:
    raise InputError(f"--each is {args.each}; it must be from 1 to 10,000")
  files.require_new({"--out": args.out, "--list": args.list})
  found = canaries.make(copies, args.each, args.seed)
  count = sum(1 for _ in clean.read_documents(args.source))
  planted = canaries.plant(
    clean.read_documents(args.source), found, count, args.seed
  )
  clean.write_documents(args.out, planted)
  rows = [dataclasses.asdict(canary) for canary in found]
  files.write_text(args.list, json.dumps({"canaries": rows}, indent=1) + "\n")
  total = sum(canary.copies for canary in found)
  print(
    f"{len(found):,} canaries, {total:,} copies of them, between {count:,} "
    f"documents in {args.out}; the list is {args.list}"
  )
  return 0


def _parse_copies(text: str) -> list[int]:
  words = [word.strip() for word in text.split(",")]
  is_count = lambda word: word.isascii() and word.isdecimal() and len(word) < 7
  if not all(map(is_count, words)) or not all(
    1 <= int(word) <= MAX_COPIES for word in words
  ):
    raise InputError(
      f"--copies is {text!r}; it must be numbers from 1 to {MAX_COPIES:,}, as "
      "in 1,4,16"
    )
  return sorted({int(word) for word in words})


def _measure(args: argparse.Namespace) -> int:
  found, groups = _read_list(args.list), {}
  for word in args.runs:
    name, _, dirs = word.partition("=")
    if not name or not dirs or name in groups:
      raise InputError(
        f"--runs is {word!r}; it must be NAME=DIR,DIR, each name once"
      )
    groups[name] = dirs.split(",")
  if not groups:
    raise InputError("measure needs --runs=NAME=DIR,DIR; name the runs")
  counts = sorted({canary.copies for canary in found})
  curves = {
    name: _measure_runs(found, dirs, counts) for name, dirs in groups.items()
  }
  print(figure.table(curves, counts))
  if args.out is not None:
    files.write_text(args.out, figure.draw(curves, counts))
    print(f"figure: {args.out}")
  return 0


def _read_list(path: str) -> list[Canary]:
  try:
    rows = files.read_json(path)["canaries"]
    found = [Canary(**row) for row in rows]
    good = [
      type(c.copies) is int and type(c.context) is type(c.secret) is str
      for c in found
    ]
  except files.Damage as damage:
    raise InputError(f"--list={path} {damage}") from None
  except (TypeError, KeyError):
    good = []
  if not good or not all(good):
    raise InputError(
      f"--list={path} is no list of canaries; give the file that plant wrote"
    )
  return found


def _measure_runs(
  found: list[Canary], dirs: list[str], counts: list[int]
) -> np.ndarray:
  """Returns mean exposures in bits (runs, counts): over canaries of each count.

  Args:
    dirs: workdirs of the runs.
    counts: numbers of copies.
  """
  rows = []
  for workdir in dirs:
    bits = measure_run(found, workdir)
    by_count = [
      np.mean([b for c, b in zip(found, bits, strict=True) if c.copies == n])
      for n in counts
    ]
    rows.append(by_count)
  return np.array(rows)


def measure_run(found: list[Canary], workdir: str) -> list[float]:
  """Returns the exposure in bits of each canary in a run.

  Raises:
    InputError: there is no run, or its model does not continue plain text.
  """
  from gpt_jax import api

  run = api.load(workdir)  # before anything imports jax
  import jax

  from gpt_jax import config as config_lib
  from gpt_jax.inference import continuations

  has_prefixes = config_lib.has_prefixes(run.config)
  continuations.check_model(run.model, has_prefixes)
  encode = lambda text: run.tokenizer.encode(text).tolist()
  pairs = []
  for canary in found:
    context = run.encode(canary.context)
    pairs += [(context, encode(one)) for one in canary.candidates()]
  with jax.set_mesh(run.mesh):
    scored = continuations.score_pairs(
      run.model,
      run.params,
      pairs,
      BATCH_SIZE,
      config_lib.vocab_size(run.config.model),
    )
  log_probs = np.array([log_p for log_p, _ in scored])
  return [
    canaries.exposure(row.tolist())
    for row in log_probs.reshape(len(found), canaries.NUM_CANDIDATES)
  ]


if __name__ == "__main__":
  cli.run(main)
