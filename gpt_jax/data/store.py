"""Prepared sets: folders of token shards that are made once and found again.

A folder holds manifest.json, tokenizer.json, SPLIT-NNNNN.bin (ids, uint16 or
uint32, little endian) and SPLIT.offsets.bin (int64, where documents start).
Its name is a hash of all that decides its content. It is written under
another name and renamed when whole, so a folder of that name is complete.

The questionable decision: reading text twice or three times (to count, to
train a vocabulary, to encode) rather than holding it, which keeps memory flat
for corpora of any size.
"""

import array
import bisect
import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import itertools
import json
import operator
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from gpt_jax import config, files
from gpt_jax.config import DataConfig, InputError
from gpt_jax.data import integrity, overlap, sources, tokenizers
from gpt_jax.data import manifest as manifest_lib
from gpt_jax.data.manifest import FORMAT, SPLITS
from gpt_jax.data.splitting import Part
from gpt_jax.data.tokenizers.bpe import train_bpe
from gpt_jax.data.tokenizers.plain import CharTokenizer
from gpt_jax.machine import runtime

# Ids in a shard at most.
SHARD_IDS = 1 << 26
# Characters encoded in one call.
BATCH_CHARS = 1 << 21
# Bytes of text that a vocabulary is trained on at most.
SAMPLE_BYTES = 64 << 20
# What the name of a set ends with where documents of equal text were brought to
# one side: a version that did not has put other ids under the name before it.
APART = "-apart"
# Ids and documents up to which each start looks for text on both sides.
OVERLAP_IDS = 1 << 25
OVERLAP_DOCUMENTS = 1 << 17
# Share of the held-out ids from which on a start says so.
OVERLAP_SHARE = 1e-3
# Seconds between lines of progress where there is no terminal.
REPORT_SECONDS = 5.0


class TokenSet:
  """One split of a prepared folder: a stream of ids, mapped, not loaded.

  Opening checks the sizes of its files and, as data.verify says, their hashes;
  nothing is read before these are known to be right. It can be pickled for
  other processes.

  Attributes:
    name: "folder/split".
    num_ids: ids in the stream, separators counted.
    num_tokens: ids without separators.
    num_documents: documents in the stream.
    num_bytes: UTF-8 bytes of the text.
    vocab_size: V; reading raises where an id is not below it.
    separator_id: the tokenizer's, or None; only split="document" writes it.
    tokenizer_fingerprint: that of the tokenizer that made the ids.
    is_apart: whether equal documents of the source are on one side.
    fingerprint: sha256 hex over the hashes of its files.
    check: the verdict on its files, which reading waits for.
  """

  def __init__(self, folder: str, split: str, manifest: dict, verify: str):
    content = manifest["splits"][split]
    self.name = f"{os.path.basename(os.path.abspath(folder))}/{split}"
    self.folder = folder
    self.num_tokens = content["num_tokens"]
    self.num_documents = content["num_documents"]
    self.num_bytes = content["num_bytes"]
    self.vocab_size = manifest["tokenizer"]["vocab_size"]
    self.separator_id = manifest["tokenizer"]["separator_id"]
    self.tokenizer_fingerprint = manifest["tokenizer"]["fingerprint"]
    self.is_apart = "text_sha256" in manifest
    self._dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
    self._files = [shard["file"] for shard in content["shards"]]
    self._offsets_file = content["offsets"]["file"]
    sizes = [shard["num_ids"] for shard in content["shards"]]
    self._borders = [0, *itertools.accumulate(sizes)]
    self.num_ids = self._borders[-1]
    hashes = [shard["sha256"] for shard in content["shards"]]
    hashes.append(content["offsets"]["sha256"])
    self.fingerprint = _sha256([split, hashes, self.tokenizer_fingerprint])
    self._maps = {}
    for file, size in zip(self._files, sizes, strict=True):
      path = os.path.join(folder, file)
      integrity.check_size(path, size * self._dtype.itemsize)
    path = os.path.join(folder, self._offsets_file)
    integrity.check_size(path, 8 * self.num_documents)
    names = [*self._files, self._offsets_file]
    self.check = integrity.Check(
      folder, dict(zip(names, hashes, strict=True)), verify
    )

  def read(self, start: int, stop: int) -> np.ndarray:
    """Returns ids [start, stop) of the stream, int32.

    Raises:
      InputError: an id is not below vocab_size (a damaged file).
      IndexError: the range reaches outside the stream.
    """
    return self.read_windows([start], stop - start)[0]

  def read_windows(self, starts, length: int) -> np.ndarray:
    """Returns ids [s, s + length) for each s of starts, int32 (b, length)."""
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
    if out.size and out.max() >= self.vocab_size:
      self._raise_bad_id(out, starts)
    return out.astype(np.int32)

  @property
  def document_starts(self) -> np.ndarray:
    """Where each document starts in the stream, int64, ascending."""
    is_new = self._offsets_file not in self._maps
    starts = self._map(self._offsets_file, np.dtype("<i8"))
    if is_new:
      self._check_offsets(starts)
    return starts

  def __getstate__(self):
    return self.__dict__ | {"_maps": {}}

  def _shard(self, i: int) -> np.ndarray:
    return self._map(self._files[i], self._dtype)

  def _map(self, file: str, dtype: np.dtype) -> np.ndarray:
    if file not in self._maps:
      self.check.wait()
      path = os.path.join(self.folder, file)
      try:
        if os.path.getsize(path) == 0:
          self._maps[file] = np.empty(0, dtype)
        else:
          # A plain array over the map: slices of np.memmap cost microseconds.
          mapped = np.memmap(path, dtype, mode="r")
          self._maps[file] = np.asarray(mapped).view(np.ndarray)
      except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    return self._maps[file]

  def _check_offsets(self, starts: np.ndarray) -> None:
    block = 1 << 20  # of 8 MiB: memory stays flat
    is_good = not len(starts) or (starts[0] == 0 and starts[-1] <= self.num_ids)
    for at in range(0, len(starts), block):
      part = starts[at : at + block + 1]
      is_good = is_good and bool((part[1:] >= part[:-1]).all())
    if not is_good:
      del self._maps[self._offsets_file]
      path = os.path.join(self.folder, self._offsets_file)
      raise InputError(
        f"{path} is damaged: its offsets must ascend from 0 to at most "
        f"{self.num_ids}; {manifest_lib.REMEDY}"
      )

  def _raise_bad_id(self, ids: np.ndarray, starts) -> None:
    row, column = np.unravel_index(int(ids.argmax()), ids.shape)
    at = int(starts[row]) + int(column)
    shard = bisect.bisect_right(self._borders, at) - 1
    path = os.path.join(self.folder, self._files[shard])
    raise InputError(
      f"{path} holds id {ids[row, column]} at {at - self._borders[shard]}, "
      f"outside the vocabulary of {self.vocab_size}; the file is damaged: "
      "remove its folder, and it is prepared again"
    )


