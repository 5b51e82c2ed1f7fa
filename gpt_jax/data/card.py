"""`python -m gpt_jax.data card`: what a prepared set is, as Markdown.

`clean` leaves a record beside its output (OUTPUT.card.json): what it read, what
it did, with the versions that did it, and how much it left out. Preparing reads
the records of a source's files into the manifest, from which the card is made.
"""

import argparse
import importlib.metadata
import os
from collections.abc import Sequence
from typing import Any

import gpt_jax
from gpt_jax import cli, digest, files
from gpt_jax.data import folders
from gpt_jax.data import manifest as manifest_lib
from gpt_jax.exits import InputError

MANIFEST = "manifest.json"
ENDING = ".card.json"
# The most records of one source that a manifest stores.
MAX_RECORDS = 1000
_PACKAGES = ("ftfy", "phonenumbers", "py3langid")


def versions() -> dict[str, str]:
  """Returns the versions of gpt_jax and the installed cleaning packages."""
  found = {"gpt_jax": gpt_jax.__version__}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def write_record(path: str, record: dict[str, Any]) -> None:
  """Writes the record of a file that clean has written."""
  with files.open_bytes(path) as file:
    sha256 = digest.of_file(file)
  size = {"bytes": os.path.getsize(path), "sha256": sha256}
  files.write_text(f"{path}{ENDING}", manifest_lib.dump(record | size))


def read_records(paths: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
  """Returns the records that lie beside the files of a source.

  If a file's size has changed since, its record describes another text and is
  left out.

  Args:
    paths: (name, path) of the files.
  """
  found = []
  for name, path in paths[:MAX_RECORDS]:
    try:
      record = files.read_json(f"{path}{ENDING}")
    except files.Damage:
      continue
    if isinstance(record, dict) and record.get("bytes") == os.path.getsize(
      path
    ):
      found.append({"file": files.readable(name), **record})
  return found


def describe(folder: str) -> str:
  """Returns the card of a prepared folder as Markdown.

  Raises:
    InputError: it is no prepared folder.
  """
  content = manifest_lib.read(folder)
  tokenizer, splits = content["tokenizer"], content["splits"]
  key = manifest_lib.text_key(content)
  rows = [
    ("source", content["source"]),
    ("text", f"{key}: {content[key]}" if key else "no hash was noted"),
    ("divided by", f"{content['split']}, {content['valid_frac']:g} held out"),
    ("tokenizer", f"{tokenizer['spec']}, {tokenizer['vocab_size']:,} ids"),
  ]
  if "encryption" in content:
    rows.append(("encrypted with key", content["encryption"]["id"]))
  lines = [f"# {folders.slug(content['source'])}", ""]
  lines += _table(("", ""), rows)
  counts = [
    (
      split,
      *(f"{part[c]:,}" for c in ("num_documents", "num_tokens", "num_bytes")),
      _digest_of_ids(part),
    )
    for split, part in splits.items()
  ]
  head = ("split", "documents", "tokens", "bytes", "sha256 of its ids")
  lines += ["", *_table(head, counts)]
  for record in content.get("records", []):
    lines += ["", f"## {_plain(record['file'])}", ""]
    told = [(k, _show(v)) for k, v in record.items() if k != "file"]
    lines += _table(("", ""), told)
  if not content.get("records"):
    lines += ["", "No record of cleaning lay beside its files."]
  return "\n".join(lines) + "\n"


def describe_all(paths: Sequence[str]) -> str:
  """Returns the cards of some prepared folders, one below the other."""
  return "\n".join(map(describe, paths))


def _digest_of_ids(part: dict[str, Any]) -> str:
  """Returns a digest of the shards of a split."""
  return digest.of_json([shard["sha256"] for shard in part["shards"]])


def _table(head: tuple[str, ...], rows: list[tuple]) -> list[str]:
  line = lambda cells: f"| {' | '.join(_plain(str(c)) for c in cells)} |"
  return [line(head), "|" + "---|" * len(head), *map(line, rows)]


def _plain(text: str) -> str:
  """Returns the text, escaped so that it cannot break out of a table cell."""
  shown = "".join(c if c.isprintable() else " " for c in text)
  for mark in "\\`|<>[]*_":
    shown = shown.replace(mark, f"\\{mark}")
  return shown


def _show(value: Any) -> str:
  if isinstance(value, dict):
    return ", ".join(f"{k} {_show(v)}" for k, v in value.items()) or "none"
  if isinstance(value, list):
    return ", ".join(map(_show, value)) or "none"
  if value is None:
    return "not stated"
  return f"{value:,}" if type(value) is int else str(value)


def main(argv: list[str]) -> int:
  """Runs the command; returns the exit status."""
  parser: argparse.ArgumentParser = cli.build_parser(
    "data card", __doc__.splitlines()[0], needs_config=False
  )
  parser.add_argument(
    "--folder", required=True, metavar="DIR", help="a prepared folder"
  )
  parser.add_argument(
    "--out", metavar="FILE.md", help="write it there instead of printing it"
  )
  args = cli.parse_flags(parser, argv)
  folder = files.user_path("--folder", args.folder)
  if not os.path.isfile(os.path.join(folder, MANIFEST)):
    raise InputError(
      f"--folder={args.folder} is not a prepared set: it has no "
      f"{MANIFEST}; give one of the folders in data.dir"
    )
  text = describe(folder)
  if args.out is None:
    print(text, end="")
    return 0
  files.require_new({"--out": args.out})
  files.write_text(args.out, text)
  return 0
