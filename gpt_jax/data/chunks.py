"""Chunks: stretches of a source, each encoded alone and stored by itself.

A chunk is chunk-NNNNN.ids (ids of its documents, one after the other),
chunk-NNNNN.docs (one ROW for each document) and chunk-NNNNN.json, which is
written last and has the counts and hashes of the other two. Chunks can be
encoded in any order, by any process on any machine; merging.py merges them into
a prepared set.

Design choice: which split a document goes to is decided when chunks are
merged, since it depends on all texts. So the text is read once, and no process
waits for another.
"""

import array
import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt_jax import digest, encryption, files
from gpt_jax.data import manifest as manifest_lib
from gpt_jax.data.progress import count_bytes
from gpt_jax.data.sources.document import Divisible, Document, Unit
from gpt_jax.data.splitting import TextHash, unit_hash
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.exits import InputError

FORMAT = 1
# A chunk takes no more units once it has this many bytes, as its source counts
# them. Another number would change the text digest of every prepared set.
CHUNK_BYTES = 1 << 26
# Characters that are encoded in one call. Each process holds this much text in
# memory, its 32-bit ids, and the encoder's intermediate results.
BATCH_CHARS = 1 << 19
# For each document: hashes of its name and text, its sizes, and whether it is
# the target of a pair.
ROW = np.dtype(
  [
    ("name", "<f8"),
    ("text", "<u8"),
    ("num_ids", "<i8"),
    ("num_bytes", "<i8"),
    ("is_target", "u1"),
  ]
)
# Ids of a chunk that are read at once.
_BLOCK_IDS = 1 << 20


class Chunk(NamedTuple):
  """Units of a source that are encoded together.

  Attributes:
    index: its place among the chunks of the source.
    units: of the source, in order.
  """

  index: int
  units: tuple[Unit, ...]


class Plan(NamedTuple):
  """What the chunks of a prepared folder depend on.

  Attributes:
    key: of the prepared folder, as its manifest has it.
    tokenizer: fingerprint of the tokenizer.
    dtype: of the ids.
    count: the number of chunks.
    split: data.split, which decides what of a text is hashed (TextHash).
    secret: encrypts the chunks, unless it is None.
  """

  key: str  # which depends on split
  tokenizer: str
  dtype: str
  count: int
  split: str
  secret: encryption.Key | None = None

  def facts(self, chunk: Chunk) -> dict[str, Any]:
    """Returns the entries that chunk-NNNNN.json must have."""
    return {
      "format": FORMAT,
      "key": self.key,
      "tokenizer": self.tokenizer,
      "dtype": self.dtype,
      "index": chunk.index,
      "count": self.count,
      "units": [list(unit) for unit in chunk.units],
    }


def divide(source: Divisible) -> list[Chunk]:
  """Returns the chunks of a source, which depend on nothing but its files."""
  chunks, held, size = [], [], 0
  for unit in source.units():
    held.append(unit)
    # The size of a file that is not fetched yet is unknown: it fills a chunk.
    size += CHUNK_BYTES if unit.num_bytes is None else unit.num_bytes
    if size >= CHUNK_BYTES:
      chunks.append(Chunk(len(chunks), tuple(held)))
      held, size = [], 0
  if held:
    chunks.append(Chunk(len(chunks), tuple(held)))
  return chunks


def read_documents(source: Divisible, chunk: Chunk) -> Iterator[Document]:
  """Yields the documents of a chunk."""
  for unit in chunk.units:
    yield from source.read_unit(unit)


