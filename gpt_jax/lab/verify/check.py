"""Checks whether arguments of gpt_jax.train will work on other machines.

launch/tpu_vm.sh and launch/gke.sh run this check before they request machines,
which cost money. Only committed files are copied to the machines, so a relative
path must name one. An absolute path names a file on the machines, which cannot
be checked here; a line says so. Downloads nothing and imports no jax.
"""

import os
import subprocess
import sys

from gpt_jax import cli, files
from gpt_jax import config as config_lib
from gpt_jax.config import Config, InputError
from gpt_jax.data import sources, tokenizers
from gpt_jax.machine import console

# A run of more epochs than this gets a warning.
MAX_EPOCHS = 20
# Average bytes of text per token, by the kind of tokenizer.
BYTES_PER_TOKEN = {"bytes": 1.0, "chars": 1.0}
OTHER_BYTES_PER_TOKEN = 4.0


def main(argv: list[str]) -> int:
  parser = cli.build_parser(
    "lab.verify.check",
    "Checks config, source and tokenizer of a run on other machines.\nThe "
    "arguments are those of gpt_jax.train.",
  )
  parser.add_argument("--workdir", metavar="DIR", help="as gpt_jax.train's")
  args, overrides = cli.parse(parser, argv)
  config = config_lib.freeze(cli.load_config(args.config, overrides))
  _require_there("--config", args.config.partition(":")[0])
  for line in check(config):
    print(console.plain(line))
  return 0


def check(config: Config) -> list[str]:
  """Returns warnings, and a line for each setting that cannot be checked here.

  Raises:
    InputError: a source or tokenizer does not exist, or is not committed and so
      would be missing on the machines.
  """
  return [*check_tokenizer(config), *check_source(config)]


def check_tokenizer(config: Config) -> list[str]:
  """Returns a line if the tokenizer's path cannot be checked here, else [].

  Raises:
    InputError: the tokenizer cannot be read, or is not committed.
  """
  kind, path = config_lib.tokenizer_spec(config.data.tokenizer)
  if kind not in ("gpt2", "hf"):
    return []
  if os.path.isabs(path):
    return [f"not checked: data.tokenizer is at {path} on the machines"]
  tokenizers.identity(config.data.tokenizer)
  _require_there("data.tokenizer", path)
  return []


def check_source(config: Config) -> list[str]:
  """Returns lines on sources that cannot be checked here, and on many epochs.

  Raises:
    InputError: a source does not exist, or is not committed.
  """
  lines, total = [], 0.0
  specs = [config.data.source]
  specs += [config.data.valid_source] if config.data.valid_source else []
  for mixture in specs:
    for _, spec in sources.parse_mixture(mixture):
      kind, path = sources.parse_spec(spec)
      if kind in sources.HOSTED or os.path.isabs(path):
        how = "fetched" if kind in sources.HOSTED else "read"
        lines.append(f"not checked: {spec} is {how} on the machines")
        total = float("inf")
        continue
      found = sources.open_source(spec)
      for _, file in found.files:
        _require_there(spec, file)
      if mixture == specs[0]:
        total += found.num_bytes() or float("inf")
  t = config.train
  tokens = config_lib.count_sequences(t, t.num_steps) * config.data.seq_len
  kind, _ = config_lib.tokenizer_spec(config.data.tokenizer)
  per_token = BYTES_PER_TOKEN.get(kind, OTHER_BYTES_PER_TOKEN)
  epochs = tokens * per_token / max(total, 1.0)
  if epochs > MAX_EPOCHS:
    lines.append(
      f"warning: {t.num_steps:,} steps are {tokens:.3g} tokens, and "
      f"{config.data.source} has about {total / per_token:.3g}: each is seen "
      f"about {epochs:,.0f} times; give data.source=... with more text, or "
      "fewer steps"
    )
  return lines


def _require_there(name: str, path: str) -> None:
  """Raises InputError unless a file is tracked by git.

  Outside of a git checkout, nothing is checked.

  Args:
    name: the flag or config key that names the file, for error sentences.
  """
  root = _root()
  if root is None:
    return
  full = os.path.realpath(files.user_path(name, path))
  if not full.startswith(root + os.sep):
    raise InputError(
      f"{name} names {path}, which is outside of the repo; what is not in it "
      "does not go along: commit it, or give its absolute path on the machines"
    )
  found = subprocess.run(
    ["git", "-C", root, "ls-files", "--error-unmatch", "--", full],
    capture_output=True,
  )
  if found.returncode:
    raise InputError(
      f"{name} names {path}, which is not committed; only what is committed "
      "goes along: commit it, or give its absolute path on the machines"
    )


def _root() -> str | None:
  here = os.path.dirname(os.path.abspath(__file__))
  words = ["git", "-C", here, "rev-parse", "--show-toplevel"]
  try:
    found = subprocess.run(words, capture_output=True, text=True)
  except OSError:
    return None
  return os.path.realpath(found.stdout.strip()) if found.stdout else None


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
