"""Evaluates a run on tasks of lm-evaluation-harness: gpt_jax.lab.tasks --help.

--out writes the results in the harness's own JSON format. The config key
eval.tasks evaluates such tasks during training.
"""

import argparse
import json

from gpt_jax import cli, files
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.config.options import parse_tasks
from gpt_jax.machine import processes, runtime


def _build_parser() -> argparse.ArgumentParser:
  parser = cli.build_parser(
    "lab.tasks",
    "Evaluate a run on tasks of lm-evaluation-harness (extra eval).",
    needs_config=False,
  )
  cli.add_run(parser)
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
    "--template",
    metavar="NAME",
    help="ask as the user of a chat, by the template NAME: "
    f"{', '.join(config_lib.Template.FORMS)}; a run that was tuned on chats "
    "asks so by its own",
  )
  parser.add_argument(
    "--out", metavar="FILE", help="write the results here, the harness's JSON"
  )
  cli.add_weights(parser)
  return parser


def main(argv: list[str]) -> int:
  args, overrides = cli.parse(_build_parser(), argv)
  for name in ("num_fewshot", "limit", "batch_size", "max_gen_toks"):
    value, least = getattr(args, name), int(name != "num_fewshot")
    if value is not None and not least <= value < 2**31:
      raise InputError(
        f"--{name} is {value}; it must be from {least} to 2^31 - 1"
      )
  template = None
  if args.template is not None:
    template = config_lib.Template(args.template, "--template")
  names = parse_tasks(args.tasks, "--tasks")
  if args.out is not None:
    args.out = files.output_path("--out", args.out)
  runtime.start(args.devices)
  import jax

  from gpt_jax.config import has_prefixes
  from gpt_jax.data import objectives
  from gpt_jax.data.templates import ChatTokenizer
  from gpt_jax.inference import continuations, harness
  from gpt_jax.runs import workdir

  harness.require()
  from lm_eval import utils

  note = processes.note
  config, model, params, tokenizer, mesh = workdir.open_run(
    args.workdir, overrides, note, args.weights, args.average, args.step
  )
  continuations.check_model(model, has_prefixes(config))
  tokenizer = objectives.prompting(config, tokenizer, template)
  is_chat = isinstance(tokenizer, ChatTokenizer)
  params = model.round_weights(params)
  with jax.set_mesh(mesh):
    answers = harness.Answers(
      model, params, tokenizer, args.batch_size, args.max_gen_toks
    )
    results = harness.evaluate(
      answers, names, "--tasks", args.limit, args.num_fewshot, is_chat
    )
  print(utils.make_table(results))
  if args.out is not None:
    text = json.dumps(results, indent=2, default=utils.handle_non_serializable)
    files.write_text(args.out, text + "\n")
  return 0