def encode(
  source: Divisible,
  encoder: Tokenizer,
  folder: str,
  plan: Plan,
  chunk: Chunk,
  add: Callable[[int], None],
) -> None:
  """Encodes a chunk and writes its files.

  Args:
    folder: where its files go.
    add: called with the bytes of text that were encoded since the last call.

  Raises:
    InputError: the text cannot be read or encoded.
    OSError: the disk is full or cannot be written.
  """
  writer = _Writer(folder, plan, chunk)
  queue, num_chars = [], 0

  def flush():
    encoded = encoder.encode_batch([text for _, text in queue])
    num_bytes = 0
    for (row, text), ids in zip(queue, encoded, strict=True):
      size = count_bytes(text)
      writer.write(row, ids, size)
      num_bytes += size
    queue.clear()
    add(num_bytes)

  try:
    for document in read_documents(source, chunk):
      for text in encoder.split(writer.read(document)):
        queue.append((writer.row, text))
        num_chars += len(text)
        if num_chars >= BATCH_CHARS:
          flush()
          num_chars = 0
      writer.end_document()
    flush()
    writer.finish()
  except BaseException:
    writer.remove()
    raise


class _Writer:
  """Writes the files of one chunk; .ids has another name until complete."""

  def __init__(self, folder: str, plan: Plan, chunk: Chunk):
    self._folder, self._facts = folder, plan.facts(chunk)
    self._split, self._key = plan.split, plan.secret
    self._stem = os.path.join(folder, f"chunk-{chunk.index:05d}")
    self._dtype = np.dtype(plan.dtype).newbyteorder("<")
    self._temporary = f"{self._stem}.ids.{os.getpid()}.tmp"
    name = f"{os.path.basename(self._stem)}.ids"
    self._file = encryption.Output(self._temporary, self._key, name)
    self._text = hashlib.sha256()
    self._names, self._texts = array.array("d"), array.array("Q")
    self._num_ids, self._num_bytes = array.array("q"), array.array("q")
    self._is_target = bytearray()
    self._digest, self._size = TextHash(self._split), 0

  @property
  def row(self) -> int:
    """The row index of the document that is being read."""
    return len(self._names) - 1

  def read(self, document: Document) -> Iterator[str]:
    """Appends the row of a document, and yields the document's pieces."""
    self._names.append(unit_hash(document.name))
    self._is_target.append(document.is_target)
    for column in (self._texts, self._num_ids, self._num_bytes):
      column.append(0)
    self._digest, self._size = TextHash(self._split), 0
    for piece in document.pieces:
      data = piece.encode()
      self._digest.update(piece)
      self._text.update(data)
      self._size += len(data)
      yield piece

  def end_document(self) -> None:
    """Completes the last row, or removes it if there was no text."""
    if self._size:
      # As in splitting.Part, the digest also covers where documents end.
      self._text.update(self._size.to_bytes(8, "little"))
      self._texts[-1] = self._digest.value()
      return
    for column in (self._names, self._is_target, self._texts):
      column.pop()
    for column in (self._num_ids, self._num_bytes):
      column.pop()

  def write(self, row: int, ids: np.ndarray, num_bytes: int) -> None:
    """Appends ids of the document that has this row."""
    data = ids.astype(self._dtype).tobytes()
    self._file.write(data)
    self._num_ids[row] += len(ids)
    self._num_bytes[row] += num_bytes

  def finish(self) -> None:
    ids_sha256 = self._file.finish()
    os.replace(self._temporary, f"{self._stem}.ids")
    rows: Any = np.empty(len(self._names), ROW)
    rows["name"], rows["text"] = self._names, self._texts
    rows["num_ids"], rows["num_bytes"] = self._num_ids, self._num_bytes
    rows["is_target"] = self._is_target
    docs = encryption.Output(f"{self._stem}.docs", self._key)
    docs.write(rows.tobytes())
    note = self._facts | {
      "num_documents": len(rows),
      "num_ids": int(rows["num_ids"].sum()),
      "ids_sha256": ids_sha256,
      "docs_sha256": docs.finish(),
      "text_sha256": mark(self._text.hexdigest(), self._key),
    }
    note["seal"] = digest.seal_of(note, "seal")
    files.write_text(f"{self._stem}.json", manifest_lib.dump(note))

  def remove(self) -> None:
    """Removes the incomplete file."""
    with contextlib.suppress(OSError):  # the disk may be full
      self._file.close()
    with contextlib.suppress(FileNotFoundError):
      os.remove(self._temporary)