@dataclasses.dataclass(frozen=True)
class PreparedData:
  """What a run reads.

  Attributes:
    train: (weight, set) of each source; weights sum to 1.
    valid: sets by name ("valid" where there is one); empty ones are left out.
    folders: the prepared folders behind them.
  """

  train: list[tuple[float, TokenSet]]
  valid: dict[str, TokenSet]
  folders: list[str]

  @functools.cached_property
  def tokenizer(self) -> tokenizers.Tokenizer:
    """The tokenizer that all sets share, loaded when first asked for."""
    return _load_tokenizer(self.folders[0])

  @property
  def tokenizer_path(self) -> str:
    """The file that `tokenizer.load` reads."""
    return os.path.join(self.folders[0], "tokenizer.json")

  @property
  def vocab_size(self) -> int:
    return self.train[0][1].vocab_size

  @property
  def separator_id(self) -> int | None:
    return self.train[0][1].separator_id

  @property
  def fingerprint(self) -> str:
    """The sha256 hex of all ids, valid sets included."""
    train = [token_set.fingerprint for _, token_set in self.train]
    valid = {name: s.fingerprint for name, s in self.valid.items()}
    return _sha256([train, valid])


def prepare(
  data: DataConfig,
  say: Callable[[str], None] = print,
  splits: tuple[str, ...] = SPLITS,
  may_make: bool = True,
) -> PreparedData:
  """Returns PreparedData for a config, making what is not there yet.

  Safe to call in several processes at once: one prepares, the others wait.

  Args:
    data: the config's section.
    say: takes lines of progress, and one for each set that was made.
    splits: what will be read; large sets of these are hashed from now on, in
      threads.
    may_make: whether what is not there is made, and its text read.

  Raises:
    InputError: a source, the tokenizer or the folder cannot be used, or a set
      is not there and may not be made.
  """
  mixture = sources.parse_mixture(data.source)
  dir = files.user_path("data.dir", data.dir)
  data = dataclasses.replace(data, dir=dir)
  parts = _parts_of(data)
  made = _prepare_parts(parts, data, say, may_make)
  _check_one_tokenizer(made)
  train = [(weight, made[i]["train"]) for i, (weight, _) in enumerate(mixture)]
  held = [p["valid"] for p in made if p["valid"].num_ids]
  slugs = [
    _slug(part.source.spec)
    for part, p in zip(parts, made, strict=True)
    if p["valid"].num_ids
  ]
  if len(held) == 1:
    slugs = ["valid"]
  names = [
    slug if slugs.count(slug) == 1 else f"{slug}-{i}"
    for i, slug in enumerate(slugs)
  ]
  valid = dict(zip(names, held, strict=True))
  is_new = any(part.is_made for part in parts)
  sets = [s for _, s in train], held
  if "train" in splits and held and _is_overlap_likely(made, parts):
    ids, documents = (
      sum(getattr(s, name) for s in [*sets[0], *held])
      for name in ("num_ids", "num_documents")
    )
    is_quick = ids <= OVERLAP_IDS and documents <= OVERLAP_DOCUMENTS
    if is_new or is_quick:
      say_overlap(*sets, say, OVERLAP_SHARE)
  used = sets[0] if "train" in splits else []
  used += held if "valid" in splits else []
  for token_set in used:
    if token_set.check.start():
      size = token_set.check.num_bytes / 1e9
      say(f"checking the hashes of {token_set.name}, {size:.1f} GB, meanwhile")
  return PreparedData(train, valid, [p["train"].folder for p in made])


