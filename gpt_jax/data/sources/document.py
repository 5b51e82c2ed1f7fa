"""The interface of a source of text: named documents, in bounded pieces."""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from gpt_jax.exits import InputError
from gpt_jax.machine import cache

# The most bytes of one read, and the most characters of one piece.
BLOCK = 1 << 20
# Some editors write this mark before UTF-8; it is not part of the text.
BOM = "\ufeff"
# The most fields that an error lists.
_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Document:
  """A text, under a name that is the same on every machine.

  Attributes:
    name: unique within the source.
    pieces: the text in order, in pieces of at most BLOCK characters. They can
      be read once, and before the next document is requested.
    is_target: whether it is the target of a pair, whose source is the last
      document before it that is no target.
  """

  name: str
  pieces: Iterator[str]
  is_target: bool = False


class Source(Protocol):
  """What every source offers.

  Attributes:
    spec: the spec that it was opened with.
    files: (name, path) of each file that it reads; empty if the text is not in
      files of the user.
    is_divided_by_text: whether documents of equal text go to the same split.
  """

  spec: str
  is_divided_by_text: bool

  @property
  def files(self) -> Sequence[tuple[str, str]]: ...

  def fingerprint(self) -> str:
    """Returns a digest, cheap to compute, that changes if documents may have.

    Design choice: files are identified by name, size and modification time,
    not by content, so finding a prepared set again does not read the corpus.
    """

  def num_bytes(self) -> int | None:
    """Returns about how many bytes `documents` reads; None if unknown."""

  def documents(self) -> Iterator[Document]:
    """Yields the documents, in an order that never changes.

    Raises:
      InputError: the text is missing, empty or cannot be read as text.
    """


class Unit(NamedTuple):
  """A stretch of a source that can be read alone.

  Attributes:
    name: of its file.
    part: which part of the file it is; 0 if it is the whole file.
    num_bytes: about how many bytes it has, or None if unknown.
    version: what else its text depends on, such as a commit.
  """

  name: str
  part: int = 0
  num_bytes: int | None = None
  version: str = ""


@runtime_checkable
class Divisible(Source, Protocol):
  """A source that can be read unit by unit, in any order."""

  def units(self) -> list[Unit]:
    """Returns its units, in the order of `documents`, on any machine."""

  def read_unit(self, unit: Unit) -> Iterator[Document]:
    """Yields the documents of a unit, with the names that `documents` gives."""


class Unreachable(InputError):
  """The server of a text cannot be reached now; a later try may succeed."""


def file_units(files: Sequence[tuple[str, str]]) -> list[Unit]:
  """Returns a unit for each (name, path).

  Raises:
    InputError: a file is gone.
  """
  try:
    return [Unit(name, 0, cache.stat(path)[0]) for name, path in files]
  except OSError as error:
    raise InputError(
      f"cannot read {error.filename}: {error.strerror}"
    ) from None


def read_units(source: Divisible) -> Iterator[Document]:
  """Yields the documents of all units."""
  for unit in source.units():
    yield from source.read_unit(unit)


def slice_text(text: str) -> Iterator[str]:
  """Returns the pieces of a text that is in memory."""
  return (text[i : i + BLOCK] for i in range(0, len(text), BLOCK))


def decode(data: bytes, where: str) -> str:
  """Returns the text of UTF-8 bytes; `where` names them in errors.

  Raises:
    InputError: they are not UTF-8.
  """
  try:
    return data.decode("utf-8")
  except UnicodeDecodeError as error:
    raise InputError(
      f"{where} is not UTF-8: byte {data[error.start]:#04x} at offset "
      f"{error.start}; convert it to UTF-8"
    ) from None


def kind_of(value: Any, article: str = "a JSON ") -> str:
  """Returns the type of a JSON value, for use in a sentence."""
  if value is None:
    return "null"
  name = type(value).__name__
  return f"{article or ('an ' if name[0] in 'aeiou' else 'a ')}{name}"


def missing_field(
  where: str, what: str, field: str, there: Sequence[str], hint: str = ""
) -> InputError:
  """Returns the error for a record or a table that lacks a field.

  Args:
    where: the record or the table.
    what: "field" or "column".
    there: the names of the fields that it has.
    hint: what to do, if no other field has a similar name.
  """
  near = difflib.get_close_matches(field, there, 1)
  hint = f"did you mean {near[0]!r}?" if near else hint
  names = ", ".join(map(repr, there[:_SHOWN])) or "none"
  more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
  rest = f": {hint}" if hint else ""
  return InputError(
    f"{where} has no {what} {field!r}; it has {names}{more}{rest}"
  )


def listed(there: Iterable[str], wanted: Sequence[str]) -> str:
  """Returns the fields of a record, and one that looks like a misspelt one."""
  names = [name for name in there if name not in wanted]
  shown = ", ".join(map(repr, there)) or "none"
  for name in wanted:
    for near in difflib.get_close_matches(name, names, 1):
      return f"{shown} (is {near!r} meant to be {name!r}?)"
  return shown


def first_line(error: BaseException) -> str:
  """Returns the first line of an error's message, at most 200 characters."""
  lines = str(error).strip().splitlines()
  return lines[0][:200] if lines else type(error).__name__
