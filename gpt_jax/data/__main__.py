"""Prepares a config's text and prints what was prepared.

Training prepares missing text by itself. This command does it at another time,
adds --verify, and shows how the text was divided. Its subcommand `clean` writes
a source that is cleaned, `quality` learns which texts to leave out, `anonymity`
counts rows of a table that agree: cleaning/ has what that may mean.
"""

import argparse
import re

from gpt_jax import cli, config
from gpt_jax.machine import places

CLEAN = """`clean --source=SOURCE --out=FILE.jsonl [--rules=RULE,RULE]
[--key=FILE] [--repair=STEP,STEP] [--languages=CODE,CODE]
[--filters=FILTER,FILTER] [--copies=near] [--tests=SOURCE] [--licence=TEXT]
[--quality=FILE.json] [--least=P] [--report=FILE.html]` writes a cleaned source;
`clean --help` says how.

`quality --good=SOURCE --bad=SOURCE --out=FILE.json` learns to tell good texts
from bad ones, for `clean --quality=FILE.json`.

`anonymity --table=FILE --columns=NAME,NAME [--sensitive=NAME] [--k=K]` says how
many rows of a table look alike; `anonymity --help` says more.

`card --folder=DIR` says what a prepared set is and where it came from."""


def main(argv: list[str]) -> int:
  """Runs `python -m gpt_jax.data`; returns the exit status."""
  if argv[:1] == ["clean"]:
    from gpt_jax.data.cleaning import clean

    return clean.main(argv[1:])
  if argv[:1] == ["quality"]:
    from gpt_jax.data.cleaning import learning

    return learning.main(argv[1:])
  if argv[:1] == ["anonymity"]:
    from gpt_jax.data.cleaning import anonymity

    return anonymity.main(argv[1:])
  if argv[:1] == ["card"]:
    from gpt_jax.data import card

    return card.main(argv[1:])
  parser = cli.build_parser("data", f"{__doc__.splitlines()[0]}\n\n{CLEAN}")
  parser.add_argument(
    "--verify",
    action="store_true",
    help="read all prepared files again and check their hashes, and read all "
    "sources again and check that their text is what was prepared",
  )
  parser.add_argument(
    "--workers",
    type=_count,
    metavar="N",
    help="processes that encode (default: one for each core); what is prepared "
    "does not depend on it",
  )
  parser.add_argument(
    "--shard",
    type=_shard,
    metavar="I/N",
    help="encode only the share I, from 0, of N, and leave it beside the "
    "prepared sets; without this flag, shares that are there are merged",
  )
  args, overrides = cli.parse(parser, argv)
  frozen = config.freeze(cli.load_config(args.config, overrides))

  from gpt_jax.data import folders, objectives, overlap, prepare, shards

  objectives.check_sources(frozen.data)
  if args.shard is not None:
    prepare.prepare_shard(frozen.data, *args.shard, num_workers=args.workers)
    return 0
  prepared = prepare.prepare_data(
    frozen.data, splits=(), num_workers=args.workers
  )
  for _, token_set in prepared.train:
    if token_set.labels is None:
      shards.check_length(token_set, frozen.data.seq_len)
  if args.verify:
    for folder in prepared.folders:
      folders.verify_folder(folder)
    prepare.verify_text(frozen.data, prepared)
  train = [token_set for _, token_set in prepared.train]
  overlap.report(train, list(prepared.valid.values()), print)
  for folder in prepared.folders:
    note = folders.describe_share(folder)
    if note:
      print(places.rename(f"{folder}: {note}"))
  _print_table(prepared)
  return 0


def _count(text: str) -> int:
  if not re.fullmatch(r"[1-9][0-9]{0,3}", text):
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 9999")
  return int(text)


def _shard(text: str) -> tuple[int, int]:
  found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
  if not found or not int(found[1]) < int(found[2]):
    raise argparse.ArgumentTypeError(
      f"{text!r} is not I/N, with I from 0 to N - 1, as in 0/4"
    )
  return int(found[1]), int(found[2])


def _print_table(prepared) -> None:
  from gpt_jax.data import labels

  rows = [("set", "share", "tokens", "documents", "bytes", "bytes/token")]
  sets = [(f"{weight:.3f}", s) for weight, s in prepared.train]
  sets += [("", s) for s in prepared.valid.values()]
  for share, s in sets:
    rows.append(
      (
        s.name,
        share,
        f"{s.num_tokens:,}",
        f"{s.num_documents:,}",
        f"{s.num_bytes:,}",
        f"{s.num_bytes / max(1, s.num_tokens):.2f}",
      )
    )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for name, *numbers in rows:
    cells = [n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True)]
    print("  ".join([name.ljust(widths[0]), *cells]))
  where = places.rename(prepared.tokenizer_path)
  print(f"vocabulary {prepared.vocab_size:,}, in {where}")
  if prepared.labels is not None and prepared.labels.classes:
    names = prepared.labels.classes
    print(f"{len(names)} classes: {labels.some(names)}")


if __name__ == "__main__":
  cli.run(main)