def _parts_of(data: DataConfig) -> list[Part]:
  """Returns the sources of a config, in the order of PreparedData.folders."""
  opened = [
    sources.open_source(spec) for _, spec in sources.parse_mixture(data.source)
  ]
  if not 0 <= data.valid_frac < 1:
    raise InputError(
      f"data.valid_frac is {data.valid_frac}; it must be at least 0 and below "
      "1, so that something is left to train on"
    )
  how = (data.split, data.valid_frac)
  if data.valid_source is None:
    return [Part(source, "split", *how) for source in opened]
  return [Part(source, "train", *how) for source in opened] + [
    Part(sources.open_source(spec), "valid", *how)
    for _, spec in sources.parse_mixture(data.valid_source)
  ]


def _check_one_tokenizer(made: list[dict[str, TokenSet]]) -> None:
  first = made[0]["train"]
  for sets in made[1:]:
    other = sets["train"]
    if other.tokenizer_fingerprint != first.tokenizer_fingerprint:
      raise InputError(
        f"{other.folder} was made with another tokenizer than {first.folder}, "
        "which it is mixed with; remove both, and they are prepared again"
      )


def share_note(folder: str) -> str:
  """Returns a clause where a set holds back far from what was asked, or ""."""
  manifest = manifest_lib.read(folder)
  wanted = manifest["valid_frac"]
  if manifest["role"] != "split" or not wanted:
    return ""
  train, held = (manifest["splits"][s]["num_bytes"] for s in SPLITS)
  share = held / max(1, held + train)
  if wanted / 2 <= share <= wanted * 2:
    return ""
  return (
    f"{share:.1%} of the text is held back for data.valid_frac {wanted:g}, as "
    "its documents are few or uneven: data.split='tail' is exact"
  )


def _is_overlap_likely(made, parts: list[Part]) -> bool:
  """Returns whether text may be on both sides: of several sources, or of one
  that a version divided which did not look for equal texts."""
  return len(parts) > 1 or not made[0]["train"].is_apart


def say_overlap(
  train: list[TokenSet],
  valid: list[TokenSet],
  say: Callable[[str], None],
  least: float = 0.0,
) -> None:
  """Says how many held-out documents are also trained on, where some are.

  Args:
    train, valid: what is read.
    say: takes the line.
    least: the share of the held-out ids from which on it is said.
  """
  found, total, share = overlap.count(train, valid)
  if not found or share < least:
    return
  line = (
    f"{found:,} of {total:,} held-out documents are also in the text "
    f"to train on ({share:.2%} of the tokens), so validation losses are too low"
  )
  if len(train) > 1 or train[0].folder != valid[0].folder:
    line += "; give each text in one source only"
  elif not train[0].is_apart:
    line += f"; remove {train[0].folder}, and they are brought to one side"
  say(line)


