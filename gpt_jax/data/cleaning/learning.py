"""`python -m gpt_jax.data quality`: learns to tell good texts from bad ones.

The user names a set of each. Every tenth text, by a hash of it, is held out,
and the record says how well they are told apart.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from gpt_jax import cli, digest, files
from gpt_jax.data import card
from gpt_jax.data.cleaning import classifier, clean
from gpt_jax.exits import InputError

HELD_OUT = 10
# The fewest texts in a set.
MIN_TEXTS = 20


def _parser() -> argparse.ArgumentParser:
  parser = cli.build_parser(
    "data quality", __doc__.splitlines()[0], needs_config=False
  )
  for name, what in (("good", "to keep"), ("bad", "to leave out")):
    parser.add_argument(
      f"--{name}",
      required=True,
      metavar="SOURCE",
      help=f"texts like those {what}: a source as data.source has it",
    )
  parser.add_argument(
    "--out",
    required=True,
    metavar="FILE.json",
    help="the classifier, for --quality of `gpt_jax.data clean`",
  )
  return parser


def main(argv: list[str]) -> int:
  """Runs the command; returns the exit status."""
  args = cli.parse_flags(_parser(), argv)
  files.require_new({"--out": args.out})
  specs = {"good": args.good, "bad": args.bad}
  held: dict[str, list[str]] = {name: [] for name in specs}
  sets = {
    name: classifier.TextSet(_train_texts(spec, held[name]))
    for name, spec in specs.items()
  }
  for name, found in sets.items():
    if found.num_texts < MIN_TEXTS or not held[name]:
      raise InputError(
        f"--{name}={specs[name]} has {found.num_texts + len(held[name]):,} "
        f"texts, and {len(held[name]):,} of them fell to the tenth that is "
        f"held out; give a source of {2 * MIN_TEXTS} or more"
      )
  weights, bias = classifier.fit(sets["good"], sets["bad"])
  made = classifier.Classifier(weights, bias, {})
  scores = {name: list(map(made.score, texts)) for name, texts in held.items()}
  record: dict[str, Any] = {
    name: {
      "source": specs[name],
      "texts": found.num_texts,
      "texts held out": len(held[name]),
      "all were read": not found.is_cut,
    }
    for name, found in sets.items()
  }
  right = [score >= 0.5 for score in scores["good"]]
  right += [score < 0.5 for score in scores["bad"]]
  record |= {
    "right of those held out": round(sum(right) / len(right), 4),
    "area under ROC": round(classifier.separation(**scores), 4),
    "versions": card.versions(),
  }
  classifier.write(args.out, classifier.Classifier(weights, bias, record))
  for name, found in sets.items():
    cut = "; there was no room for more" if found.is_cut else ""
    print(f"{name}: {found.num_texts:,} texts{cut}")
  print(
    f"of {len(right):,} texts held out, {100 * sum(right) / len(right):.1f} % "
    f"are on the right side of 0.5; area under ROC {record['area under ROC']}"
  )
  print(f"classifier: {args.out}")
  return 0


def _train_texts(spec: str, held: list[str]) -> Iterator[str]:
  """Yields the texts to train on; puts those to hold out into `held`."""
  for _, text in clean.read_documents(spec):
    text = text[: classifier.MAX_CHARACTERS]
    if int(digest.of_text(text)[:8], 16) % HELD_OUT:
      yield text
    else:
      held.append(text)
