"""Continue prompts with a trained model: python -m gpt_jax.generate --help."""

import sys

from gpt_jax import cli, files
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.machine import console, processes, runtime


def _build_parser():
  parser = cli.build_parser(
    "generate",
    "Continue prompts with a trained model.",
    needs_config=False,
  )
  parser.add_argument(
    "--workdir", required=True, metavar="DIR", help="folder of the run"
  )
  parser.add_argument(
    "--prompt",
    action="append",
    metavar="TEXT",
    help="text to continue; repeat it for a batch; - reads standard input",
  )
  parser.add_argument(
    "--suffix",
    metavar="TEXT",
    help="write what stands between the prompt and this text; for a run with "
    "data.objective=fill_in_the_middle",
  )
  parser.add_argument(
    "--num_tokens", type=int, default=200, help="default %(default)s"
  )
  parser.add_argument(
    "--temperature",
    type=float,
    default=0.8,
    help="0 always takes the most likely token (default %(default)s)",
  )
  parser.add_argument(
    "--top_k", type=int, default=0, help="sample only the k likeliest; 0: all"
  )
  parser.add_argument(
    "--top_p", type=float, default=1.0, help="nucleus probability; 1: all"
  )
  parser.add_argument(
    "--min_p",
    type=float,
    default=0.0,
    help="sample only tokens with this fraction of the highest probability",
  )
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--stop",
    action="append",
    default=[],
    metavar="TEXT",
    help="end when this text appears; may be repeated",
  )
  cli.add_weights(parser)
  cli.add_checkpoint(parser)
  return parser


def main(argv: list[str]) -> int:
  parser = _build_parser()
  args, overrides = cli.parse(parser, argv)
  if not 1 <= args.num_tokens < 2**31:
    raise InputError(
      f"--num_tokens is {args.num_tokens}; it must be from 1 to 2^31 - 1"
    )
  if not 0 <= args.seed < 2**32:
    raise InputError(f"--seed is {args.seed}; it must be from 0 to 2^32 - 1")
  typed = [files.user_text("--prompt", p) for p in args.prompt or ["\n"]]
  stop = tuple(files.user_text("--stop", s) for s in args.stop)
  runtime.start(args.devices)
  processes.join({"the arguments": argv})
  # Only process 0 has the standard input.
  prompts = processes.share(
    lambda: [_read_stdin() if p == "-" else p for p in typed]
  )
  if "" in prompts:
    raise InputError(
      "the prompt is empty; give some text, for instance --prompt='The '"
    )

  import jax

  from gpt_jax.inference import generation
  from gpt_jax.runs import workdir

  sampling = generation.Sampling(
    args.temperature, args.top_k, args.top_p, args.min_p
  )
  args.workdir = files.user_path("--workdir", args.workdir)
  is_speaking = processes.index() == 0

  def note(line: str) -> None:
    if is_speaking:
      print(line, file=sys.stderr)

  config, model, params, tokenizer, mesh = workdir.open_run(
    args.workdir, overrides, note, args.weights, args.average, args.step
  )
  if args.suffix is not None:
    tokenizer = _ask_for_gap(config, tokenizer, args.suffix)
  try:
    ids = [tokenizer.encode(prompt) for prompt in prompts]
  except InputError as error:
    raise InputError(f"--prompt cannot be encoded: {error}") from None
  generation.check_prompts(ids, model)

  is_terminal = sys.stdout is not None and sys.stdout.isatty()

  def show(text: str) -> None:
    if is_speaking:
      text = console.escape_controls(text) if is_terminal else text
      print(text, end="", flush=True)

  if len(prompts) == 1:
    show(prompts[0])
  with jax.set_mesh(mesh):
    texts = generation.generate_text(
      model,
      params,
      tokenizer,
      prompts,
      args.num_tokens,
      sampling,
      args.seed,
      stop,
      show=show if len(prompts) == 1 else None,
      is_prefix=config_lib.has_prefixes(config.data),
    )
  if len(prompts) == 1:
    show("\n")
  else:
    for prompt, text in zip(prompts, texts, strict=True):
      show(f"--- {prompt!r}\n{prompt}{text}\n")
  return 0


def _ask_for_gap(config, tokenizer, suffix: str):
  """Returns a tokenizer whose prompts are continued up to the suffix."""
  from gpt_jax.data import infilling

  if config.data.objective != "fill_in_the_middle":
    raise InputError(
      f"--suffix is given and the run's data.objective is "
      f"{config.data.objective}; only a run of fill_in_the_middle fills gaps"
    )
  return infilling.GapTokenizer(tokenizer, files.user_text("--suffix", suffix))


def _read_stdin() -> str:
  try:
    return sys.stdin.buffer.read().decode("utf-8")
  except UnicodeDecodeError as error:
    raise InputError(
      f"standard input is not UTF-8: byte {error.object[error.start]:#04x} at "
      f"offset {error.start}; convert it to UTF-8"
    ) from None


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
