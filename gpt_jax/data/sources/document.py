"""What a source of text offers: named documents, streamed in bounded pieces."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from gpt_jax.exits import InputError

# Bytes of a read, and characters of a piece at most.
BLOCK = 1 << 20
# Some editors write this mark before UTF-8; it is not part of the text.
BOM = "\ufeff"


@dataclasses.dataclass(frozen=True)
class Document:
  """A text, under a name that is the same on every machine.

  Attributes:
    name: unique within the source.
    pieces: the text in order, in pieces of at most BLOCK characters. They can
      be read once, and before the next document is requested.
    is_target: whether it makes a pair with the document before it, its source.
  """

  name: str
  pieces: Iterator[str]
  is_target: bool = False


class Source(Protocol):
  """What every source offers.

  Attributes:
    spec: the spec that it was opened with.
    files: (name, path) of each text file that it reads; empty where the text is
      not in files of the user.
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
  """Returns what a value of JSON is, for use in a sentence."""
  if value is None:
    return "null"
  return f"{article or 'a '}{type(value).__name__}"


def first_line(error: Exception) -> str:
  """Returns the first line of an error's message, at most 200 characters."""
  lines = str(error).strip().splitlines()
  return lines[0][:200] if lines else type(error).__name__
