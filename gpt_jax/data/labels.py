"""Labels: their form, the set of classes, and how they are stored.

The classes of a set are found when it is prepared, and sorted, so that class i
is the same in every run on it, in evaluation and after a resume.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from gpt_jax.config import MAX_FLOAT32
from gpt_jax.data.sources.labelled import Example
from gpt_jax.exits import InputError

# More distinct labels than this are probably ids of some kind, not classes.
MAX_CLASSES = 10_000
# The dtype of stored labels, by option of data.label. Labels of words are
# stored for each id, NO_LABEL where no word ends.
DTYPES = {"single": "<i4", "multi": "u1", "number": "<f4", "word": "<i4"}
NO_LABEL = -1


class Labels(NamedTuple):
  """The labels of a set.

  Attributes:
    kind: option of data.label.
    classes: their names, sorted; none where labels are numbers.
  """

  kind: str
  classes: tuple[str, ...]

  @property
  def num_scores(self) -> int:
    """The number of scores that a model gives: one for each class."""
    return len(self.classes) or 1

  def width(self) -> int:
    """Returns the number of stored values of a label."""
    return len(self.classes) if self.kind == "multi" else 1

  def holds(self, values: np.ndarray) -> bool:
    """Returns whether stored values are valid labels."""
    if not values.size:
      return True
    if self.kind == "number":
      return bool(np.isfinite(values).all())
    least = NO_LABEL if self.kind == "word" else 0
    most = 1 if self.kind == "multi" else len(self.classes) - 1
    return bool(values.min() >= least and values.max() <= most)

  def encode(self, value: Any, where: str) -> np.ndarray:
    """Returns the stored values of a parsed label, of dtype DTYPES[kind].

    Raises:
      InputError: a class is not one of the set's.
    """
    dtype = DTYPES[self.kind]
    if self.kind == "number":
      return np.array([value], dtype)
    names = [value] if self.kind == "single" else value
    places = _places(self.classes)
    for name in names:
      if name not in places:
        raise InputError(
          f"{where} has the label {name!r}, which is not one of the "
          f"{len(places)} classes {some(self.classes)}"
        )
    ids = np.array([places[name] for name in names], np.int64)
    if self.kind != "multi":
      return ids.astype(dtype)
    return np.isin(np.arange(len(places)), ids).astype(dtype)


@functools.cache
def _places(classes: tuple[str, ...]) -> dict[str, int]:
  return {name: i for i, name in enumerate(classes)}


def parse(kind: str, example: Example) -> Any:
  """Returns a label in the form of its kind.

  single: str; multi: a list of str; number: float; word: a list of str, one for
  each word of the text. A whole number in place of a class name becomes its
  digits. In a TSV column, commas separate the classes of multi, and spaces
  those of words. Spaces around a name are stripped.

  Raises:
    InputError: the label is missing, or has another form.
  """
  value, where = example.label, example.where
  if value is None:
    why = example.lack or f"{where} has no label; every text must have one"
    raise InputError(why)
  if kind == "number":
    return _parse_number(value, where)
  if kind == "single":
    return _parse_name(value, where)
  if isinstance(value, str):
    names = value.split("," if kind == "multi" else None)
    value = [name.strip() for name in names]
  if not isinstance(value, list):
    raise InputError(
      f"{where} has the label {_show(value)}; it must be a list of classes, as "
      f"data.label is {kind}"
    )
  names = [_parse_name(one, where) for one in value]
  words = words_of(example)
  if kind == "word" and len(names) != len(words):
    raise InputError(
      f"{where} has {len(names)} labels and {len(words)} words; each word must "
      "have one"
    )
  return names


def words_of(example: Example) -> list[str]:
  """Returns the words of a text, which white space separates."""
  return example.texts[0].split()


def _parse_number(value: Any, where: str) -> float:
  try:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
      raise ValueError
    number = float(value)
  except (ValueError, OverflowError):
    raise InputError(
      f"{where} has the label {_show(value)}; it must be a number, as "
      "data.label is number"
    ) from None
  if not abs(number) <= MAX_FLOAT32:  # also true of NaN
    raise InputError(
      f"{where} has the label {_show(value)}; it must be a finite number"
    )
  return number


def _parse_name(value: Any, where: str) -> str:
  if type(value) is int:
    value = str(value)
  if type(value) is not str or not value.strip() or not _is_unicode(value):
    raise InputError(
      f"{where} has the label {_show(value)}; it must be the name of a class, "
      "or a whole number"
    )
  return value.strip()


def _is_unicode(text: str) -> bool:
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def find_labels(kind: str, sources: Iterable[Any], spec: str) -> Labels:
  """Returns the labels of the training sources, by reading them.

  Args:
    kind: option of data.label.
    sources: labelled sources.
    spec: what errors call them.

  Raises:
    InputError: a label is missing or wrong, or the classes are too few or too
      many.
  """
  names: set[str] = set()
  for source in sources:
    for example in source.examples():
      label = parse(kind, example)
      if kind != "number":
        names.update([label] if kind == "single" else label)
  if kind == "number":
    return Labels(kind, ())
  if len(names) < 2:
    found = f"one class only, {min(names)!r}" if names else "no class"
    raise InputError(f"{spec} has {found}; there must be 2 or more")
  if len(names) > MAX_CLASSES:
    raise InputError(
      f"{spec} has {len(names):,} classes; there may be {MAX_CLASSES:,}, and "
      "ids, numbers or sentences are none: name another field, or data.label"
    )
  return Labels(kind, tuple(sorted(names)))


def some(names: Iterable[str]) -> str:
  """Returns a few of the names, for a sentence."""
  first = list(names)
  shown = ", ".join(first[:5])
  return shown + (", ..." if len(first) > 5 else "")


def _show(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 40 else text[:37] + "..."
