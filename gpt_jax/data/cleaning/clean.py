"""`python -m gpt_jax.data clean`: a source, cleaned, as JSON lines.

A document is read, cleaned and written before the next is read; to find copies,
all are read once before. The file gets its name when it is whole; a run that
fails leaves none.
"""

import argparse
import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gpt_jax import cli, files
from gpt_jax.data import card, sources
from gpt_jax.data.cleaning import (
  classifier,
  duplicates,
  identity,
  pseudonyms,
  quality,
  repair,
  report,
  signing,
)
from gpt_jax.data.sources.document import Document, Source
from gpt_jax.exits import InputError

# Sources of records with several fields; clean would keep only their text.
NOT_TEXT = (*sources.PAIRED, *sources.LABELLED, *sources.CHATS)
# The most characters of a document, which is cleaned as a whole.
MAX_CHARACTERS = 1 << 26
# The least probability of a wanted language for a document to be kept, from
# FineWeb's filter for English.
MIN_LIKELY = 0.65


def _parser() -> argparse.ArgumentParser:
  parser = cli.build_parser(
    "data clean", __doc__.splitlines()[0], needs_config=False
  )
  parser.add_argument(
    "--source",
    required=True,
    metavar="SOURCE",
    help="what to clean: a source as data.source has it, or a mixture, whose "
    "weights do not count here",
  )
  parser.add_argument(
    "--out",
    required=True,
    metavar="FILE.jsonl",
    help="where the cleaned documents go, an object with name and text a line",
  )
  parser.add_argument(
    "--rules",
    default=",".join(identity.RULES),
    metavar="RULE,RULE",
    help="what is replaced, or none (default %(default)s)",
  )
  parser.add_argument(
    "--key",
    metavar="FILE",
    help="replace by pseudonyms with the key in this file, the same for the "
    "same value; without it, by the type alone",
  )
  _add_steps(parser)
  parser.add_argument(
    "--licence",
    metavar="TEXT",
    help="the licence of the source, for the record beside the output",
  )
  parser.add_argument(
    "--report",
    metavar="FILE.html",
    help="a page with counts, and examples of what was left out",
  )
  return parser


def _add_steps(parser: argparse.ArgumentParser) -> None:
  """Adds the flags for repairing documents and for leaving documents out."""
  parser.add_argument(
    "--repair",
    default="",
    metavar="STEP,STEP",
    help="what is mended first: unicode, characters that wrong decodings "
    "made; normal, one kind of line ends, spaces and composed characters; "
    "stop_words, English words that say little (default: none)",
  )
  parser.add_argument(
    "--languages",
    metavar="CODE,CODE",
    help="leave out documents in other languages than these, as in en,zh",
  )
  parser.add_argument(
    "--filters",
    default="",
    metavar="FILTER,FILTER",
    help="which documents are left out: quality rules, or papers, of "
    f"{', '.join(quality.PAPERS)} (default: none)",
  )
  parser.add_argument(
    "--quality",
    metavar="FILE.json",
    help="leave out documents that this classifier, which `data quality` "
    "wrote, takes for bad ones",
  )
  parser.add_argument(
    "--least",
    type=float,
    default=0.5,
    help="with --quality: the probability of being good that documents to "
    "keep have (default %(default)s)",
  )
  parser.add_argument(
    "--tests",
    metavar="SOURCE",
    help="evaluation sets: documents that share a 13-gram with one are left "
    "out, or the whole of an item of 8 to 12 words",
  )
  parser.add_argument(
    "--copies",
    choices=["keep", "exact", "near"],
    default="keep",
    help="exact: leave out documents of equal text; near: also those whose "
    "5-grams have a Jaccard index of 0.8 with an earlier one's (default "
    "%(default)s)",
  )


