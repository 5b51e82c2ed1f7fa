"""The command line of every verb: flags, --help, errors as one sentence.

jax is never imported here, so that help and mistakes answer at once. Config
keys are flags of their own (--config.section.key=value), typed by base.py.
"""

import argparse
import importlib.util
import inspect
import os
import re
import sys
import traceback

import gpt_jax
from gpt_jax import exits, files, processes, streams
from gpt_jax.config import KEYS, WEIGHTS, InputError, nearest, nearest_key

_KEY_LINE = re.compile(r"^  (?:(\w+) = )?(\w+)\.(\w+) = (.*)$")


def build_parser(
  verb: str, description: str, needs_config: bool = True
) -> argparse.ArgumentParser:
  """Returns the parser that all verbs share; a verb adds its own flags."""
  parser = argparse.ArgumentParser(
    prog=f"python -m gpt_jax.{verb}",
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
    epilog=config_help() if needs_config else None,
  )
  parser.add_argument(
    "--version", action="version", version=f"gpt_jax {gpt_jax.__version__}"
  )
  if needs_config:
    parser.add_argument(
      "--config",
      default="configs/tiny.py",
      metavar="FILE[:VARIANT]",
      help="config file, with a variant of it (default %(default)s)",
    )
  parser.add_argument(
    "--devices",
    type=int,
    metavar="N",
    help="pretend that this CPU is N devices",
  )
  parser.error = _raise_input_error
  return parser


def add_average(parser: argparse.ArgumentParser) -> None:
  """Adds --average to a verb that reads a finished model."""
  parser.add_argument(
    "--average",
    metavar="ema|last:N",
    help="read the moving average of parameters (train.ema_decay), or the "
    "mean of the N newest checkpoints",
  )


def add_step(parser: argparse.ArgumentParser) -> None:
  """Adds --step to a verb that reads a finished model."""
  parser.add_argument(
    "--step",
    type=int,
    metavar="N",
    help="read the checkpoint of step N; the default is the newest",
  )


def add_weights(parser: argparse.ArgumentParser) -> None:
  """Adds --weights to a verb that reads a finished model."""
  parser.add_argument(
    "--weights",
    choices=WEIGHTS,
    default=WEIGHTS[0],
    help="round matrices to so many bits (default %(default)s)",
  )


def parse(parser: argparse.ArgumentParser, argv: list[str]):
  """Returns (args, overrides): the verb's flags and {"a.b": "text"}.

  Raises:
    InputError: an argument is not known.
  """
  flags = [o for a in parser._actions for o in a.option_strings]
  # Before argparse, which would miss what was mistyped and not say why.
  for word in argv:
    flag = word.split("=")[0]
    if re.fullmatch(r"--[\w-]+", flag) and flag not in flags:
      raise InputError(f"unknown argument {flag}; {nearest(flag, flags)}")
  args, rest = parser.parse_known_args(argv)
  if args.devices is not None and args.devices < 1:
    raise InputError(f"--devices is {args.devices}; it must be 1 or more")
  overrides = {}
  while rest:
    word = rest.pop(0)
    if not word.startswith("--config."):
      raise InputError(f"unknown argument {word}; {nearest(word, flags)}")
    key, equals, value = word.removeprefix("--config.").partition("=")
    if not equals:
      if not rest:
        raise InputError(f"--config.{key} needs a value: --config.{key}=VALUE")
      value = rest.pop(0)
    overrides[key] = value
  return args, overrides


def load_config(path: str, overrides: dict[str, str]):
  """Returns the ConfigDict of `FILE[:VARIANT]` with overrides applied.

  Raises:
    InputError: no such file, no such variant, an unknown key or a value that
      is not of the key's type.
  """
  file, _, variant = path.partition(":")
  get_config = _import_file(file).get_config
  if variant and not inspect.signature(get_config).parameters:
    raise InputError(f"{file} has no variants; found :{variant}")
  try:
    config = get_config(variant) if variant else get_config()
  except InputError:
    raise
  except Exception as error:  # somebody's code: all kinds
    raise InputError(_config_file_sentence(file, error)) from None
  if not hasattr(config, "items"):
    raise InputError(
      f"get_config() of {file} returned a {type(config).__name__}; it must "
      "return the ConfigDict of configs/base.py with its values changed"
    )
  for key, text in overrides.items():
    set_key(config, key, text)
  return config


def call_sweep(path: str, add) -> None:
  """Calls sweep(add) of a config file.

  Raises:
    InputError: the file has no sweep, or it raised.
  """
  file = path.partition(":")[0]
  module = _import_file(file)
  if not callable(getattr(module, "sweep", None)):
    raise InputError(
      f"config file {file} defines no sweep(add); configs/warmup_decay.py has "
      "one"
    )
  try:
    module.sweep(add)
  except InputError:
    raise
  except Exception as error:  # somebody's code: all kinds
    raise InputError(_config_file_sentence(file, error)) from None


def set_key(config, dotted: str, text: str) -> None:
  """Sets one key of a ConfigDict from the command line's text."""
  if dotted not in KEYS:
    raise InputError(f"unknown config key {dotted}; {nearest_key(dotted)}")
  text = files.user_text(dotted, text)
  value = _read_value(dotted, text, KEYS[dotted])
  node = config
  *sections, key = dotted.split(".")
  for section in sections:
    node = node[section]
  node[key] = value