def prepare_text(
  path_or_spec: str,
  encoder: tokenizers.Tokenizer,
  dir: str,
  split: str = "document",
  say: Callable[[str], None] = print,
  verify: str = "once",
) -> TokenSet:
  """Returns a source (or the file of a plain path) as one set.

  Args:
    path_or_spec: "text:a/*.txt", or just "a.txt"; "a.jsonl" is read as records.
    encoder: the tokenizer of the run that will read it.
    dir: where prepared sets are kept.
    split: document writes separators between documents, tail does not.
    say: takes lines of progress.
    verify: word of data.verify.

  Raises:
    InputError: the text is missing, or the tokenizer cannot encode it.
  """
  spec = sources.spec_of(path_or_spec)
  part = Part(sources.open_source(spec), "valid", split, 0.0)
  name = _folder_name(part, encoder.name, encoder.fingerprint())
  dir = files.user_path("data.dir", dir)
  job = _Job(dir, lambda: (encoder, {}), say, verify)
  return _find_or_make(job, part, name)["valid"]


def open_prepared(path: str, verify: str = "once") -> dict[str, TokenSet]:
  """Returns {"train": set, "valid": set} of a prepared folder.

  Raises:
    InputError: it is not one, or a file is missing, cut short or changed.
  """
  manifest = manifest_lib.read(path)
  _check_tokenizer_file(path, manifest, verify)
  sets = {split: TokenSet(path, split, manifest, verify) for split in SPLITS}
  if "seal" not in manifest and all(s.check.is_over for s in sets.values()):
    if verify != "never":
      _seal(path, manifest)
  return sets


def verify(path: str) -> None:
  """Reads all of a prepared folder and checks the hash of each file.

  Raises:
    InputError: a file is missing, cut short or changed; it is named.
  """
  for token_set in open_prepared(path, "open").values():
    token_set.document_starts  # noqa: B018 (checked where it is mapped)
  _load_tokenizer(path)


def _check_tokenizer_file(path: str, manifest: dict, verify: str) -> None:
  expected = manifest["tokenizer"].get("sha256")
  if expected is not None and verify != "never":
    integrity.check_file(os.path.join(path, "tokenizer.json"), expected)


