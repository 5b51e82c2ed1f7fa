"""Finds and replaces personally identifiable information: the table of rules.

A rule is a function from a text to spans. If the spans of two rules overlap,
the rule that comes first in the table wins: a card number with a valid check
digit is no telephone number.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from gpt_jax.config import nearest
from gpt_jax.data.cleaning import (
  accounts,
  credentials,
  names,
  network,
  phones,
  pseudonyms,
)
from gpt_jax.exits import InputError

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Rule:
  """One kind of value.

  Attributes:
    mark: the type that replaces the value in the text, in brackets.
    find: yields the spans of the values of a text.
  """

  mark: str
  find: Callable[[str], Iterator[Span]]


# {option of --rules: rule}, in order of precedence.
RULES = {
  "secret": Rule("SECRET", credentials.find_secrets),
  "mail": Rule("EMAIL", network.find_mail),
  "mac": Rule("MAC", network.find_mac),
  "ip": Rule("IP", network.find_ip),
  "iban": Rule("IBAN", accounts.find_ibans),
  "card": Rule("CARD", accounts.find_cards),
  "id": Rule("ID", accounts.find_ids),
  "phone": Rule("PHONE", phones.find_phones),
  "name": Rule("NAME", names.find_names),
}


def parse_rules(text: str) -> tuple[str, ...]:
  """Returns the rules that a comma-separated list names, in table order.

  "none" names none.

  Raises:
    InputError: a word is no rule.
  """
  if text == "none":
    return ()
  words = [word.strip() for word in text.split(",")]
  for word in words:
    if word not in RULES:
      raise InputError(f"unknown rule {word!r}; {nearest(word, RULES)}")
  return tuple(word for word in RULES if word in words)


def find(text: str, rules: Iterable[str]) -> list[tuple[int, int, str]]:
  """Returns (start, end, rule) of all values, in order and without overlap."""
  taken = bytearray(len(text))
  found = []
  for name in rules:
    for start, end in RULES[name].find(text):
      if not any(taken[start:end]):
        taken[start:end] = b"\1" * (end - start)
        found.append((start, end, name))
  return sorted(found)


def deidentify(
  text: str, rules: Iterable[str], key: bytes | None, counts: dict[str, int]
) -> str:
  """Returns a text with its values replaced.

  Args:
    rules: names of RULES, in their order.
    key: of the pseudonyms; None replaces values by their types alone.
    counts: {rule: number of replaced values}; this text's are added to it.
  """
  parts, end = [], 0
  for start, stop, name in find(text, rules):
    parts += [text[end:start]]
    parts += [pseudonyms.replacement(RULES[name].mark, text[start:stop], key)]
    counts[name] = counts.get(name, 0) + 1
    end = stop
  return "".join([*parts, text[end:]])
