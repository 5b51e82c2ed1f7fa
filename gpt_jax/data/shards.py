"""Shards: the ids of a split on disk, memory-mapped to read.

A split is SPLIT-NNNNN.bin (ids, uint16 or uint32, little endian) and
SPLIT.offsets.bin (int64, where each document starts in the stream of ids).
"""

import array
import bisect
import itertools
import math
import os
from collections.abc import Sequence

import numpy as np

from gpt_jax import digest, encryption
from gpt_jax.data import integrity
from gpt_jax.data import manifest as manifest_lib
from gpt_jax.data.labels import DTYPES, Labels
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.exits import InputError

# The most ids in a shard.
SHARD_IDS = 1 << 26
# Offsets that are checked at once (8 MiB), so that memory use stays flat.
_OFFSETS_BLOCK = 1 << 20


class TokenSet:
  """One split of a prepared folder: a stream of ids, memory-mapped.

  Opening checks the sizes of its files and, as data.verify says, their hashes.
  No id is read before the hashes have been checked. A set can be pickled for
  other processes. Blocks of an encrypted set are decrypted as they are read.

  Args:
    key: the key of an encrypted set, or None.

  Attributes:
    name: "folder/split".
    num_ids: ids in the stream, separators included.
    num_tokens: ids in the stream without separators.
    num_documents: documents in the stream.
    is_paired: whether documents alternate between sources and targets, or
      between chosen and rejected answers.
    num_bytes: length of the text in UTF-8.
    vocab_size: V; reading raises InputError if an id is not below V.
    separator_id: the tokenizer's, or None; not written by split="tail".
    tokenizer_fingerprint: of the tokenizer that encoded the text.
    is_apart: whether equal documents of the source are in the same split.
    labels: the Labels of its documents, or None.
    reference: for a set of preferences, (pairs, 2) float32 log-probabilities of
      the answers under the run's reference (inference/references.py), or None.
    fingerprint: SHA-256 hex digest of the hashes of its files.
    check: the integrity check that reading waits for.
  """

  def __init__(
    self, folder: str, split: str, manifest: dict, verify: str, key=None
  ):
    content = manifest["splits"][split]
    self.name = f"{os.path.basename(os.path.abspath(folder))}/{split}"
    self.folder = folder
    self._key: encryption.Key | None = key
    self.num_tokens = content["num_tokens"]
    self.num_documents = content["num_documents"]
    self.num_bytes = content["num_bytes"]
    self.is_paired = "num_parts" in manifest
    self.vocab_size = manifest["tokenizer"]["vocab_size"]
    self.separator_id = manifest["tokenizer"]["separator_id"]
    self.tokenizer_fingerprint = manifest["tokenizer"]["fingerprint"]
    self.is_apart = manifest_lib.text_key(manifest) is not None
    self._dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
    self._files = [shard["file"] for shard in content["shards"]]
    self._offsets_file = content["offsets"]["file"]
    sizes = [shard["num_ids"] for shard in content["shards"]]
    self._borders = [0, *itertools.accumulate(sizes)]
    self.num_ids = self._borders[-1]
    hashes = [shard["sha256"] for shard in content["shards"]]
    hashes.append(content["offsets"]["sha256"])
    names = [*self._files, self._offsets_file]
    identity = [split, hashes, self.tokenizer_fingerprint]
    self.labels, self._labels_file = None, None
    self.reference: np.ndarray | None = None
    if "labels" in manifest:
      self.labels = Labels(
        manifest["labels"]["kind"], tuple(manifest["labels"]["classes"])
      )
      self._labels_file = content["labels"]["file"]
      names.append(self._labels_file)
      hashes.append(content["labels"]["sha256"])
      identity.append(self.labels)
    self._mask_file = None
    if "mask" in content:
      self._mask_file = content["mask"]["file"]
      names.append(self._mask_file)
      hashes.append(content["mask"]["sha256"])
    self.fingerprint = digest.of_json(identity)
    self._maps = {}
    for file, size in zip(self._files, sizes, strict=True):
      path = os.path.join(folder, file)
      self._check_size(path, size * self._dtype.itemsize)
    path = os.path.join(folder, self._offsets_file)
    self._check_size(path, 8 * self.num_documents)
    if self._mask_file is not None:
      self._check_size(os.path.join(folder, self._mask_file), self.num_ids)
    if self.labels is not None:
      path = os.path.join(folder, content["labels"]["file"])
      shape, dtype = self._labels_form(self.labels)
      self._check_size(path, math.prod(shape) * dtype.itemsize)
    self.check = integrity.Check(
      folder, dict(zip(names, hashes, strict=True)), verify, key
    )

  def _check_size(self, path: str, size: int) -> None:
    is_plain = self._key is None
    integrity.check_size(
      path, size if is_plain else encryption.stored_size(size)
    )

  def read(self, start: int, stop: int) -> np.ndarray:
    """Returns ids [start, stop) of the stream, int32.

    Raises:
      InputError: an id is not below vocab_size, so the file is damaged.
      IndexError: the range is not inside the stream.
    """
    return self.read_windows([start], stop - start)[0]

  def read_windows(
    self, starts: Sequence[int] | np.ndarray, length: int
  ) -> np.ndarray:
    """Returns ids [s, s + length) for each s in starts, int32 (b, length)."""
    out = np.empty((len(starts), length), self._dtype)
    for row, start in enumerate(starts):
      stop = start + length
      if not 0 <= start <= stop <= self.num_ids:
        raise IndexError(
          f"ids {start} to {stop} reach outside {self.name} of {self.num_ids}"
        )
      shard = bisect.bisect_right(self._borders, start) - 1
      done = 0
      while done < length:
        base, end = self._borders[shard], self._borders[shard + 1]
        low = start + done - base
        part = self._shard(shard)[low : low + min(length - done, end - base)]
        out[row, done : done + len(part)] = part
        done += len(part)
        shard += 1
    if out.size and np.max(out) >= self.vocab_size:
      self._raise_bad_id(out, starts)
    return out.astype(np.int32)

  @property
  def document_starts(self) -> np.ndarray:
    """Where each document starts in the stream: int64, ascending.

    Raises:
      InputError: they do not ascend, so the file is damaged.
    """
    is_new = self._offsets_file not in self._maps
    starts = self._map(self._offsets_file, np.dtype("<i8"))
    if is_new:
      self._check_offsets(starts)
    return starts

  @property
  def has_labels(self) -> bool:
    """Whether its documents have labels."""
    return self.labels is not None

  def read_labels(self) -> np.ndarray | None:
    """Returns the labels: (documents, width), or (num_ids,) for words.

    None if the set has no labels.

    Raises:
      InputError: a label is none of the set's classes, so the file is damaged.
    """
    if self.labels is None or self._labels_file is None:
      return None
    is_new = self._labels_file not in self._maps
    shape, dtype = self._labels_form(self.labels)
    values = self._map(self._labels_file, dtype).reshape(shape)
    if is_new and not self.labels.holds(values):
      del self._maps[self._labels_file]
      path = os.path.join(self.folder, self._labels_file)
      raise InputError(
        f"{path} is damaged: it holds labels that are not of the set's "
        f"{len(self.labels.classes)} classes; {manifest_lib.REMEDY}"
      )
    return values

  def read_mask(self) -> np.ndarray | None:
    """Returns the loss mask of the ids, uint8, or None if all of them count."""
    if self._mask_file is None:
      return None
    return self._map(self._mask_file, np.dtype("u1"))

  def _labels_form(self, labels: Labels) -> tuple[tuple[int, ...], np.dtype]:
    """Returns (shape, dtype) of the stored labels."""
    dtype = np.dtype(DTYPES[labels.kind])
    if labels.kind == "word":
      return (self.num_ids,), dtype
    return (self.num_documents, labels.width()), dtype

  def __getstate__(self):
    return self.__dict__ | {"_maps": {}}

  def _shard(self, i: int):
    """Returns the ids of a shard, as an array or an object that slices."""
    file = self._files[i]
    if self._key is None:
      return self._map(file, self._dtype)
    if file not in self._maps:
      self.check.wait()
      path = os.path.join(self.folder, file)
      self._maps[file] = encryption.Array(path, self._key, self._dtype)
    return self._maps[file]

  def _map(self, file: str, dtype: np.dtype) -> np.ndarray:
    if file not in self._maps:
      self.check.wait()
      path = os.path.join(self.folder, file)
      if self._key is not None:
        self._maps[file] = encryption.Array(path, self._key, dtype)[:]
        return self._maps[file]
      try:
        if os.path.getsize(path) == 0:
          self._maps[file] = np.empty(0, dtype)
        else:
          # View the map as a plain array: slicing np.memmap costs microseconds.
          mapped = np.memmap(path, dtype, mode="r")
          self._maps[file] = np.asarray(mapped).view(np.ndarray)
      except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    return self._maps[file]

  def _check_offsets(self, starts: np.ndarray) -> None:
    is_good = not len(starts) or (starts[0] == 0 and starts[-1] <= self.num_ids)
    for at in range(0, len(starts), _OFFSETS_BLOCK):
      part = starts[at : at + _OFFSETS_BLOCK + 1]
      is_good = is_good and bool((part[1:] >= part[:-1]).all())
    if not is_good:
      del self._maps[self._offsets_file]
      path = os.path.join(self.folder, self._offsets_file)
      raise InputError(
        f"{path} is damaged: its offsets must ascend from 0 to at most "
        f"{self.num_ids}; {manifest_lib.REMEDY}"
      )

  def _raise_bad_id(self, ids: np.ndarray, starts) -> None:
    row, column = np.unravel_index(int(np.argmax(ids)), ids.shape)
    at = int(starts[row]) + int(column)
    shard = bisect.bisect_right(self._borders, at) - 1
    path = os.path.join(self.folder, self._files[shard])
    raise InputError(
      f"{path} holds id {ids[row, column]} at {at - self._borders[shard]}, "
      f"outside the vocabulary of {self.vocab_size}; the file is damaged: "
      "remove its folder, and it is prepared again"
    )


