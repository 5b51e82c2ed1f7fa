"""The command line of every verb: flags, --help, errors as one sentence.

jax is never imported here, so that --help and errors appear at once. Each
config key is a flag, --config.SECTION.KEY=VALUE, typed by config/schema.py.
"""

import argparse
import contextlib
import importlib.machinery
import inspect
import os
import re
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

import gpt_jax
from gpt_jax import exits, files
from gpt_jax.config import KEYS, WEIGHTS, InputError, nearest, nearest_key
from gpt_jax.machine import (
  places,
  processes,
  runtime,
  signals,
  streams,
  watchdog,
)

DEFAULT_CONFIG = "configs/tiny.py"
MAX_DEVICES = 4096
# A flag is a path if its METAVAR begins with one of these words.
_PATHS = ("DIR", "FILE", "GLOB", "ROOT")
_KEY_LINE = re.compile(r"^  (?:(\w+) = )?(\w+)\.(\w+) = (.*)$")


def build_parser(
  verb: str,
  description: str,
  needs_config: bool = True,
  default_config: str = "%(default)s",
) -> argparse.ArgumentParser:
  """Returns the parser that all verbs share; a verb adds its own flags.

  Args:
    default_config: what --help names as the default of --config.
  """
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
      default=DEFAULT_CONFIG,
      metavar="FILE[:VARIANT]",
      help=f"config file, and a variant in it (default {default_config})",
    )
  parser.add_argument(
    "--devices",
    type=int,
    metavar="N",
    help="simulate N devices on this CPU",
  )
  parser.error = _raise_input_error
  return parser