def config_help() -> str:
  """Returns base.py's keys with defaults and reasons, as text for --help."""
  lines = ["config keys (--config.KEY=VALUE), with their values in base.py:"]
  section_of, reason = {"config": ""}, []
  for line in _base_source().splitlines():
    stripped = line.strip()
    if stripped.startswith("#"):
      reason.append(stripped.lstrip("# "))
      continue
    match = _KEY_LINE.match(line)
    if match:
      alias, owner, key, value = match.groups()
      if value == "ConfigDict()":
        section_of[alias] = f"{key}."
      else:
        if value.startswith("placeholder"):
          value = "None"
        lines.append(f"  {section_of[owner]}{key} = {value}")
        lines.extend(f"      {r}" for r in reason)
    reason = []
  return "\n".join(lines)


def run(main, argv: list[str] | None = None, is_run: bool = False) -> None:
  """Runs a verb; what the user can mend ends in one sentence and exit 2.

  Of several processes, one that fails ends the others too.

  Args:
    main: takes the words behind the verb and returns the exit code.
    argv: those words; None: the process's own.
    is_run: what the verb makes is in a folder, and what it prints a comment:
      it goes on though nobody reads it.
  """
  streams.hold(is_comment=is_run)
  try:
    code = main(sys.argv[1:] if argv is None else argv)
    sys.stdout.flush()
  except InputError as error:
    code = _give_up(exits.BAD_INPUT, str(error))
  except KeyboardInterrupt:
    code = _give_up(exits.INTERRUPTED, "interrupted")
  except BrokenPipeError:
    streams.drop_output()
    code = exits.UNREAD
  except OSError as error:
    processes.settle()
    code = _give_up(exits.BAD_INPUT, _file_sentence(error))
  except Exception as error:
    if processes.count() == 1:
      raise
    processes.settle()
    traceback.print_exc()
    code = _give_up(
      exits.FAILED, f"ended with {type(error).__name__}, see its log"
    )
  processes.leave()
  try:
    sys.stdout.flush()
  except OSError:
    streams.drop_output()
  sys.exit(code)


def _file_sentence(error: OSError) -> str:
  """Returns what the system says of a path, a disk or a network."""
  what = error.strerror or str(error) or type(error).__name__
  what = " ".join(what.splitlines())
  if error.filename is None:
    return f"cannot read or write: {what}"
  path = error.filename
  path = os.fsdecode(path) if isinstance(path, bytes) else path
  return f"cannot read or write {path}: {what}"


def _give_up(code: int, why: str) -> int:
  """Says why in one line, of several processes on process 0's screen."""
  if processes.index() == 0:
    print(f"gpt_jax: {why}", file=sys.stderr)
  processes.end(code, why)
  if processes.index() > 0:
    line = f"gpt_jax: process {processes.index()}: {why}"
    print(line, file=sys.stderr, flush=True)
  if processes.count() > 1:
    os._exit(code)  # nobody answers: nor would they at the end
  return code


def _raise_input_error(message: str):
  raise InputError(message)


def _base_source() -> str:
  spec = importlib.util.find_spec("configs.base")
  with open(spec.origin) as file:
    return file.read()


def _import_file(file: str):
  if not os.path.isfile(file):
    what = "is a directory" if os.path.isdir(file) else "does not exist"
    raise InputError(f"config file {file} {what}; see configs/ for those here")
  spec = importlib.util.spec_from_file_location("gpt_jax_config", file)
  if spec is None:
    raise InputError(f"config file {file} is not Python")
  module = importlib.util.module_from_spec(spec)
  try:
    # From its text, never from bytecode that is kept of it: a file that was
    # changed within a second to one as long would be taken for the old one.
    code = spec.loader.source_to_code(spec.loader.get_data(file), file)
    exec(code, module.__dict__)
  except SyntaxError as error:
    raise InputError(
      f"config file {file}, line {error.lineno}: {error.msg}"
    ) from None
  except Exception as error:  # somebody's code: all kinds
    raise InputError(_config_file_sentence(file, error)) from None
  if not hasattr(module, "get_config"):
    raise InputError(f"config file {file} defines no get_config()")
  return module


def _config_file_sentence(file: str, error: Exception) -> str:
  frames = traceback.extract_tb(error.__traceback__)
  path = os.path.abspath(file)
  lines = [f.lineno for f in frames if os.path.abspath(f.filename) == path]
  where = f"config file {file}" + (f", line {lines[-1]}" if lines else "")
  # ConfigDict raises AttributeError(KeyError("...")).
  inner = error.args[0] if error.args else ""
  inner = inner.args[0] if isinstance(inner, KeyError) else inner
  message = (str(inner).splitlines() or [type(error).__name__])[0]
  found = re.match(r"""(?:Key )?["'](\w+)["'](?: does not exist|$)""", message)
  if found and isinstance(error, AttributeError):
    return f"{where}: unknown config key {found[1]}; {nearest_key(found[1])}"
  if isinstance(error, KeyError):
    message = f"KeyError: {message}"
  return f"{where}: {message}"


def _read_value(key: str, text: str, kinds: tuple[type, ...]):
  if text == "None" and type(None) in kinds:
    return None
  kind = kinds[0]
  try:
    if kind is bool:
      return {"true": True, "false": False}[text.lower()]
    if kind is int:
      number = float(text) if re.search(r"[.eE]", text) else int(text)
      if number != int(number):
        raise ValueError
      return int(number)
    return text if kind is str else kind(text)
  except (ValueError, KeyError, OverflowError):
    wanted = {bool: "true or false", int: "a whole number", float: "a number"}
    raise InputError(f"{key} is {text!r}; it must be {wanted[kind]}") from None
