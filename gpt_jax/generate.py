"""Continue prompts with a trained model: python -m gpt_jax.generate --help."""

import sys

from gpt_jax import cli, files
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.machine import cache, console, processes, runtime

# Flags that each way of answering a prompt reads, and the others do not.
SAMPLING = ("num_tokens", "temperature", "top_k", "top_p", "min_p", "seed")
MODES = {
  "sampling": (*SAMPLING, "rows", "stop", "suffix"),
  "--beams": (
    "suffix",
    "num_tokens",
    "beams",
    "length_penalty",
    "num_best",
    "early_stopping",
  ),
  "--choice": ("choice", "per_token"),
}


def _build_parser():
  parser = cli.build_parser(
    "generate",
    "Continue prompts with a trained model.",
    needs_config=False,
  )
  cli.add_run(parser)
  parser.add_argument(
    "--prompt",
    action="append",
    metavar="TEXT",
    help="text to continue; repeat for a batch; - reads standard input",
  )
  parser.add_argument(
    "--messages",
    metavar="FILE|ADDRESS",
    help="dialogues to answer instead of prompts, in the layouts of chat:FILE; "
    "each must end with a user's turn",
  )
  parser.add_argument(
    "--template",
    metavar="NAME",
    help="read prompts as a user's messages in this chat template: "
    f"{', '.join(config_lib.Template.FORMS)}; a run that was tuned on chats "
    "uses its own",
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
    "--top_k", type=int, default=0, help="sample only the k most likely; 0: all"
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
    "--rows",
    type=int,
    metavar="N",
    help="compute N rows in each step, as gpt_jax.serve --rows=N does, for the "
    "same text bit for bit",
  )
  parser.add_argument(
    "--stop",
    action="append",
    default=[],
    metavar="TEXT",
    help="end when this text appears; may be repeated",
  )
  _add_search(parser)
  cli.add_weights(parser)
  return parser


def _add_search(parser) -> None:
  parser.add_argument(
    "--beams",
    type=int,
    metavar="N",
    help="draw nothing, but search for the likeliest text with N beams",
  )
  parser.add_argument(
    "--length_penalty",
    type=float,
    default=0.0,
    metavar="A",
    help="with --beams: rank by log-probability / ((5 + tokens) / 6)^A "
    "(default %(default)s)",
  )
  parser.add_argument(
    "--num_best",
    type=int,
    default=1,
    metavar="N",
    help="with --beams: show the N best texts and their scores",
  )
  parser.add_argument(
    "--early_stopping",
    action="store_true",
    help="with --beams: end when as many texts as there are beams have ended, "
    "not when none can become better",
  )
  parser.add_argument(
    "--choice",
    action="append",
    metavar="TEXT",
    help="continue nothing, but rank texts by their probability after the "
    "prompt; repeat it for each text",
  )
  parser.add_argument(
    "--per_token",
    action="store_true",
    help="with --choice: rank by the mean log-probability of a token",
  )


def _mode_of(argv: list[str]) -> str:
  """Returns the entry of MODES that the flags ask for.

  Raises:
    InputError: a flag was given that this mode does not read.
  """
  typed = [word.split("=")[0][2:] for word in argv if word[:2] == "--"]
  asked = [m for m in ("--choice", "--beams") if m[2:] in typed]
  mode = asked[0] if asked else "sampling"
  for other, flags in MODES.items():
    for flag in flags:
      if flag in typed and flag not in MODES[mode]:
        if asked:
          raise InputError(
            f"--{flag} does nothing with {mode}; leave one of them out"
          )
        raise InputError(
          f"--{flag} does nothing without {other}; add {other} or leave it out"
        )
  return mode


def main(argv: list[str]) -> int:
  parser = _build_parser()
  args, overrides = cli.parse(parser, argv)
  mode = _mode_of(argv)
  if not 1 <= args.num_tokens < 2**31:
    raise InputError(
      f"--num_tokens is {args.num_tokens}; it must be from 1 to 2^31 - 1"
    )
  if not 0 <= args.seed < 2**32:
    raise InputError(f"--seed is {args.seed}; it must be from 0 to 2^32 - 1")
  template = _parse_template(args)
  typed = [files.user_text("--prompt", p) for p in args.prompt or ["\n"]]
  stop = tuple(files.user_text("--stop", s) for s in args.stop)
  runtime.start(args.devices)
  processes.join({"the arguments": argv})
  # Only process 0 has the standard input.
  prompts = processes.share(
    lambda: [_read_stdin() if p == "-" else p for p in typed]
  )
  import jax

  from gpt_jax.data import objectives
  from gpt_jax.inference import beam, choices, generation
  from gpt_jax.runs import workdir

  sampling = generation.Sampling(
    args.temperature, args.top_k, args.top_p, args.min_p
  )
  if mode == "--beams":
    settings = beam.Beam(
      args.beams, args.length_penalty, args.num_best, args.early_stopping
    )
  if mode == "--choice":
    texts = [files.user_text("--choice", text) for text in args.choice]
    choices.check_choices(texts)
  args.workdir = files.user_path("--workdir", args.workdir, True)
  note, is_speaking = processes.note, processes.index() == 0
  config, model, params, tokenizer, mesh = workdir.open_run(
    args.workdir, overrides, note, args.weights, args.average, args.step
  )
  tokenizer = objectives.prompting(config, tokenizer, template)
  if args.messages is not None:
    prompts = _read_messages(args.messages, tokenizer)
  tokenizer = _begin_prompts(tokenizer, prompts)
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

  run = model, params, tokenizer, prompts
  heads = _heads_of(prompts, tokenizer)
  is_prefix = config_lib.has_prefixes(config)
  with jax.set_mesh(mesh):
    if mode == "--choice":
      _show_choices(
        prompts, choices.score(*run, texts, is_prefix), args.per_token, show
      )
    elif mode == "--beams":
      found = beam.search_text(*run, args.num_tokens, settings, is_prefix)
      _show_found(prompts, heads, found, show)
    else:
      options = args.num_tokens, sampling, args.seed, stop
      more = dict(is_prefix=is_prefix, num_rows=_check_rows(args, is_prefix))
      _show_samples(prompts, heads, show, run, options, more)
  return 0


