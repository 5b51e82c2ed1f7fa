"""Stores a teacher's largest logits: python -m gpt_jax.deploy.logits --help.

A student that learns from the stored logits does not need the teacher any more
(data/logits.py).
"""

import sys

from gpt_jax import cli
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.machine import processes, runtime


def main(argv: list[str]) -> int:
  parser = cli.build_parser(
    "deploy.logits",
    "Store the largest logits of distill.teacher, for each token that the run "
    "of a config reads, in its order. That run learns from them by "
    "--config.distill.teacher=DIR --config.distill.top_k=K.",
  )
  parser.add_argument(
    "--out", required=True, metavar="DIR", help="folder to make"
  )
  parser.add_argument(
    "--top_k", required=True, type=int, metavar="K", help="logits a token"
  )
  args, overrides = cli.parse(parser, argv)
  config = config_lib.freeze(cli.load_config(args.config, overrides))
  d = config.distill
  if d.teacher is None or d.top_k is not None:
    raise InputError(
      f"distill.teacher is {d.teacher!r} and distill.top_k is {d.top_k}; give "
      "the workdir of the teacher's run, and of top_k the flag alone"
    )
  runtime.start(args.devices)
  if processes.count() > 1:
    raise InputError("logits are stored by one process; start one")

  from gpt_jax.data import logits as logits_lib
  from gpt_jax.data.prepare import prepare_data
  from gpt_jax.deploy.hf.folders import whole_folder
  from gpt_jax.runs import teachers

  prepared = prepare_data(config.data, print)
  config = prepared.resolve_vocab(config)
  teachers.check(config, prepared.tokenizer)
  size = config_lib.vocab_size(config.model)
  if not 1 <= args.top_k <= size:
    raise InputError(f"--top_k is {args.top_k}; it must be 1 to {size}")
  with whole_folder("--out", args.out) as partial:
    _write(partial, config, prepared, args.top_k)
    logits_lib.write_record(partial, config, prepared, args.top_k, d.teacher)
  count = logits_lib.count_rows(config)
  print(f"{args.out} holds {args.top_k} logits a token of {count:,} sequences")
  return 0


def _write(folder: str, config, prepared, top_k: int) -> None:
  """Writes the files of data/logits.py, batch by batch."""
  import jax
  import numpy as np

  from gpt_jax import objective, sharding
  from gpt_jax.data import logits as logits_lib
  from gpt_jax.data.batches import make_train_iterator
  from gpt_jax.ops.divergence import Divergence
  from gpt_jax.runs import workdir
  from gpt_jax.training import preflight

  T = config_lib.row_lengths(config).target
  stored = logits_lib.Logits(
    folder, logits_lib.count_rows(config), T, top_k, ""
  )
  arrays = {name: stored.open(name, "w+") for name in logits_lib.FIELDS}
  axes = {f"mesh.{a}": str(getattr(config.mesh, a)) for a in sharding.AXES}
  _, model, params, _, mesh = workdir.open_run(config.distill.teacher, axes)
  preflight.check_batch(config, mesh)
  place = sharding.batch_sharding(mesh, config.mesh.rules)
  divergence = Divergence(config.distill.kl, config.distill.temperature)

  @jax.jit
  def largest(params, batch):
    logits_BTV = model.apply(params, **objective.inputs_of(batch, model))
    _, ids_BTK = jax.lax.top_k(logits_BTV, top_k)
    return ids_BTK, divergence.log_probs_of(logits_BTV, ids_BTK)

  B = config.train.global_batch_size
  batches = make_train_iterator(
    prepared, config, config.seed, B, np.arange(B), 0
  )
  with jax.set_mesh(mesh):
    for first in range(0, stored.num_rows, B):
      found = largest(params, jax.device_put(next(batches), place))
      end = min(first + B, stored.num_rows)
      for array, part in zip(arrays.values(), found, strict=True):
        array[first:end] = sharding.fetch(part)[: end - first]
  arrays.clear()  # closes the files


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