def check_length(token_set: TokenSet, seq_len: int) -> None:
  """Raises InputError if a set is shorter than T ids and a target."""
  if token_set.num_ids < seq_len + 1:
    raise InputError(
      f"{token_set.name} has {token_set.num_ids:,} ids, fewer than one "
      f"sequence of data.seq_len {seq_len} and its target; give more text or "
      "shorten data.seq_len"
    )


def check_vocab(token_set: TokenSet, encoder: Tokenizer) -> None:
  """Raises InputError if another tokenizer encoded the set."""
  if token_set.tokenizer_fingerprint != encoder.fingerprint():
    raise InputError(
      f"{token_set.name} was prepared with another tokenizer (of "
      f"{token_set.vocab_size} tokens) than {encoder.name} (of "
      f"{encoder.vocab_size}); prepare its text again with this one"
    )


class SideWriter:
  """Writes a file beside the shards, an array at a time."""

  def __init__(self, folder: str, name: str, key: encryption.Key | None):
    self._name = name
    self._file = encryption.Output(os.path.join(folder, name), key)

  def write(self, values: np.ndarray) -> None:
    self._file.write(values.tobytes())

  def finish(self) -> dict:
    """Closes the file; returns its entry in the manifest."""
    return {"file": self._name, "sha256": self._file.finish()}