def main(argv: list[str]) -> int:
  """Runs the command; returns the exit status."""
  args = cli.parse_flags(_parser(), argv)
  args.source = files.user_text("--source", args.source)
  filters = quality.parse_filters(args.filters)
  rules = identity.parse_rules(args.rules)
  key = None if args.key is None else pseudonyms.read_key(args.key)
  named = {"--out": args.out, "--report": args.report}
  files.require_new({k: v for k, v in named.items() if v is not None})
  identities = [one.fingerprint() for one in open_sources(args.source)]
  steps = repair.parse_steps(args.repair)
  rater = None if args.quality is None else _read_rater(args)
  judge = Judge(filters, args.tests, args.languages, rater)
  copies = find_copies(args.source, steps, judge, args.copies)
  replaced, says = dict.fromkeys(rules, 0), judge.says(args.copies)
  found = report.Report(replaced, says, steps)
  with files.new_file(args.out) as file:
    for number, (name, text) in enumerate(read_documents(args.source)):
      found.num_documents += 1
      found.has_text |= bool(text)
      text = mend(text, steps, found.mend)
      failed = judge(text)
      if failed is None and number in copies:
        failed = "copy", copies[number]
      text = identity.deidentify(text, rules, key, found.replaced)
      if failed is not None:
        found.leave_out(*failed, name, text)
        continue
      file.write(_line(name, text))
    _require_whole(args.source, identities, found.has_text)
    if args.report is not None:
      files.write_text(args.report, found.page(args.source))
  print(found.describe())
  if judge.tests is not None and judge.tests.num_short:
    print(
      f"{judge.tests.num_short:,} items of --tests are too short to look for"
    )
  card.write_record(
    args.out,
    {
      "source": args.source,
      "licence": args.licence,
      "repair": steps,
      "languages": args.languages,
      "filters": filters,
      **({} if rater is None else {"quality": rater.describe()}),
      "copies": args.copies,
      "tests": args.tests,
      "replaced by": "type" if key is None else "pseudonym",
      "documents read": found.num_documents,
      "documents written": found.num_kept,
      "left out": found.left_out,
      "mended": found.mended,
      "replaced": found.replaced,
      "versions": card.versions(),
    },
  )
  return 0


def _require_whole(mixture: str, before: list[str], has_text: bool) -> None:
  """Raises InputError if a mixture has no text, or changed meanwhile."""
  after = [one.fingerprint() for one in open_sources(mixture)]
  if before != after:
    raise InputError(
      f"{mixture} changed while it was read; start again when it is whole"
    )
  if not has_text:
    raise InputError(
      f"{mixture} is empty: no document holds any text; give a source that "
      "has some"
    )


def _read_rater(args: argparse.Namespace) -> "Rater":
  if not 0 < args.least < 1:
    raise InputError(
      f"--least is {args.least}; it must be between 0 and 1, as 0.5 is"
    )
  path = files.user_path("--quality", args.quality)
  return Rater(classifier.read("--quality", path), args.least)


@dataclasses.dataclass(frozen=True)
class Rater:
  """A classifier, and the least probability that a kept document has."""

  classifier: classifier.Classifier
  least: float

  def describe(self) -> dict[str, Any]:
    """Returns the threshold, and what the classifier was trained on."""
    own = {"least": self.least, "digest": self.classifier.digest}
    return own | {"trained": self.classifier.record}


class Judge:
  """Finds the first rule that a document breaks, if there is one.

  It looks at each document alone; `find_copies` finds copies.

  Args:
    filters: names of quality.FILTERS.
    tests: the source of evaluation sets, or None.
    languages: codes of the languages that are kept, or None for all.
    rater: the classifier that rejects bad texts, or None.
  """

  def __init__(
    self,
    filters: tuple[str, ...],
    tests: str | None,
    languages: str | None = None,
    rater: Rater | None = None,
  ):
    self._filters, self._rater = filters, rater
    self.tests = self._languages = None
    if languages is not None:
      self._languages = repair.Languages(languages)
    if tests is not None:
      texts = (text for _, text in read_documents(tests))
      self.tests = duplicates.Contamination(texts)
      if not self.tests.num_items:
        raise InputError(
          f"--tests={tests} is empty; give evaluation sets that have texts"
        )

  def __call__(self, text: str) -> tuple[str, float] | None:
    if self._languages is not None:
      likely = self._languages.probability(text)
      if likely < MIN_LIKELY:
        return "language", likely
    failed = quality.first_failed(text, self._filters)
    if failed is None and self._rater is not None:
      score = self._rater.classifier.score(text)
      failed = ("quality", score) if score < self._rater.least else None
    if failed is None and self.tests is not None:
      count = self.tests.count(text)
      failed = ("tests", count) if count else None
    return failed

  def says(self, copies: str) -> dict[str, str]:
    """Returns {filter: the condition that documents meet to be kept}."""
    says = {}
    if self._languages is not None:
      wanted = " or ".join(self._languages.wanted)
      says["language"] = f"{wanted}, with a probability of {MIN_LIKELY}"
    says |= {name: quality.FILTERS[name].says for name in self._filters}
    if self._rater is not None:
      says["quality"] = f"good with a probability of {self._rater.least}"
    if self.tests is not None:
      says["tests"] = "no n-gram of an evaluation set"
    if copies != "keep":
      says["copy"] = f"no {copies} copy of an earlier document"
    return says