def _check_rows(args, is_prefix: bool) -> int | None:
  """Returns --rows."""
  if args.rows is not None and (is_prefix or not 2 <= args.rows <= 4096):
    raise InputError(
      f"--rows is {args.rows}; it must be 2 or more, at most 4096, and the run "
      "one of prompts without prefixes"
    )
  return args.rows


def _parse_template(args) -> config_lib.Template | None:
  if args.messages is not None and args.prompt is not None:
    raise InputError(
      "--messages and --prompt are both given; give the prompt as the last turn"
    )
  if args.template is None:
    return None
  if args.suffix is not None:
    raise InputError("--template does nothing with --suffix; leave one out")
  return config_lib.Template(args.template, "--template")


def _read_messages(path: str, tokenizer) -> list[str]:
  """Returns the prompts of a file of dialogues."""
  from gpt_jax.data.sources import chat
  from gpt_jax.data.templates import ChatTokenizer, Prompt

  if not isinstance(tokenizer, ChatTokenizer):
    raise InputError(
      "--messages is given, and the run was not tuned on chats; name the chat "
      "template of its model with --template"
    )
  path = files.user_path("--messages", path, may_be_address=True)
  found = chat.read_prompts(cache.local(path))
  return [Prompt(messages, where) for where, messages in found]


def _begin_prompts(tokenizer, prompts: list[str]):
  """Returns a tokenizer whose prompts begin as the model expects."""
  from gpt_jax.data.pairs import SourceTokenizer
  from gpt_jax.inference.prompts import PromptTokenizer

  is_source = isinstance(tokenizer, SourceTokenizer)
  if tokenizer.start_ids and not is_source:
    return PromptTokenizer(tokenizer)
  if "" in prompts:
    raise InputError(
      "the prompt is empty; give some text, for instance --prompt='The '"
    )
  return tokenizer


def _ask_for_gap(config, tokenizer, suffix: str):
  """Returns a tokenizer whose prompts are continued up to the suffix."""
  from gpt_jax.data import infilling

  if config.data.objective != "fill_in_the_middle":
    raise InputError(
      f"--suffix is given and the run's data.objective is "
      f"{config.data.objective}; only a run of fill_in_the_middle fills gaps"
    )
  return infilling.GapTokenizer(tokenizer, files.user_text("--suffix", suffix))


def _heads_of(prompts: list[str], tokenizer) -> list[str]:
  """Returns what is printed before each text: its prompt, or "" for answers."""
  from gpt_jax.data.objectives import ANSWERED

  return [""] * len(prompts) if isinstance(tokenizer, ANSWERED) else prompts


def _show_samples(prompts, heads, show, run, options, more: dict) -> None:
  """Continues prompts; the text of a single one is streamed.

  Args:
    heads: what is printed before each text (_heads_of).
  """
  from gpt_jax.inference import texts

  is_single = len(prompts) == 1
  if is_single:
    show(heads[0])
  written = texts.generate_text(
    *run, *options, show=show if is_single else None, **more
  )
  if is_single:
    show("\n")
    return
  for prompt, head, text in zip(prompts, heads, written, strict=True):
    show(f"--- {prompt!r}\n{head}{text}\n")


def _show_found(prompts, heads, found, show) -> None:
  """Shows texts that a beam search found, several with their scores."""
  for prompt, head, texts in zip(prompts, heads, found, strict=True):
    for text, h in texts:
      if len(texts) > 1:
        nats = f"score {h.score:.4f}, log-probability {h.log_prob:.4f}"
        show(f"--- {prompt!r}, {nats}, {len(h.ids)} tokens\n")
      elif len(prompts) > 1:
        show(f"--- {prompt!r}\n")
      show(f"{head}{text}\n")


def _show_choices(prompts, found, is_per_token: bool, show) -> None:
  """Shows each prompt's choices, likeliest first, with log-probabilities."""
  from gpt_jax.inference import choices

  for prompt, own in zip(prompts, found, strict=True):
    if len(prompts) > 1:
      show(f"--- {prompt!r}\n")
    for one in choices.rank(own, is_per_token):
      tokens = f"{one.num_tokens} token{'s' if one.num_tokens > 1 else ''}"
      show(f"{one.text!r}: log-probability {one.log_prob:.4f}, {tokens}\n")


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
