"""digits:RULE[:FROM-TO]: strings of digits, and their transforms by a rule.

Synthetic pairs to test models on, without a file. The target follows from the
source alone, so held-out strings show whether a model has learned the rule.
"""

import random
import re
from collections.abc import Callable, Iterator

from gpt_jax import digest
from gpt_jax.data.sources.document import Document
from gpt_jax.exits import InputError

# The number of pairs in a source.
NUM_PAIRS = 50_000
# Default range of string lengths; all lengths are equally likely.
LENGTHS = (1, 12)
MAX_LENGTH = 1000

RULES: dict[str, Callable[[str], str]] = {
  "copy": lambda text: text,
  "reverse": lambda text: text[::-1],
  "sort": lambda text: "".join(sorted(text)),
}


class DigitSource:
  """NUM_PAIRS random strings, seeded by the range of lengths; some repeat."""

  is_divided_by_text = True
  files = ()

  def __init__(self, spec: str, argument: str):
    self.spec = spec
    rule, colon, lengths = argument.partition(":")
    found = re.fullmatch(r"(\d{1,4})-(\d{1,4})", lengths)
    self._lengths = tuple(map(int, found.groups())) if found else LENGTHS
    low, high = self._lengths
    is_range = 1 <= low <= high <= MAX_LENGTH
    if rule not in RULES or not is_range or bool(found) != bool(colon):
      raise InputError(
        f"{spec} must name a rule, {', '.join(RULES)}, and after a colon may "
        f"name the lengths of strings, from 1 to {MAX_LENGTH}: "
        f"digits:reverse:{LENGTHS[0]}-{LENGTHS[1]}"
      )
    self._rule = RULES[rule]
    self._identity = [rule, *self._lengths]

  def fingerprint(self) -> str:
    return digest.of_json(["digits", NUM_PAIRS, *self._identity])

  def num_bytes(self) -> int | None:
    return NUM_PAIRS * sum(self._lengths)

  def documents(self) -> Iterator[Document]:
    draw = random.Random(str(self._lengths))
    for number in range(NUM_PAIRS):
      text = "".join(draw.choices("0123456789", k=draw.randint(*self._lengths)))
      yield Document(f"{number}", iter([text]))
      yield Document(
        f"{number}:target", iter([self._rule(text)]), is_target=True
      )
