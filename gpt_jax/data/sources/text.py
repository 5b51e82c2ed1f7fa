"""text:GLOB: one document for each file of UTF-8, compressed or not.

A folder stands for all files in and below it whose suffixes say that they hold
prose. Markdown is not converted, so that a model can learn to write it.
"""

import codecs
import itertools
from collections.abc import Iterator

from gpt_jax.data.sources import document, paths, unpack
from gpt_jax.data.sources.document import BOM, Document
from gpt_jax.data.sources.filed import DividedSource
from gpt_jax.exits import InputError
from gpt_jax.machine import cache

# Suffixes of the files that are read in a folder.
SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst")


class TextSource(DividedSource):
  """Files of text, taken as they are."""

  def __init__(self, spec: str, pattern: str):
    super().__init__(spec, "text", paths.find_files(pattern, SUFFIXES))
    # A table among other files may be wanted as text, as in a source tree.
    if all(unpack.is_table(path) for _, path in self.files):
      unpack.refuse_table(self.files[0][1])

  def read_file(self, name: str, path: str) -> Iterator[Document]:
    if cache.stat(path)[0]:
      yield Document(name, _read_text(path))


def _read_text(path: str) -> Iterator[str]:
  decoder = codecs.getincrementaldecoder("utf-8")()
  start = 0  # offset of the bytes that the decoder has not used yet
  is_first = True
  blocks = unpack.read_blocks(path, document.BLOCK)
  for block in itertools.chain(blocks, [b""]):
    held = len(decoder.getstate()[0])
    try:
      text = decoder.decode(block, final=not block)
    except UnicodeDecodeError as error:
      raise InputError(
        f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at "
        f"offset {start - held + error.start}; convert it to UTF-8"
      ) from None
    start += len(block)
    if text and is_first:
      text, is_first = text.removeprefix(BOM), False
    if text:
      yield text