def _load_tokenizer(path: str) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a prepared folder.

  Raises:
    InputError: it is not the one that made the folder's ids.
  """
  noted = manifest_lib.read(path)["tokenizer"]
  file = os.path.join(path, "tokenizer.json")
  encoder = tokenizers.load(file)
  found = {
    "fingerprint": encoder.fingerprint(),
    "vocab_size": encoder.vocab_size,
    "separator_id": encoder.separator_id,
  }
  if found != {key: noted[key] for key in found}:
    raise InputError(
      f"{file} holds another tokenizer ({encoder.name}, {encoder.vocab_size} "
      f"tokens) than the one that made the ids beside it ({noted['spec']}, "
      f"{noted['vocab_size']} tokens); {manifest_lib.REMEDY}"
    )
  return encoder


def _seal(path: str, manifest: dict) -> None:
  """Seals the manifest of an older version, whose files were found right."""
  with contextlib.suppress(OSError):  # a folder that cannot be written
    text = manifest_lib.dump(manifest_lib.sealed(manifest))
    files.write_text(os.path.join(path, "manifest.json"), text)


def verify_text(
  data: DataConfig, prepared: PreparedData, say: Callable[[str], None] = print
) -> None:
  """Reads the sources again: do they hold the text that was prepared?

  Raises:
    InputError: one does not, though sizes and dates of its files agree.
  """
  for part, folder in zip(_parts_of(data), prepared.folders, strict=True):
    noted = manifest_lib.read(folder).get("text_sha256")
    if noted is None:
      say(
        f"{folder} was prepared by an older version, which noted no hash of "
        f"its text: whether {part.source.spec} has changed is not known"
      )
    elif part.read_text_sha256() != noted:
      raise InputError(
        f"{part.source.spec} does not hold the text that {folder} was made "
        "of, though the sizes and dates of its files agree; remove that "
        "folder, and it is prepared again"
      )


def check_length(token_set: TokenSet, seq_len: int) -> None:
  """Raises InputError where a set has no sequence of T ids and a target."""
  if token_set.num_ids < seq_len + 1:
    raise InputError(
      f"{token_set.name} has {token_set.num_ids:,} ids, fewer than one "
      f"sequence of data.seq_len {seq_len} and its target; give more text or "
      "shorten data.seq_len"
    )


def check_vocab(token_set: TokenSet, encoder: tokenizers.Tokenizer) -> None:
  """Raises InputError where a set was made with another tokenizer."""
  if token_set.tokenizer_fingerprint != encoder.fingerprint():
    raise InputError(
      f"{token_set.name} was prepared with another tokenizer (of "
      f"{token_set.vocab_size} tokens) than {encoder.name} (of "
      f"{encoder.vocab_size}); prepare its text again with this one"
    )


@dataclasses.dataclass
class _Job:
  """What the parts of one preparation share.

  Attributes:
    dir: where prepared folders are kept.
    build: makes the tokenizer and the manifest's notes on it, when needed.
    say: takes lines of progress.
    verify: word of data.verify.
    may_make: whether what is not there is made.
    is_apart: whether the vocabulary is of a text whose documents were moved.
  """

  dir: str
  build: Callable[[], tuple[tokenizers.Tokenizer, dict]]
  say: Callable[[str], None]
  verify: str
  may_make: bool = True
  is_apart: bool = False

  @functools.cached_property
  def encoder(self) -> tuple[tokenizers.Tokenizer, dict]:
    return self.build()

  def find(self, name: str) -> str:
    """Returns the folder of a set: what is there, else where it will be."""
    path = os.path.join(self.dir, name)
    if not _is_prepared(path) and _is_prepared(path + APART):
      return path + APART
    return path


def _prepare_parts(
  parts, data: DataConfig, say, may_make: bool
) -> list[dict[str, TokenSet]]:
  identity = tokenizers.identity(data.tokenizer)
  if tokenizers.is_trained(data.tokenizer):
    rows = [(p.source.fingerprint(), p.role) for p in parts]
    identity = _sha256([identity, rows, data.split, data.valid_frac])
  names = [_folder_name(part, data.tokenizer, identity) for part in parts]

  def build():
    if not tokenizers.is_trained(data.tokenizer):
      encoder = tokenizers.build_tokenizer(data.tokenizer)
      for line in tokenizers.remarks(encoder):
        say(line)
      return encoder, {}
    for name in names:
      path = job.find(name)
      if _is_prepared(path):
        job.is_apart = path.endswith(APART)
        notes = manifest_lib.read(path)["tokenizer"]["notes"]
        return _load_tokenizer(path), notes
    trained = train_tokenizer(data.tokenizer, parts, say)
    # The vocabulary was learned on what was brought to one side, too.
    job.is_apart = any(part.num_moved for part in parts)
    return trained

  job = _Job(data.dir, build, say, data.verify, may_make)
  return [
    _find_or_make(job, part, name)
    for part, name in zip(parts, names, strict=True)
  ]


def _folder_name(part: Part, spec: str, identity: str) -> str:
  is_divided = part.role == "split"
  key = _sha256(
    [
      FORMAT,
      part.source.fingerprint(),
      part.role,
      part.split,
      part.valid_frac if is_divided else None,
      identity,
    ]
  )
  kind, argument = config.tokenizer_spec(spec)
  word = kind + argument if kind == "bpe" else kind
  return f"{_slug(part.source.spec)}-{word}-{key[:12]}"


def _slug(spec: str) -> str:
  scheme, rest = sources.parse_spec(spec)
  words = re.findall(r"[A-Za-z0-9]+", rest.partition("#")[0])
  return "-".join([scheme, *words[-3:]]).lower()[:48]


def _find_or_make(job: _Job, part: Part, name: str) -> dict[str, TokenSet]:
  path = job.find(name)
  if not _is_prepared(path):
    if not job.may_make:
      raise InputError(
        f"{path} is not there; to read {part.source.spec} and prepare it "
        f"again, give the folder: --config.data.dir={job.dir}"
      )
    try:
      os.makedirs(job.dir, exist_ok=True)
      lock = os.path.join(job.dir, f".lock-{name}")
      with _lock(lock, name, job.say) as is_held:
        _remove_stale(job.dir, name, is_held)
        path = job.find(name)
        if not _is_prepared(path):
          path = _make(job, part, path)
    except OSError as error:
      raise _mendable(error, job.dir) from error
  manifest = manifest_lib.read(path)
  if manifest.get("key", name[-12:]) != name[-12:] or manifest["role"] != (
    part.role
  ):
    raise InputError(
      f"{path} holds another prepared set, made of {manifest['source']}: a "
      "folder was renamed or replaced; remove it, and it is prepared again"
    )
  return open_prepared(path, job.verify)


def _is_prepared(path: str) -> bool:
  """Returns whether anything is there; opening says whether it is whole."""
  try:
    return bool(os.listdir(path))
  except OSError:
    return os.path.lexists(path)


def _make(job: _Job, part: Part, path: str) -> str:
  """Prepares a part; returns its folder, `path` or that with APART."""
  identity = part.source.fingerprint()
  encoder, notes = job.encoder
  folder, name = os.path.split(path)
  temp = os.path.join(
    folder, f".tmp-{name}.{socket.gethostname()}.{os.getpid()}"
  )
  os.makedirs(temp)
  try:
    manifest = _write(temp, part, encoder, notes, job.say, name[-12:])
    if part.source.fingerprint() != identity:
      raise InputError(
        f"{part.source.spec} changed while it was read; start again when it is "
        "whole"
      )
    if job.is_apart or part.num_moved:
      path += APART
    try:
      os.rename(temp, path)
    except OSError as error:
      # Another process was first; its folder has the same content.
      if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
        raise
      shutil.rmtree(temp)
    _sync(folder)
  except BaseException:
    shutil.rmtree(temp, ignore_errors=True)
    raise
  counts = [manifest["splits"][split]["num_tokens"] for split in SPLITS]
  parts = [f"{n:,} {s}" for n, s in zip(counts, SPLITS, strict=True) if n]
  line = f"prepared {' + '.join(parts)} tokens ({encoder.name}) in {path}"
  job.say("; ".join(filter(None, [line, share_note(path)])))
  for note in part.notes:
    job.say(note)
  part.is_made = True
  return path


def _write(temp: str, part: Part, encoder, notes: dict, say, key: str) -> dict:
  """Encodes a part into a folder; returns its manifest."""
  dtype = "uint16" if encoder.vocab_size <= 1 << 16 else "uint32"
  with _Progress("reading", [part], say) as progress:
    part.survey(progress.add)
  separator_id = encoder.separator_id if part.split == "document" else None
  writers = {s: _SplitWriter(temp, s, dtype, separator_id) for s in SPLITS}
  queue, num_chars = [], 0

  def flush():
    encoded = encoder.encode_batch([text for _, _, text in queue])
    for (split, is_first, text), ids in zip(queue, encoded, strict=True):
      writers[split].write(ids, text, is_first)
      progress.add(text)
    queue.clear()

  with _Progress("encoding", [part], say) as progress:
    for _, tagged in part.pieces():
      for split, group in itertools.groupby(tagged, operator.itemgetter(0)):
        is_first = True
        for text in encoder.split(piece for _, piece in group):
          queue.append((split, is_first, text))
          is_first = False
          num_chars += len(text)
          if num_chars >= BATCH_CHARS:
            flush()
            num_chars = 0
    if queue:
      flush()
  splits = {split: writer.finish() for split, writer in writers.items()}
  _check_filled(part, splits)
  text = encoder.to_json()
  files.write_text(os.path.join(temp, "tokenizer.json"), text)
  manifest = {
    "format": FORMAT,
    "key": key,
    "source": part.source.spec,
    "role": part.role,
    "split": part.split,
    "valid_frac": part.valid_frac,
    "tokenizer": {
      "spec": encoder.name,
      "fingerprint": encoder.fingerprint(),
      "vocab_size": encoder.vocab_size,
      "separator_id": encoder.separator_id,
      "notes": notes,
      "sha256": hashlib.sha256(text.encode()).hexdigest(),
    },
    "dtype": dtype,
    "text_sha256": part.text_sha256(),
    "splits": splits,
  }
  text = manifest_lib.dump(manifest_lib.sealed(manifest))
  files.write_text(os.path.join(temp, "manifest.json"), text)
  _sync(temp)
  return manifest


def _check_filled(part: Part, splits: dict) -> None:
  spec = part.source.spec
  if not any(split["num_tokens"] for split in splits.values()):
    raise InputError(f"the corpus {spec} is empty: no document holds any text")
  if part.role == "split" and not splits["train"]["num_tokens"]:
    raise InputError(
      f"{spec} leaves no text to train on with data.valid_frac "
      f"{part.valid_frac}; give more text or lower data.valid_frac"
    )


class _SplitWriter:
  """Writes one split's shards and offsets, and counts what goes in."""

  def __init__(self, folder: str, split: str, dtype: str, separator_id):
    self._folder = folder
    self._split = split
    self._dtype = np.dtype(dtype).newbyteorder("<")
    self._separator_id = separator_id
    self._shards = []
    self._file = None
    self._digest = None
    self._in_shard = 0
    self._num_ids = 0
    self._offsets = array.array("q")
    self._num_bytes = 0
    self._num_separators = 0

  def write(self, ids: np.ndarray, text: str, is_first: bool) -> None:
    """Appends the ids of a text; is_first says that a document begins."""
    if is_first:
      self._offsets.append(self._num_ids)
      if self._separator_id is not None:
        self._append(np.array([self._separator_id]))
        self._num_separators += 1
    self._num_bytes += _count_bytes(text)
    self._append(ids)

  def finish(self) -> dict:
    """Closes the files; returns the manifest's entry."""
    self._close_shard()
    offsets = np.array(self._offsets, "<i8").tobytes()
    name = f"{self._split}.offsets.bin"
    with open(os.path.join(self._folder, name), "wb") as file:
      file.write(offsets)
      file.flush()
      os.fsync(file.fileno())
    return {
      "num_tokens": self._num_ids - self._num_separators,
      "num_separators": self._num_separators,
      "num_documents": len(self._offsets),
      "num_bytes": self._num_bytes,
      "shards": self._shards,
      "offsets": {
        "file": name,
        "sha256": hashlib.sha256(offsets).hexdigest(),
      },
    }

  def _append(self, ids: np.ndarray) -> None:
    ids = ids.astype(self._dtype)
    while len(ids):
      if self._file is None:
        name = f"{self._split}-{len(self._shards):05d}.bin"
        path = os.path.join(self._folder, name)
        self._file = open(path, "wb", buffering=1 << 20)
        self._digest = hashlib.sha256()
        self._in_shard = 0
        self._shards.append({"file": name})
      part, ids = np.split(ids, [SHARD_IDS - self._in_shard])
      data = part.tobytes()
      self._file.write(data)
      self._digest.update(data)
      self._in_shard += len(part)
      self._num_ids += len(part)
      if self._in_shard == SHARD_IDS:
        self._close_shard()

  def _close_shard(self) -> None:
    if self._file is None:
      return
    with self._file as file:
      file.flush()
      os.fsync(file.fileno())
    self._file = None
    self._shards[-1] |= {
      "num_ids": self._in_shard,
      "sha256": self._digest.hexdigest(),
    }


