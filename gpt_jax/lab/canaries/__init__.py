"""Canaries: random secrets planted in a training text, to measure memorisation.

Carlini et al. 2019, arXiv:1802.08232. A canary is a line that ends in random
digits, its secret. The secret is ranked by likelihood among N candidates, and
the canary's exposure is log2 N - log2 rank: log2 N if the model finds the
secret the likeliest of all, and about 1.44 bits on average if the model has not
memorised it.
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
  """One planted line: a context, then a secret.

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
    # Seeded with a string, Random draws the same digits in every process.
    dice, found = random.Random(self.context), {self.secret: None}
    while len(found) < NUM_CANDIDATES:
      found[_draw(dice)] = None
    return list(found)


def make(copies: Sequence[int], each: int, seed: int) -> list[Canary]:
  """Returns canaries: `each` of them for each number of copies."""
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
  """Yields (name, text) of the documents, with canaries between them.

  Each copy of a canary is a separate document at a random position.

  Args:
    num_documents: how many `documents` there are.
    seed: of the positions.
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
  """Returns the exposure in bits of the first candidate.

  A candidate that is as likely as the first adds 1/2 to the first one's rank.

  Args:
    log_probs: of all candidates, the canary's own secret first.
  """
  scores = np.asarray(log_probs)
  above = np.sum(scores > scores[0])
  equal = np.sum(scores == scores[0]) - 1
  return math.log2(len(scores)) - math.log2(1 + above + equal / 2)


def _draw(dice: random.Random) -> str:
  return " " + "".join(dice.choices("0123456789", k=NUM_DIGITS))
