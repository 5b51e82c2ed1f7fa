"""Merges adapters into their base: python -m gpt_jax.deploy.merge --help.

The merged model is written to a new workdir. The adapters and their base stay
as they are, so a merge never has to be undone.
"""

import dataclasses
import sys

from gpt_jax import cli
from gpt_jax.config import InputError
from gpt_jax.machine import processes, runtime


def main(argv: list[str]) -> int:
  parser = cli.build_parser(
    "deploy.merge",
    "Make a workdir of the parameters W + scale * A B of a run of adapters. "
    "generate, evaluate and deploy.hf export read both alike; "
    "--config.train.init_from=DIR starts a run from the merged one.",
    needs_config=False,
  )
  cli.add_run(parser)
  parser.add_argument(
    "--out", required=True, metavar="DIR", help="workdir to make"
  )
  args, overrides = cli.parse(parser, argv)
  runtime.start(args.devices)
  if processes.count() > 1:
    raise InputError("adapters are merged by one process; start one")

  from gpt_jax.deploy.hf.folders import whole_folder, write_run
  from gpt_jax.runs import workdir

  note = processes.note
  if not workdir.read_config(args.workdir).adapter.rank.parts:
    raise InputError(
      f"--workdir is {args.workdir}, a run without adapters: it is one model "
      "already"
    )
  with whole_folder("--out", args.out) as partial:
    config, _, params, tokenizer, _ = workdir.open_run(
      args.workdir, overrides, note, average=args.average, step=args.step
    )
    none = dataclasses.replace(config.adapter, rank="none", base="full")
    train = dataclasses.replace(config.train, init_from=None)
    write_run(
      partial,
      dataclasses.replace(config, adapter=none, train=train),
      lambda: params,
      tokenizer,
      workdir.read_record(args.workdir)["data_fingerprint"],
      workdir.read_labels(args.workdir),
    )
  print(f"{args.out} holds the model of {args.workdir} and its base")
  return 0


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
