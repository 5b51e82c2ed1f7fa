"""Tasks of lm-evaluation-harness on a run: gpt_jax.lab.tasks --help.

The harness's own code reads the tasks, makes the requests and computes the
metrics (https://github.com/EleutherAI/lm-evaluation-harness); this answers the
requests. Results are its own JSON.
"""

import argparse
import json
import sys

from gpt_jax import cli, files
from gpt_jax.config import InputError
from gpt_jax.machine import processes, runtime


def _build_parser() -> argparse.ArgumentParser:
  parser = cli.build_parser(
    "lab.tasks",
    "Evaluate a run on tasks of lm-evaluation-harness (extra eval).",
    needs_config=False,
  )
  parser.add_argument(
    "--workdir", required=True, metavar="DIR", help="folder of the run"
  )
  parser.add_argument(
    "--tasks",
    required=True,
    metavar="NAME,...",
    help="names of the harness's tasks, or files of tasks that end in .yaml",
  )
  parser.add_argument(
    "--num_fewshot",
    type=int,
    metavar="N",
    help="examples before each question; the task's own number if left out",
  )
  parser.add_argument(
    "--limit", type=int, metavar="N", help="only the first N of each task"
  )
  parser.add_argument(
    "--batch_size",
    type=int,
    default=8,
    metavar="N",
    help="requests that are answered at once (default %(default)s)",
  )
  parser.add_argument(
    "--max_gen_toks",
    type=int,
    default=256,
    metavar="N",
    help="most tokens of an answer, where a task does not say (default "
    "%(default)s)",
  )
  parser.add_argument(
    "--out", metavar="FILE", help="write the results here, the harness's JSON"
  )
  cli.add_weights(parser)
  cli.add_checkpoint(parser)
  return parser


def main(argv: list[str]) -> int:
  args, overrides = cli.parse(_build_parser(), argv)
  for name in ("num_fewshot", "limit", "batch_size", "max_gen_toks"):
    value, least = getattr(args, name), int(name != "num_fewshot")
    if value is not None and not least <= value < 2**31:
      raise InputError(
        f"--{name} is {value}; it must be from {least} to 2^31 - 1"
      )
  names = [name.strip() for name in args.tasks.split(",")]
  for name in names:
    if not name:
      raise InputError(
        f"--tasks is {args.tasks!r}; it must be names with a comma between"
      )
    if name.endswith(".yaml"):
      try:
        files.read_text(files.user_path("--tasks", name))
      except files.Damage as damage:
        raise InputError(f"--tasks names {name}, which {damage}") from None
  runtime.start(args.devices)
  if processes.count() > 1:
    raise InputError("tasks are evaluated by one process; start one")
  try:
    import lm_eval
    from lm_eval import utils
  except ImportError:
    raise InputError(
      "tasks need the package `lm_eval`; in the folder of this project, "
      f"install it with {files.pip('eval')}"
    ) from None
  runtime.start_harness()
  import jax

  from gpt_jax.config import has_prefixes
  from gpt_jax.inference import continuations
  from gpt_jax.lab.tasks.adapter import Answers, adapt
  from gpt_jax.runs import workdir

  note = lambda line: print(line, file=sys.stderr)
  config, model, params, tokenizer, mesh = workdir.open_run(
    args.workdir, overrides, note, args.weights, args.average, args.step
  )
  continuations.check_model(model, has_prefixes(config))
  params = model.round_weights(params)
  with jax.set_mesh(mesh):
    answers = Answers(
      model, params, tokenizer, args.batch_size, args.max_gen_toks
    )
    try:
      results = lm_eval.simple_evaluate(
        adapt(answers),
        tasks=names,
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        log_samples=False,
      )
    except (KeyError, ValueError, OSError, utils.yaml.YAMLError) as error:
      said = str(error).strip().splitlines() or [type(error).__name__]
      raise InputError(f"the harness refused --tasks: {said[0]}") from None
  print(utils.make_table(results))
  if args.out is not None:
    text = json.dumps(results, indent=2, default=utils.handle_non_serializable)
    files.write_text(args.out, text + "\n")
  return 0
