"""Base classes of sources whose text is in files of the user."""

import abc
from collections.abc import Iterator

from gpt_jax.data.sources import document, paths
from gpt_jax.data.sources.document import Document, Unit


class FiledSource(abc.ABC):
  """A source that reads files; subclasses implement `documents`.

  Attributes:
    spec: the spec that it was opened with.
    files: (name, path) of each file.
  """

  is_divided_by_text = True

  def __init__(self, spec: str, kind: str, files: list[tuple[str, str]]):
    """Initializes the source.

    Args:
      kind: everything besides the files that determines which text is read.
      files: as `paths.find_files` returns them.
    """
    self.spec = spec
    self.files = files
    self._kind = kind
    self._paths = dict(files)

  def fingerprint(self) -> str:
    return paths.identify(self._kind, self.files)

  def num_bytes(self) -> int | None:
    return paths.count_bytes(self.files)

  @abc.abstractmethod
  def documents(self) -> Iterator[Document]: ...


class DividedSource(FiledSource):
  """A source whose units are its files, each of which is read by itself."""

  def documents(self) -> Iterator[Document]:
    yield from document.read_units(self)

  def units(self) -> list[Unit]:
    return document.file_units(self.files)

  def read_unit(self, unit: Unit) -> Iterator[Document]:
    yield from self.read_file(unit.name, self._paths[unit.name])

  @abc.abstractmethod
  def read_file(self, name: str, path: str) -> Iterator[Document]:
    """Yields the documents of a file; their names begin with the file's."""