class SplitWriter:
  """Writes the shards and offsets of one split, and counts what it writes.

  Args:
    folder: where the files go.
    split: what their names begin with.
    dtype: "uint16" or "uint32".
    separator_id: the id that is written before each document, or None.
    key: encrypts the files, unless it is None.
  """

  def __init__(
    self,
    folder: str,
    split: str,
    dtype: str,
    separator_id: int | None,
    key: encryption.Key | None = None,
  ):
    self._folder, self._key = folder, key
    self._split = split
    self._dtype = np.dtype(dtype).newbyteorder("<")
    self._separator_id = separator_id
    self._shards = []
    self._file: encryption.Output | None = None
    self._in_shard = 0
    self._num_ids = 0
    self._offsets = array.array("q")
    self._num_bytes = 0
    self._num_separators = 0

  def write(self, ids: np.ndarray, num_bytes: int, is_first: bool) -> None:
    """Appends the ids of a piece of text.

    Args:
      num_bytes: its length in UTF-8.
      is_first: whether the piece begins a document.
    """
    if is_first:
      self._offsets.append(self._num_ids)
      if self._separator_id is not None:
        self._append(np.array([self._separator_id]))
        self._num_separators += 1
    self._num_bytes += num_bytes
    self._append(ids)

  def finish(self) -> dict:
    """Closes the files; returns the entry of this split in the manifest."""
    self._close_shard()
    offsets = SideWriter(self._folder, f"{self._split}.offsets.bin", self._key)
    offsets.write(np.array(self._offsets, "<i8"))
    return {
      "num_tokens": self._num_ids - self._num_separators,
      "num_separators": self._num_separators,
      "num_documents": len(self._offsets),
      "num_bytes": self._num_bytes,
      "shards": self._shards,
      "offsets": offsets.finish(),
    }

  def _append(self, ids: np.ndarray) -> None:
    ids = ids.astype(self._dtype)
    while len(ids):
      if self._file is None:
        name = f"{self._split}-{len(self._shards):05d}.bin"
        path = os.path.join(self._folder, name)
        self._file = encryption.Output(path, self._key)
        self._in_shard = 0
        self._shards.append({"file": name})
      part, ids = np.split(ids, [SHARD_IDS - self._in_shard])
      self._file.write(part.tobytes())
      self._in_shard += len(part)
      self._num_ids += len(part)
      if self._in_shard == SHARD_IDS:
        self._close_shard()

  def _close_shard(self) -> None:
    if self._file is None:
      return
    found, self._file = self._file.finish(), None
    self._shards[-1] |= {"num_ids": self._in_shard, "sha256": found}
