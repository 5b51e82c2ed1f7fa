"""The quality rules of Gopher, C4 and FineWeb, with their published numbers.

Each rule is a measure of a document, and bounds within which a document is
kept. The rules were made for English web pages: white space separates words, so
that Chinese, which has none, has hardly any words.

Gopher: Rae et al. 2021, arXiv:2112.11446, section A.1.1 and table A1. C4:
Raffel et al. 2020, JMLR 21 (140), section 2.2; the code that made the data set
has 3 sentences and 5 words where the paper has 5 and 3. FineWeb: Penedo et al.
2024, arXiv:2406.17557, section 3.5; where datatrove, whose code made the data
set, has another number or one more rule, that is the one here.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable

from gpt_jax.config import nearest
from gpt_jax.exits import InputError

_STOP_WORDS = frozenset("the be to of and that have with".split())
_BULLETS = ("•", "‣", "▪", "●", "◦", "*", "-", "–")
_ELLIPSES = ("...", "…")
_TERMINALS = (".", "!", "?", '"', "”")
_SENTENCE = re.compile(r"[.!?][\"'”’)]*(?=\s|$)")


class Page:
  """A text, with its words, lines and paragraphs, each computed once."""

  def __init__(self, text: str):
    self.text = text

  @functools.cached_property
  def words(self) -> list[str]:
    return self.text.split()

  @functools.cached_property
  def lines(self) -> list[str]:
    return [line.strip() for line in self.text.splitlines() if line.strip()]

  @functools.cached_property
  def paragraphs(self) -> list[str]:
    parts = re.split(r"\n\s*\n", self.text)
    return [part.strip() for part in parts if part.strip()]


def _share(count: float, total: float) -> float:
  return count / total if total else 0.0


def _share_of_lines(page: Page, test: Callable[[str], object]) -> float:
  return _share(sum(map(bool, map(test, page.lines))), len(page.lines))


def _repeated(parts: list[str], size: Callable[[str], int]) -> float:
  """Returns the share of parts, weighted by `size`, that occurred before."""
  seen, repeated = set(), 0
  for part in parts:
    repeated += size(part) if part in seen else 0
    seen.add(part)
  return _share(repeated, sum(map(size, parts)))


def _one(part: str) -> int:
  return 1


def _grams(page: Page, size: int) -> list[str]:
  words = page.words
  return [" ".join(words[i : i + size]) for i in range(len(words) - size + 1)]


def _characters(page: Page) -> int:
  return sum(map(len, page.words)) + max(0, len(page.words) - 1)


def top_gram_share(page: Page, size: int) -> float:
  """Returns the share of characters in the occurrences of one top n-gram.

  It is the n-gram that covers most characters. One that occurs once counts 0.
  """
  counts = collections.Counter(_grams(page, size))
  repeated = [len(g) * n for g, n in counts.items() if n > 1]
  return min(1.0, _share(max(repeated, default=0), _characters(page)))


def repeated_gram_share(page: Page, size: int) -> float:
  """Returns the share of characters in n-grams that occur earlier in the text.

  A character in several of them counts once, as the paper says.
  """
  words, seen, covered = page.words, set(), bytearray(len(page.words))
  for place, gram in enumerate(_grams(page, size)):
    if gram in seen:
      covered[place : place + size] = b"\1" * size
    seen.add(gram)
  marked = sum(len(w) for w, c in zip(words, covered, strict=True) if c)
  return _share(marked, sum(map(len, words)))


@dataclasses.dataclass(frozen=True)
class Rule:
  """A measure, and the bounds within which a document is kept.

  Attributes:
    says: the rule in the paper's terms.
    least, most: inclusive bounds of the measure.
    below, above: exclusive bounds of the measure.
  """

  says: str
  measure: Callable[[Page], float]
  least: float | None = None
  most: float | None = None
  below: float | None = None
  above: float | None = None

  def keeps(self, value: float) -> bool:
    return not (
      (self.least is not None and value < self.least)
      or (self.most is not None and value > self.most)
      or (self.below is not None and value >= self.below)
      or (self.above is not None and value <= self.above)
    )


def _mean_word(page: Page) -> float:
  return _share(sum(map(len, page.words)), len(page.words))


def _symbols(page: Page, symbols: tuple[str, ...]) -> float:
  return _share(sum(map(page.text.count, symbols)), len(page.words))


def _alphabetic(page: Page) -> float:
  words = page.words
  return _share(sum(any(map(str.isalpha, w)) for w in words), len(words))


def _stop_words(page: Page) -> int:
  return sum(
    word.strip(".,;:!?\"'()") in _STOP_WORDS
    for word in map(str.lower, page.words)
  )


def _ends(line: str) -> bool:
  return line.endswith(_TERMINALS)


def c4_lines(text: str) -> str:
  """Returns the lines of a text that C4 keeps.

  They end with a terminal punctuation mark, not an ellipsis, have 3 words or
  more, and do not mention Javascript.
  """
  return "\n".join(
    line
    for line in map(str.strip, text.splitlines())
    if _ends(line)
    and not line.endswith(_ELLIPSES)
    and len(line.split()) >= 3
    and "javascript" not in line.lower()
  )


def _gopher() -> dict[str, Rule]:
  rules = {
    "words": Rule("50 to 100,000 words", lambda p: len(p.words), 50, 100_000),
    "word_length": Rule("mean word length 3 to 10", _mean_word, 3, 10),
    "hashes": Rule(
      "hash signs to words at most 0.1", lambda p: _symbols(p, ("#",)), most=0.1
    ),
    "ellipses": Rule(
      "ellipses to words at most 0.1",
      lambda p: _symbols(p, _ELLIPSES),
      most=0.1,
    ),
    "bullets": Rule(
      "at most 90 % of lines begin with a bullet",
      lambda p: _share_of_lines(p, lambda line: line.startswith(_BULLETS)),
      most=0.9,
    ),
    "line_ellipses": Rule(
      "at most 30 % of lines end with an ellipsis",
      lambda p: _share_of_lines(p, lambda line: line.endswith(_ELLIPSES)),
      most=0.3,
    ),
    "alphabetic": Rule("80 % of words have a letter", _alphabetic, least=0.8),
    "stop_words": Rule(
      "2 of: the be to of and that have with", _stop_words, least=2
    ),
  }
  for name, parts, size, most in (
    ("line", "lines", _one, 0.3),
    ("paragraph", "paragraphs", _one, 0.3),
    ("line_character", "lines", len, 0.2),
    ("paragraph_character", "paragraphs", len, 0.2),
  ):
    rules[f"repeated_{name}s"] = Rule(
      f"repeated {name} fraction at most {most}",
      lambda p, parts=parts, size=size: _repeated(getattr(p, parts), size),
      most=most,
    )
  for size, most in ((2, 0.20), (3, 0.18), (4, 0.16)):
    rules[f"top_{size}_gram"] = Rule(
      f"characters in the commonest {size}-gram at most {most}",
      functools.partial(top_gram_share, size=size),
      most=most,
    )
  shares = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
  for size, most in zip(range(5, 11), shares, strict=True):
    rules[f"repeated_{size}_grams"] = Rule(
      f"characters in repeated {size}-grams at most {most}",
      functools.partial(repeated_gram_share, size=size),
      most=most,
    )
  return {f"gopher_{name}": rule for name, rule in rules.items()}


# {option of --filters: rule}.
FILTERS = _gopher() | {
  "c4_sentences": Rule(
    "5 sentences or more, in the lines that C4 keeps",
    lambda p: len(_SENTENCE.findall(c4_lines(p.text))),
    least=5,
  ),
  "c4_braces": Rule("no curly bracket", lambda p: p.text.count("{"), most=0),
  "c4_lorem": Rule(
    'no "lorem ipsum"', lambda p: p.text.lower().count("lorem ipsum"), most=0
  ),
  "fineweb_line_ends": Rule(
    "more than 12 % of lines end with punctuation",
    lambda p: _share_of_lines(p, _ends),
    above=0.12,
  ),
  "fineweb_repeated_characters": Rule(
    "characters in repeated lines below 0.01",  # the paper: 0.1
    lambda p: _repeated(p.lines, len),
    below=0.01,
  ),
  "fineweb_short_lines": Rule(
    "below 67 % of lines have 30 characters or fewer",
    lambda p: _share_of_lines(p, lambda line: len(line) <= 30),
    below=0.67,
  ),
  "fineweb_line_breaks": Rule(  # of datatrove alone
    "line breaks to words at most 0.3",
    lambda p: _share(p.text.count("\n"), len(p.words)),
    most=0.3,
  ),
}
PAPERS = ("gopher", "c4", "fineweb")


def parse_filters(text: str) -> tuple[str, ...]:
  """Returns the filters that a comma-separated list names, in table order.

  A paper stands for all its rules.

  Raises:
    InputError: a word is neither a filter nor a paper.
  """
  wanted = set()
  for word in (word.strip() for word in text.split(",") if text):
    if word not in FILTERS and word not in PAPERS:
      near = nearest(word, [*FILTERS, *PAPERS])
      raise InputError(f"unknown filter {word!r}; {near}")
    wanted |= {n for n in FILTERS if n == word or n.startswith(f"{word}_")}
  return tuple(name for name in FILTERS if name in wanted)


def first_failed(
  text: str, filters: tuple[str, ...]
) -> tuple[str, float] | None:
  """Returns (filter, measure) of the first rule that a text breaks, or None."""
  page = Page(text)
  for name in filters:
    value = FILTERS[name].measure(page)
    if not FILTERS[name].keeps(value):
      return name, value
  return None
