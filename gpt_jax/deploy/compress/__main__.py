"""The command: one method makes a run; several make a run each and a table."""

import dataclasses
import os
import sys

from gpt_jax import cli
from gpt_jax.config import InputError
from gpt_jax.deploy.compress import methods
from gpt_jax.machine import processes, runtime

# Rows of calibration text, as GPTQ and Wanda take.
ROWS = 128


def _build_parser():
  lines = [
    f"  {word + (':' + number if number else ''):<27} {what}"
    for word, (what, number, _) in methods.METHODS.items()
  ]
  parser = cli.build_parser(
    "deploy.compress",
    "Make smaller runs of a trained one. generate, evaluate, serving and "
    "deploy.hf export\nread them. --method, one or several with commas:\n"
    + "\n".join(lines),
    needs_config=False,
  )
  cli.add_run(parser)
  parser.add_argument(
    "--out",
    required=True,
    metavar="DIR",
    help="workdir to make; of several methods a folder with one for each",
  )
  parser.add_argument("--method", required=True, metavar="METHODS")
  parser.add_argument(
    "--calibrate",
    metavar="SOURCE",
    help="text like that of training, which gptq, awq and wanda read",
  )
  parser.add_argument(
    "--data",
    metavar="SOURCE",
    help="other text, to score the models on; several methods need it",
  )
  parser.add_argument(
    "--seed",
    type=int,
    default=0,
    metavar="N",
    help=f"which {ROWS} rows of --calibrate are read (default %(default)s)",
  )
  return parser


def main(argv: list[str]) -> int:
  args, overrides = cli.parse(_build_parser(), argv)
  asked = [methods.parse(text) for text in args.method.split(",")]
  _check(args, asked)
  runtime.start(args.devices)
  if processes.count() > 1:
    raise InputError("a run is compressed by one process; start one")

  import jax

  from gpt_jax.data import prepare
  from gpt_jax.deploy.compress import calibrate, report
  from gpt_jax.deploy.hf.folders import whole_folder
  from gpt_jax.runs import workdir

  note = processes.note
  config, model, params, tokenizer, mesh = workdir.open_run(
    args.workdir, overrides, note, average=args.average, step=args.step
  )
  params = model.restore_matrices(params)
  run = config, model, params, tokenizer, mesh
  _check_form(config, model, args.workdir)
  read = lambda spec: prepare.prepare_text(
    spec, tokenizer, config.data.dir, config.data.split, note
  )
  rows_BT = scored = None
  if any(method.reads_text for method in asked):
    rows_BT = calibrate.draw_rows(
      read(args.calibrate), ROWS, config.data.seq_len, args.seed
    )
  if args.data is not None:
    scored = read(args.data)
  with whole_folder("--out", args.out) as partial:
    whole = methods.Compressed(config, params, "full")
    rows = []
    if scored is not None:
      rows.append(report.measure("full", whole, run, scored))
    for method in asked:
      with jax.set_mesh(mesh):  # a CPU is seven times as slow without
        made = methods.apply(method, config, model, params, rows_BT)
      alone = len(asked) == 1
      folder = partial if alone else os.path.join(partial, name_of(method))
      _write(folder, args.workdir, made, tokenizer)
      if scored is not None:
        row = report.measure(method.text, made, run, scored)
        rows.append(row)
        note(report.describe(row, rows[0]))
    if len(asked) > 1:
      report.write(partial, rows)
  print(f"{args.out} holds {args.method} of {args.workdir}")
  return 0


def name_of(method: methods.Method) -> str:
  """Returns the name of the folder of a method."""
  return method.text.replace(":", "-")


def _check(args, asked: list[methods.Method]) -> None:
  needing = [method.text for method in asked if method.reads_text]
  if needing and args.calibrate is None:
    raise InputError(
      f"--method={needing[0]} reads text that is like that of training; give "
      "--calibrate=FILE"
    )
  if args.calibrate is not None and not needing:
    raise InputError(
      f"--calibrate does nothing with --method={args.method}; leave it out"
    )
  if len(asked) > 1 and args.data is None:
    raise InputError("several methods are compared on a text; give --data=FILE")
  if len({method.text for method in asked}) < len(asked):
    raise InputError(f"--method={args.method} names a method twice")
  if args.seed < 0:
    raise InputError(f"--seed is {args.seed}; it must be 0 or more")


def _check_form(config, model, place: str) -> None:
  """Raises InputError unless the run continues plain text, without experts."""
  from gpt_jax import config as config_lib

  c = config.model
  others = {
    f"an {c.family.replace('_', '-')}": c.family != "decoder",
    "a decoder that scores classes": not model.can_generate,
    "one that was trained with prefixes": config_lib.has_prefixes(config),
    "one with experts": c.num_experts is not None,
  }
  if found := [form for form, is_so in others.items() if is_so]:
    raise InputError(
      "decoders that continue plain text, without experts, are compressed, and "
      f"the run in {place} is {found[0]}; give another run"
    )


def _write(folder: str, source: str, made: methods.Compressed, tokenizer):
  from gpt_jax.deploy.hf.folders import write_run
  from gpt_jax.runs import rounded, workdir

  os.makedirs(folder, exist_ok=True)
  none = dataclasses.replace(made.config.adapter, rank="none", base="full")
  train = dataclasses.replace(made.config.train, init_from=None)
  is_full = made.weights == "full"
  write_run(
    folder,
    dataclasses.replace(made.config, adapter=none, train=train),
    lambda: made.params,
    tokenizer,
    workdir.read_record(source)["data_fingerprint"],
    workdir.read_labels(source),
    others={rounded.NAME: None if is_full else rounded.Stored(made.weights)},
  )


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