class Stored:
  """A chunk on disk.

  Attributes:
    note: the content of chunk-NNNNN.json.
  """

  def __init__(self, folder: str, note: dict[str, Any], key=None):
    self.note, self._key = note, key
    self._stem = os.path.join(folder, f"chunk-{note['index']:05d}")

  def read_rows(self) -> np.ndarray:
    """Returns one ROW for each document.

    Raises:
      InputError: the file is damaged.
    """
    path = f"{self._stem}.docs"
    try:
      if encryption.file_digest(path, self._key) != self.note["docs_sha256"]:
        raise self._damaged(path, "its hash is not the one that was noted")
      size = self.note["num_documents"] * ROW.itemsize
      with contextlib.closing(encryption.Stream(path, self._key)) as file:
        return np.frombuffer(file.read(size), ROW)
    except files.Damage as damage:
      raise self._damaged(path, f"it {damage}") from None

  def read_ids(self, sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the ids of each document.

    Args:
      sizes: the column num_ids of its documents.

    Raises:
      InputError: the file is damaged; its hash is only known, and checked,
        after the last document.
    """
    path, dtype = f"{self._stem}.ids", np.dtype(self.note["dtype"])
    dtype, hashed = dtype.newbyteorder("<"), hashlib.sha256()
    try:
      with contextlib.closing(encryption.Stream(path, self._key)) as file:
        held = np.empty(0, dtype)
        for size in sizes.tolist():
          while len(held) < size:
            data = file.read(max(_BLOCK_IDS, size) * dtype.itemsize)
            if not data:
              raise self._damaged(path, "its end is missing")
            hashed.update(data)
            held = np.concatenate([held, np.frombuffer(data, dtype)])
          yield held[:size]
          held = held[size:]
    except files.Damage as damage:
      raise self._damaged(path, f"it {damage}") from None
    if mark(hashed.hexdigest(), self._key) != self.note["ids_sha256"]:
      raise self._damaged(path, "its hash is not the one that was noted")

  def _damaged(self, path: str, what: str) -> InputError:
    return InputError(
      f"{path} is damaged: {what}; remove {self._stem}.json, and that part is "
      "prepared again"
    )


def find(
  folders: Sequence[str], plan: Plan, wanted: Sequence[Chunk]
) -> dict[int, Stored]:
  """Returns {index: chunk} of the wanted chunks that are stored.

  Args:
    folders: where to look; of a chunk in several, the first is taken.
  """
  found: dict[int, Stored] = {}
  for folder in folders:
    for chunk in wanted:
      if chunk.index not in found:
        path = os.path.join(folder, f"chunk-{chunk.index:05d}.json")
        note = _read_note(path, plan.facts(chunk))
        if note is not None:
          found[chunk.index] = Stored(folder, note, plan.secret)
  return found


def _read_note(path: str, facts: dict[str, Any]) -> dict[str, Any] | None:
  """Returns the note of a chunk; None if it is unusable or of another plan."""
  try:
    note = files.read_json(path)
  except files.Damage:
    return None
  is_whole = (
    isinstance(note, dict)
    and note.get("seal") == digest.seal_of(note, "seal")
    and all(note.get(key) == value for key, value in facts.items())
  )
  return note if is_whole else None


def text_digest(hashes: Sequence[str]) -> str:
  """Returns the digest of a source's text, from the digests of its chunks."""
  return digest.of_json(["chunks", *hashes])


def mark(found: str, key: encryption.Key | None) -> str:
  """Returns a digest as it is stored: keyed (Key.mark) if there is a key."""
  return found if key is None else key.mark(found)


def read_text_sha256(source: Divisible, chunk: Chunk) -> str:
  """Returns the digest of the text of a chunk, by reading it."""
  hashed = hashlib.sha256()
  for document in read_documents(source, chunk):
    size = 0
    for piece in document.pieces:
      data = piece.encode()
      hashed.update(data)
      size += len(data)
    if size:
      hashed.update(size.to_bytes(8, "little"))
  return hashed.hexdigest()