def train_tokenizer(spec: str, parts: list[Part], say):
  """Returns (tokenizer, notes) of a vocabulary made from the parts' text."""
  kind = config.tokenizer_spec(spec)[0]
  with _Progress("reading", parts, say) as progress:
    for part in parts:
      part.survey(progress.add)
  with _Progress("learning the vocabulary", parts, say) as progress:
    if kind == "chars":
      # All text, so that validation has no unknown character (as nanoGPT).
      seen = np.zeros(0x110000, bool)
      for _, piece in _all_pieces(parts, progress.add):
        seen[np.frombuffer(piece.encode("utf-32-le"), "<u4")] = True
      characters = [chr(code) for code in np.flatnonzero(seen)]
      _check_any(parts, characters)
      return CharTokenizer(characters, spec), {}
    kept, notes = _sample(
      piece
      for split, piece in _all_pieces(parts, progress.add)
      if split == "train"
    )
  _check_any(parts, kept)
  is_shown = runtime.is_terminal(sys.stderr)
  encoder = train_bpe(spec, kept, is_shown)
  wanted = tokenizers.find_vocab_size(spec)
  if encoder.vocab_size < wanted:
    say(f"the text has pairs for {encoder.vocab_size} of {wanted} tokens only")
  return encoder, notes


def _check_any(parts: list[Part], found) -> None:
  if not found:
    specs = ", ".join(part.source.spec for part in parts)
    raise InputError(f"the corpus {specs} is empty: no document holds any text")