def mend(
  text: str,
  steps: tuple[str, ...],
  note: Callable[[str], None] = lambda step: None,
) -> str:
  """Returns a text after the given steps of repair.STEPS.

  Args:
    note: called with each step that changed the text.
  """
  for step in steps:
    new = repair.STEPS[step](text)
    if new != text:
      note(step)
    text = new
  return text


def find_copies(
  mixture: str, steps: tuple[str, ...], judge: Judge, kind: str
) -> dict[int, int]:
  """Returns {index of a copy: index of the first document like it}.

  Documents that the judge rejects do not count as first.
  """
  if kind == "keep":
    return {}
  seen: dict[bytes, int] = {}
  numbers, copies = [], {}

  def read_firsts() -> Iterator[str]:
    """Yields the texts that are not exact copies, and notes those that are."""
    for number, (_, text) in enumerate(read_documents(mixture)):
      text = mend(text, steps)
      if judge(text) is not None:
        continue
      digest = hashlib.sha256(text.encode()).digest()[:16]
      first = seen.setdefault(digest, number)
      if first != number:
        copies[number] = first
      else:
        numbers.append(number)
        yield text

  if kind == "exact":
    collections.deque(read_firsts(), maxlen=0)
    return copies
  near = duplicates.NearDuplicates()
  for signature in signing.sign_all(read_firsts()):
    near.add(signature)
  for own, first in enumerate(near.copies().tolist()):
    if own != first:
      copies[numbers[own]] = numbers[first]
  return copies


def read_documents(mixture: str) -> Iterator[tuple[str, str]]:
  """Yields (name, text) of the documents of all sources of a mixture.

  Raises:
    InputError: a source cannot be read, or a document is too long.
  """
  for source in open_sources(mixture):
    for document in source.documents():
      yield files.readable(document.name), join_pieces(document, source.spec)


def open_sources(mixture: str) -> list[Source]:
  """Returns all sources of a mixture.

  Raises:
    InputError: a source has records with several fields, or cannot be opened.
  """
  specs = [spec for _, spec in sources.parse_mixture(mixture)]
  for spec in specs:
    if sources.parse_spec(spec)[0] in NOT_TEXT:
      raise InputError(
        f"{spec!r} is a source of records with several fields; clean reads "
        "documents, as text:GLOB and jsonl:GLOB have them"
      )
  return [sources.open_source(spec) for spec in specs]


def join_pieces(document: Document, spec: str) -> str:
  """Returns the whole text of a document."""
  pieces, size = [], 0
  for piece in document.pieces:
    pieces.append(piece)
    size += len(piece)
    if size > MAX_CHARACTERS:
      raise InputError(
        f"the document {document.name} of {spec} has more than "
        f"{MAX_CHARACTERS:,} characters; divide it"
      )
  return "".join(pieces)


def write_documents(path: str, documents: Iterable[tuple[str, str]]) -> None:
  """Writes documents as JSON lines with name and text."""
  with files.new_file(path) as file:
    for name, text in documents:
      file.write(_line(name, text))


def _line(name: str, text: str) -> str:
  row = {"name": name, "text": text}
  return json.dumps(row, ensure_ascii=False) + "\n"
