"""The command: writes a page of what happens in a run as it reads a text."""

import sys

from gpt_jax import cli, files
from gpt_jax.config import InputError
from gpt_jax.machine import processes, runtime

# Number of rows of --corpus that are read, and tokens of a row at most.
ROWS, ROW_LEN = 128, 64


def _build_parser():
  parser = cli.build_parser(
    "lab.interp",
    "Look inside a run: attention, head statistics, lenses, attribution, "
    "ablation and patching of one text, as one HTML page.",
    needs_config=False,
  )
  cli.add_run(parser)
  parser.add_argument(
    "--text", required=True, metavar="TEXT", help="what the run reads"
  )
  parser.add_argument(
    "--other",
    metavar="TEXT",
    help="a text of as many tokens with another next token, to patch",
  )
  parser.add_argument(
    "--corpus",
    metavar="FILE",
    help="a text file: trains a tuned lens and a sparse autoencoder on it",
  )
  parser.add_argument(
    "--layer",
    type=int,
    metavar="N",
    help="the layer whose stream the autoencoder reads; the default is the "
    "middle one",
  )
  parser.add_argument(
    "--out", required=True, metavar="FILE", help="page to write"
  )
  return parser


def main(argv: list[str]) -> int:
  args = cli.parse_flags(_build_parser(), argv)
  args.out = files.output_path("--out", args.out)
  if args.layer is not None and args.corpus is None:
    raise InputError("--layer does nothing without --corpus; leave it out")
  runtime.start(args.devices)
  if processes.count() > 1:
    raise InputError("a page is made by one process; start one")

  from gpt_jax.api import Run
  from gpt_jax.lab.interp import look, passes

  run = Run(args.workdir, "full", args.step, args.average)
  passes.open_model(run)
  rows = None if args.corpus is None else _read_rows(run, args.corpus)
  num_layers = run.model.config.num_layers
  if args.layer is not None and not 0 <= args.layer < num_layers:
    raise InputError(
      f"--layer is {args.layer}; the run has layers 0 to {num_layers - 1}"
    )
  text = look.look(run, args.text, args.other, rows, args.layer)
  files.write_text(args.out, text)
  print(f"{args.out} shows what {args.workdir} does with the text")
  return 0


def _read_rows(run, path: str):
  import numpy as np

  length = min(ROW_LEN, run.model.config.max_len)
  try:
    text = files.read_text(path, 1 << 22)
  except files.Damage as damage:
    raise InputError(f"--corpus {path} {damage}; name a text file") from None
  ids = np.asarray(run.tokenizer.encode(text))[: ROWS * length]
  if len(ids) < 8 * length:
    raise InputError(
      f"--corpus {path} has {len(ids)} tokens; it must have {8 * length} "
      "or more"
    )
  return ids[: len(ids) // length * length].reshape(-1, length)


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