def _all_pieces(parts, add) -> Iterator[tuple[str, str]]:
  for part in parts:
    for _, tagged in part.pieces():
      for split, piece in tagged:
        yield split, piece
        add(piece)


def _sample(pieces: Iterator[str]) -> tuple[list[str], dict]:
  """Returns at most SAMPLE_BYTES of text, evenly spread, and notes on it.

  The length of the stream is not known: whenever too much is kept, every
  second piece goes, and from then on every second is taken.
  """
  short = 1 << 17
  kept, size, stride, total = [], 0, 1, 0
  cut = (
    piece[i : i + short]
    for piece in pieces
    for i in range(0, len(piece), short)
  )
  for i, text in enumerate(cut):
    num_bytes = _count_bytes(text)
    total += num_bytes
    if i % stride == 0:
      kept.append(text)
      size += num_bytes
    while size > SAMPLE_BYTES and len(kept) > 1:
      kept = kept[::2]
      stride *= 2
      size = sum(map(_count_bytes, kept))
  return kept, {
    "trained_on_bytes": size,
    "of_bytes": total,
    "every_nth_piece": stride,
  }


class _Progress:
  """How far a reading is: a bar on a terminal, else a line now and then."""

  def __init__(self, doing: str, parts: list[Part], say):
    sizes = [part.source.num_bytes() for part in parts]
    self._total = None if None in sizes else sum(sizes)
    what = ", ".join(part.source.spec for part in parts)
    if len(what) > 40:
      what = "..." + what[-37:]
    self._label = f"{doing} {what}"
    self._say = say
    self._done = 0
    self._bar = None
    self._start = self._last = time.monotonic()

  def __enter__(self):
    if runtime.is_terminal(sys.stderr):
      from rich.console import Console
      from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
      )

      self._bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
      )
      self._task = self._bar.add_task(self._label, total=self._total)
      self._bar.start()
    return self

  def __exit__(self, *_):
    if self._bar is not None:
      self._bar.stop()

  def add(self, text: str) -> None:
    """Counts a text as done."""
    self._done += _count_bytes(text)
    if self._bar is not None:
      self._bar.update(self._task, completed=self._done)
      return
    now = time.monotonic()
    if now - self._last >= REPORT_SECONDS:
      self._last = now
      rate = self._done / (now - self._start) / 1e6
      of = f" of {self._total / 1e6:,.0f}" if self._total else ""
      self._say(
        f"{self._label}: {self._done / 1e6:,.0f}{of} MB, {rate:,.1f} MB/s"
      )


