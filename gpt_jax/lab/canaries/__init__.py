"""Canaries: secrets that are planted in a text, and looked for in a model.

Carlini et al. 2019, arXiv:1802.08232. A canary is a line whose digits are drawn
at random. A model that has not memorised it finds its digits no likelier than
others; its exposure is log2 N - log2 rank among N candidates, about 1.44 bits
on average by chance, and log2 N if it is the likeliest of all.
"""

import dataclasses
import math
import random
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

NUM_DIGITS = 9
NUM_CANDIDATES = 1024


@dataclasses.dataclass(frozen=True)
class Canary:
  """A line of its own: context and secret.

  Attributes:
    context: the text before the secret.
    secret: " " and NUM_DIGITS digits.
    copies: number of times that it is planted.
  """

  context: str
  secret: str
  copies: int

  @property
  def text(self) -> str:
    return f"{self.context}{self.secret}\n"

  def candidates(self) -> list[str]:
    """Returns NUM_CANDIDATES secrets, the canary's own first."""
    # The draws of a string are the same in every process.
    dice, found = random.Random(self.context), {self.secret: None}
    while len(found) < NUM_CANDIDATES:
      found[_draw(dice)] = None
    return list(found)


def make(copies: Sequence[int], each: int, seed: int) -> list[Canary]:
  """Returns `each` canaries of each number of copies."""
  dice, found = random.Random(seed), []
  for count in copies:
    for _ in range(each):
      name = "".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=7))
      context = f"The number of {name.capitalize()} is"
      found.append(Canary(context, _draw(dice), count))
  return found


def plant(
  documents: Iterable[tuple[str, str]],
  canaries: Sequence[Canary],
  num_documents: int,
  seed: int,
) -> Iterator[tuple[str, str]]:
  """Yields (name, text) of the documents, and of canaries between them.

  Each copy is a document of its own, at a place drawn at random.
  """
  dice = random.Random(f"places {seed}")
  at: dict[int, list[tuple[str, str]]] = {}
  for i, canary in enumerate(canaries):
    for copy in range(canary.copies):
      place = dice.randrange(num_documents + 1)
      at.setdefault(place, []).append((f"canary {i} {copy}", canary.text))
  for place, document in enumerate(documents):
    yield from at.pop(place, [])
    yield document
  for rest in at.values():
    yield from rest


def exposure(log_probs: Sequence[float]) -> float:
  """Returns the exposure in bits of the first of some candidates.

  Ties count as half: a candidate as likely as the first adds 1/2 to its rank.
  """
  scores = np.asarray(log_probs)
  above = np.sum(scores > scores[0])
  equal = np.sum(scores == scores[0]) - 1
  return math.log2(len(scores)) - math.log2(1 + above + equal / 2)


def _draw(dice: random.Random) -> str:
  return " " + "".join(dice.choices("0123456789", k=NUM_DIGITS))