def add_run(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of a verb that reads a run: which, and what of it."""
  parser.add_argument(
    "--workdir", required=True, metavar="DIR|ADDRESS", help="folder of the run"
  )
  parser.add_argument(
    "--average",
    metavar="ema|last:N",
    help="read the moving average of the parameters (train.ema_decay), or the "
    "mean of the N newest checkpoints",
  )
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
    help="int8 and int4 round the matrices (default %(default)s)",
  )


def parse(
  parser: argparse.ArgumentParser, argv: list[str]
) -> tuple[argparse.Namespace, dict[str, str]]:
  """Returns (args, overrides): the verb's flags and {"a.b": "text"}.

  ~ is expanded in flags whose METAVAR is DIR, FILE, GLOB or ROOT.

  Raises:
    InputError: an argument is unknown, or not a valid path.
  """
  flags = [o for a in parser._actions for o in a.option_strings]
  # Before argparse, which would report a mistyped required flag as missing.
  for word in argv:
    flag = word.split("=")[0]
    if re.fullmatch(r"--[\w-]+", flag) and flag not in flags:
      raise InputError(f"unknown argument {flag}; {nearest(flag, flags)}")
  args, rest = parser.parse_known_args(argv)
  if args.devices is not None and not 1 <= args.devices <= MAX_DEVICES:
    raise InputError(
      f"--devices is {args.devices}; it must be 1 or more, at most "
      f"{MAX_DEVICES}"
    )
  for action in parser._actions:
    metavar = str(action.metavar or "")
    kind = re.sub("[^A-Z].*", "", metavar)
    value = getattr(args, action.dest, None)
    if kind in _PATHS and isinstance(value, str) and value != action.default:
      name = (*action.option_strings, metavar)[0]
      may = metavar.endswith("ADDRESS")
      setattr(args, action.dest, files.user_path(name, value, may))
      if (kind, action.dest) == ("DIR", "out"):  # not after hours of computing
        files.require_folder(name, getattr(args, action.dest))
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


def parse_flags(
  parser: argparse.ArgumentParser, argv: list[str]
) -> argparse.Namespace:
  """Returns the flags, as parse does, of a verb that takes no config keys."""
  args, overrides = parse(parser, argv)
  for key in overrides:
    raise InputError(f"--config.{key} does nothing here; leave it out")
  return args


def load_config(path: str, overrides: dict[str, str]):
  """Returns the ConfigDict of `FILE[:VARIANT]` with overrides applied.

  Raises:
    InputError: no such file or variant, an unknown key, or a value that does
      not have the key's type.
  """
  file, variant = find_config(path)
  get_config = _import_file(file).get_config

  def call():
    if variant and not inspect.signature(get_config).parameters:
      raise InputError(f"{file} has no variants; found :{variant}")
    return get_config(variant) if variant else get_config()

  config = _call_foreign(file, call)
  if not hasattr(config, "items"):
    raise InputError(
      f"get_config() of {file} returned a {type(config).__name__}; it must "
      "return the ConfigDict of configs/base.py with its values changed"
    )
  for key, text in overrides.items():
    set_key(config, key, text)
  return config


def call_sweep(path: str, add: Callable) -> None:
  """Calls sweep(add) of a config file.

  Raises:
    InputError: the file has no sweep, or it raised.
  """
  file, _ = find_config(path)
  module = _import_file(file)
  if not callable(getattr(module, "sweep", None)):
    raise InputError(
      f"config file {file} defines no sweep(add); configs/warmup_decay.py has "
      "one"
    )
  _call_foreign(file, lambda: module.sweep(add))


def find_config(path: str) -> tuple[str, str]:
  """Returns (file, variant or "") of `FILE[:VARIANT]`.

  The longest name of an existing file wins, since a path may contain a colon.
  If there is none, configs/tiny.py, tiny.py and tiny all name the file that
  comes with gpt_jax.
  """
  if files.is_address(path):
    files.user_path("--config", path)  # raises: it is code, which runs here
  ends = [len(path)] + [m.start() for m in re.finditer(":", path)][::-1]
  splits = [(path[:end], path[end + 1 :]) for end in ends]
  for file, variant in splits:
    if os.path.lexists(file) and not os.path.isdir(file):
      return file, variant
  for file, variant in splits:
    own = os.path.join(_own_configs(), os.path.basename(file))
    own = own if own.endswith(".py") else f"{own}.py"
    if os.path.dirname(file) in ("", "configs") and os.path.isfile(own):
      return own, variant
  file, _, variant = path.partition(":")
  return file, variant


def set_key(config: Any, dotted: str, text: str) -> None:
  """Sets one key of a ConfigDict from its text on the command line."""
  if dotted not in KEYS:
    raise InputError(f"unknown config key {dotted}; {nearest_key(dotted)}")
  text = files.user_text(dotted, text)
  value = _read_value(dotted, text, KEYS[dotted].types)
  node = config
  *sections, key = dotted.split(".")
  for section in sections:
    if section not in node or not hasattr(node[section], "items"):
      raise InputError(f"config section {section} is missing")
    node = node[section]
  node[key] = value


def config_help() -> str:
  """Returns the keys as text for --help, with options.

  Values and reasons come from base.py, options from config/schema.py.
  """
  lines = ["config keys (--config.KEY=VALUE), with their values in base.py:"]
  section_of, reason = {"config": ""}, []
  source = files.read_text(os.path.join(_own_configs(), "base.py"))
  for line in source.splitlines():
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
        name = section_of[owner] + key
        lines.append(f"  {name} = {value}")
        lines.extend(f"      {r}" for r in reason)
        if len(KEYS[name].forms) > 1:
          lines.append(f"      {' | '.join(KEYS[name].forms)}")
    reason = []
  return "\n".join(lines)


def run(
  main: Callable[[list[str]], int],
  argv: list[str] | None = None,
  is_run: bool = False,
) -> None:
  """Runs a verb; an error that the user can mend is one sentence and exit 2.

  If one of several processes fails, it ends the others too.

  Args:
    main: takes the arguments of the verb and returns the exit code.
    argv: those arguments; None: the process's own.
    is_run: the verb's results are in a folder, so it goes on when its output
      cannot be written.
  """
  streams.hold(is_comment=is_run)
  signals.hold(is_run)
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
    code = _give_up(exits.BAD_INPUT, files.to_sentence(error))
  except Exception as error:
    if processes.count() == 1:
      raise
    processes.settle()
    traceback.print_exc()
    code = _give_up(exits.FAILED, f"{type(error).__name__}, see its log")
  if is_run:
    signals.end_with(code)
  processes.leave()
  try:
    sys.stdout.flush()
  except OSError:
    streams.drop_output()
  if is_run:
    # The exit waits for threads, and one may hang on a file system.
    with contextlib.suppress(InputError):
      watchdog.bound_exit(code, runtime.stuck_seconds())
  signals.release()
  sys.exit(code)


def _give_up(code: int, why: str) -> int:
  """Prints why in one line, process 0 for all processes; returns `code`."""
  why, index = places.rename(why), processes.index()
  if index == 0:
    print(f"gpt_jax: {why}", file=sys.stderr)
  processes.end(code, why)
  if index > 0:
    print(f"gpt_jax: process {index}: {why}", file=sys.stderr, flush=True)
  if processes.count() > 1:
    os._exit(code)  # process 0 does not answer, so `leave` would wait forever
  return code


def _raise_input_error(message: str):
  raise InputError(message)


def _own_configs() -> str:
  """Returns the folder of base.py, of an installed package or a checkout."""
  package = os.path.dirname(os.path.abspath(gpt_jax.__file__))
  inside = os.path.join(package, "configs")
  beside = os.path.join(os.path.dirname(package), "configs")
  return inside if os.path.isdir(inside) else beside


def _name_configs() -> None:
  """Makes `from configs import base` find gpt_jax's own, from any folder.

  Another package named configs, in the current folder or installed, is
  searched after it.
  """
  own = _own_configs()
  found = sys.modules.get("configs")
  if found is not None and own in list(found.__path__)[:1]:
    return
  spec = importlib.machinery.PathFinder.find_spec("configs")
  others = list(getattr(spec, "submodule_search_locations", None) or [])
  for name in [n for n in sys.modules if n.split(".")[0] == "configs"]:
    del sys.modules[name]
  module = sys.modules["configs"] = types.ModuleType("configs")
  module.__path__ = [own, *(o for o in others if o != own)]


def _import_file(file: str):
  if os.path.isdir(file):
    raise InputError(f"config file {file} is a directory; name a file in it")
  try:
    data = files.read_bytes(file)
  except files.Damage as damage:
    own = _own_configs()
    here = [n for n in sorted(os.listdir(own)) if re.match(r"[a-z]\w*\.py", n)]
    more = f"; in {own}/ are {', '.join(here)}" if damage.is_missing else ""
    raise InputError(f"config file {file} {damage}{more}") from None
  if not file.endswith(".py"):
    raise InputError(f"config file {file} is not Python")
  _name_configs()
  module = types.ModuleType("gpt_jax_config")
  module.__file__ = file

  def execute():
    # From source: a .pyc is matched by mtime (1 s) and size, so after an edit
    # of the same length within a second it would run stale.
    exec(compile(data, file, "exec", dont_inherit=True), module.__dict__)

  _call_foreign(file, execute)
  if not callable(getattr(module, "get_config", None)):
    raise InputError(f"config file {file} defines no get_config()")
  return module


def _call_foreign(file: str, call: Callable[[], Any]):
  """Returns call(), which runs code of a config file.

  Raises:
    InputError: the code raised an error, or tried to end the process.
  """
  try:
    return call()
  except (InputError, KeyboardInterrupt):
    raise
  except SyntaxError as error:
    where = f", line {error.lineno}" if error.lineno else ""
    raise InputError(f"config file {file}{where}: {error.msg}") from None
  except SystemExit as error:
    said = f"sys.exit({error.code!r})" if error.args else "sys.exit()"
    raise InputError(
      f"config file {file} called {said}; it must return from get_config()"
    ) from None
  except BaseException as error:  # a user's code can raise anything
    raise InputError(_config_file_sentence(file, error)) from None


def _config_file_sentence(file: str, error: BaseException) -> str:
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
    numbers = "a whole number" if kind is int else "a number"
    wanted = "true or false" if kind is bool else numbers
    raise InputError(f"{key} is {text!r}; it must be {wanted}") from None