def _count_bytes(text: str) -> int:
  return len(text) if text.isascii() else len(text.encode("utf-8"))


def _sha256(content) -> str:
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _sync(folder: str) -> None:
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


@contextlib.contextmanager
def _lock(path: str, name: str, say):
  """Holds a lock that dies with its process.

  Where a file system has no locks, the rename still decides who was first.

  Yields:
    Whether it is held.
  """
  file = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
  try:
    is_held = True
    try:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        say(f"waiting for another process that prepares {name}")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
      is_held = False
      say(
        f"{os.path.dirname(path)} has no locks ({error.strerror}): other "
        f"processes that prepare {name} now will do so too, and one is kept"
      )
    yield is_held
    with contextlib.suppress(FileNotFoundError):
      os.unlink(path)
  finally:
    os.close(file)


def _remove_stale(folder: str, name: str, is_locked: bool) -> None:
  """Removes what killed preparations of this machine left behind."""
  host = socket.gethostname()
  for entry in os.listdir(folder):
    match = re.fullmatch(r"\.tmp-(.+?)\.(.+)\.(\d+)", entry)
    if not match or match[2] != host:
      continue
    # Under this set's lock nobody else on this machine can be writing it.
    is_ours = is_locked and match[1] == name
    if is_ours or not _is_alive(match[3]):
      shutil.rmtree(os.path.join(folder, entry), ignore_errors=True)


def _is_alive(digits: str) -> bool:
  pid = int(digits[:20])
  try:
    if pid:
      os.kill(pid, 0)
  except (ProcessLookupError, OverflowError):
    return False
  except PermissionError:
    pass
  return True


def _mendable(error: OSError, folder: str) -> InputError:
  """Returns the sentence for an error of writing that the user can mend."""
  if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
    return InputError(
      f"no space is left in {folder} for the prepared text; free some, or set "
      "data.dir to another disk"
    )
  inside = os.path.abspath(folder)
  path = error.filename
  if isinstance(path, str) and not os.path.abspath(path).startswith(inside):
    return InputError(f"cannot read {path}: {error.strerror}")
  return InputError(
    f"cannot write in {folder}: {error.strerror}; set data.dir to a folder "
    "that can be written"
  )
