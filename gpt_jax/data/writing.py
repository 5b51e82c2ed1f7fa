"""Writes a prepared folder: the text of a part, encoded, and its manifest.

Design choice: the text is read two or three times (to count, to learn a
vocabulary, to encode) rather than held, which keeps memory use flat for
corpora of any size.
"""

import contextlib
import dataclasses
import functools
import itertools
import operator
import os
import shutil
from collections.abc import Callable

import numpy as np

from gpt_jax import digest, files
from gpt_jax.data import (
  card,
  chunks,
  folders,
  locks,
  merging,
  preferences,
  sources,
  stores,
  workers,
)
from gpt_jax.data import manifest as manifest_lib
from gpt_jax.data.examples import LabelWriter, encode
from gpt_jax.data.labels import Labels, parse
from gpt_jax.data.manifest import FORMAT, SPLITS
from gpt_jax.data.progress import Progress, count_bytes
from gpt_jax.data.shards import SideWriter, SplitWriter, TokenSet
from gpt_jax.data.sources.document import Unreachable
from gpt_jax.data.sources.preference import PreferenceSource
from gpt_jax.data.splitting import Part
from gpt_jax.data.templates import build_encoder
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.data.workers import Killed
from gpt_jax.encryption import Key
from gpt_jax.exits import InputError
from gpt_jax.machine import places

# Characters that are encoded in one call.
BATCH_CHARS = 1 << 21


@dataclasses.dataclass
class Job:
  """What the parts of one preparation share.

  Attributes:
    dir: where prepared folders lie.
    build: returns the tokenizer and notes on it for the manifest; called when
      a folder must be written.
    say: receives lines of progress.
    verify: as data.verify.
    may_make: whether missing folders are written.
    find_labels: returns the labels of the sources, if the objective learns
      labels; called when a folder must be written.
    is_apart: whether documents had moved to the split of an equal one when the
      vocabulary was learned.
    num_workers: the most processes that encode; None for one for each core.
    store: the address that `dir` stands for, if there is one.
    key: encrypts what is written, unless it is None.
  """

  dir: str
  build: Callable[[], tuple[Tokenizer, dict]]
  say: Callable[[str], None]
  verify: str
  may_make: bool = True
  find_labels: Callable[[], Labels] | None = None
  is_apart: bool = False
  num_workers: int | None = None
  store: str | None = None
  key: Key | None = None

  @functools.cached_property
  def encoder(self) -> tuple[Tokenizer, dict]:
    return self.build()

  @functools.cached_property
  def labels(self) -> Labels | None:
    return None if self.find_labels is None else self.find_labels()


def find_or_write(job: Job, part: Part, name: str) -> dict[str, TokenSet]:
  """Returns the sets of a part, which is written first if it is missing.

  Args:
    name: of the folder.

  Raises:
    InputError: it is missing and may not be written, is another set, or cannot
      be written.
  """
  path = folders.find_folder(job.dir, name)
  if job.store is not None and not folders.is_prepared(path):
    stores.bring(job.store, job.dir, name)
    path = folders.find_folder(job.dir, name)
  if not folders.is_prepared(path):
    if not job.may_make:
      raise InputError(
        f"{path} is not there; to read {part.source.spec} and prepare it "
        f"again, give the folder: --config.data.dir={job.dir}"
      )
    try:
      os.makedirs(job.dir, exist_ok=True)
      lock = os.path.join(job.dir, f".lock-{name}")
      with locks.lock(lock, name, job.say) as is_held:
        locks.remove_stale(job.dir, name, is_held)
        # Another process may have written it while this one waited.
        path = folders.find_folder(job.dir, name)
        if not folders.is_prepared(path):
          if job.store is not None:
            stores.bring_shards(job.store, job.dir, name)
          path = write_folder(job, part, name)
    except OSError as error:
      raise locks.explain(error, job.dir) from error
  # Left by a process that was killed just after it renamed the folder.
  shutil.rmtree(merging.chunk_folder(job.dir, name), ignore_errors=True)
  folders.require_same(path, part, name)
  if job.store is not None and job.may_make:
    stores.send(job.store, path)
  return folders.open_prepared(path, job.verify)


def write_folder(job: Job, part: Part, name: str) -> str:
  """Writes the folder of a part; returns its path, which may end in APART.

  Raises:
    InputError: the text is empty, cannot be encoded, or changed meanwhile.
    OSError: the disk is full or cannot be written.
  """
  identity = part.source.fingerprint()
  encoder, notes = job.encoder
  path = os.path.join(job.dir, name)
  temporary = locks.temporary_path(job.dir, name)
  os.makedirs(temporary)
  try:
    hashed = {}
    if part.template is not None:
      splits = _write_masked(temporary, part, encoder, job.say, job.key)
    elif job.labels is None:
      splits, hashed = _write_texts(temporary, part, job, name)
    else:
      splits = _write_labelled(
        temporary, part, encoder, job.say, job.key, job.labels
      )
    if not hashed:
      hashed = {"text_sha256": chunks.mark(part.text_sha256(), job.key)}
    facts = {"key": name[-manifest_lib.KEY_DIGITS :], **hashed}
    if job.key is not None:
      facts["encryption"] = job.key.note()
    records = card.read_records(part.source.files)
    if records:
      facts["records"] = records
    _write_manifest(temporary, part, encoder, notes, splits, facts, job.labels)
    if part.source.fingerprint() != identity:
      raise part.changed()
    if job.is_apart or part.num_moved:
      path += folders.APART
    locks.publish(temporary, path)
  except BaseException as error:
    shutil.rmtree(temporary, ignore_errors=True)
    # Keep the chunks only after errors from which the same command continues.
    goes_on = isinstance(error, (Unreachable, Killed, places.Unreached))
    if isinstance(error, Exception) and not goes_on:
      shutil.rmtree(merging.chunk_folder(job.dir, name), ignore_errors=True)
    raise
  counts = [splits[split]["num_tokens"] for split in SPLITS]
  shown = [f"{n:,} {s}" for n, s in zip(counts, SPLITS, strict=True) if n]
  line = f"prepared {' + '.join(shown)} tokens ({encoder.name}) in {path}"
  job.say("; ".join(filter(None, [line, folders.describe_share(path)])))
  for note in part.notes:
    job.say(note)
  part.is_made = True
  return path


def write_shard(job: Job, part: Part, name: str, index: int, count: int) -> str:
  """Encodes one of `count` shares of the chunks of a part; returns its folder.

  Raises:
    InputError: the part cannot be read in chunks, or as write_folder.
  """
  wanted = merging.find_chunks(part)
  if not wanted:
    raise InputError(
      f"{part.source.spec} cannot be prepared in shards: that is for texts in "
      "files, without labels or dialogues, and data.split=document or content"
    )
  identity = part.source.fingerprint()
  encoder, _ = job.encoder
  plan = merging.make_plan(encoder, name, wanted, part, job.key)
  into = merging.shard_folder(job.dir, name, index, count)
  share = wanted[index::count]
  try:
    os.makedirs(job.dir, exist_ok=True)
    lock = os.path.join(job.dir, f".lock-{os.path.basename(into)}")
    with locks.lock(lock, os.path.basename(into), job.say):
      merging.encode_missing(
        *(job.dir, name, part, encoder, plan, share, into),
        job.num_workers,
        job.say,
      )
      with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(into, workers.TOKENIZER))
      if part.source.fingerprint() != identity:
        shutil.rmtree(into)
        raise part.changed()
  except OSError as error:
    raise locks.explain(error, job.dir) from error
  if job.store is not None:
    stores.send(job.store, into)
  job.say(
    f"encoded {len(share)} of {len(wanted)} parts of {part.source.spec} in "
    f"{into}; with the folders of all {count} shards in one data.dir, the "
    "command without --shard makes the set of them"
  )
  return into


def _write_texts(
  folder: str, part: Part, job: Job, name: str
) -> tuple[dict, dict]:
  """Returns ({split: entry of the manifest}, {manifest key: text digest}).

  The second is empty if the text was read in one pass: `part` has its digest.
  """
  encoder, _ = job.encoder
  wanted = merging.find_chunks(part)
  if len(wanted) > 1:
    plan = merging.make_plan(encoder, name, wanted, part, job.key)
    into = merging.chunk_folder(job.dir, name)
    stored = merging.encode_missing(
      *(job.dir, name, part, encoder, plan, wanted, into),
      job.num_workers,
      job.say,
    )
    splits = merging.write_splits(folder, part, encoder, stored, job.key)
    if splits is not None:
      _require_text(part, splits)
      hashes = list(merging.text_hashes(stored))
      return splits, {"chunks_sha256": chunks.text_digest(hashes)}
  return _write_splits(folder, part, encoder, job.say, job.key), {}


def _write_splits(
  folder: str, part: Part, encoder: Tokenizer, say, key: Key | None
) -> dict:
  """Encodes a part into shards; returns {split: entry of the manifest}."""
  dtype = manifest_lib.dtype_of(encoder.vocab_size)
  with Progress("reading", [part.source], say) as progress:
    part.survey(progress.add)
  separator_id = encoder.separator_id if part.split != "tail" else None
  writers = {
    s: SplitWriter(folder, s, dtype, separator_id, key) for s in SPLITS
  }
  queue, num_chars = [], 0

  def flush():
    encoded = encoder.encode_batch([text for _, _, text in queue])
    for (split, is_first, text), ids in zip(queue, encoded, strict=True):
      writers[split].write(ids, count_bytes(text), is_first)
      progress.add(text)
    queue.clear()

  with Progress("encoding", [part.source], say) as progress:
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
  _require_text(part, splits)
  return splits


def _write_labelled(
  folder: str, part: Part, encoder: Tokenizer, say, key, labels: Labels
) -> dict:
  """As _write_splits, for labelled texts; labels go to files of their own."""
  has_separators = encoder.separator_id is not None
  beside = {
    s: LabelWriter(folder, s, labels, has_separators, key) for s in SPLITS
  }

  def encoded(examples):
    for example, ids, value in encode(examples, encoder, labels):
      if example.label is None:
        parse(labels.kind, example)  # raises the error
      yield [("".join(example.texts), ids, value)]

  return _write_beside(
    folder, part, encoder, say, key, "labels", beside, encoded
  )


def _write_masked(
  folder: str, part: Part, encoder: Tokenizer, say, key: Key | None
) -> dict:
  """As _write_splits, for dialogues; masks go to files of their own.

  A preference becomes several documents: one dialogue for each answer.
  """
  masks = {s: SideWriter(folder, f"{s}.mask.bin", key) for s in SPLITS}
  encoded = lambda examples: _encode_masked(part, examples, encoder)
  return _write_beside(folder, part, encoder, say, key, "mask", masks, encoded)


def _write_beside(
  folder: str, part: Part, encoder: Tokenizer, say, key, name, beside, encoded
) -> dict:
  """Encodes examples into shards, and their labels or masks into side files.

  Args:
    name: the key of side files in a split's entry of the manifest.
    beside: {split: writer of its side file}.
    encoded: function of examples that yields, for each one, [(text, ids, label
      or mask)] of its documents.
  """
  dtype = manifest_lib.dtype_of(encoder.vocab_size)
  with Progress("reading", [part.source], say) as progress:
    part.survey(progress.add)
  separator_id, sides = encoder.separator_id, []
  writers = {
    s: SplitWriter(folder, s, dtype, separator_id, key) for s in SPLITS
  }

  def examples():
    for split, example in part.examples():
      sides.append(split)
      yield example

  with Progress("encoding", [part.source], say) as progress:
    for i, documents in enumerate(encoded(examples())):
      for text, ids, value in documents:
        writers[sides[i]].write(ids, count_bytes(text), True)
        beside[sides[i]].write(value)
        progress.add(text)
  splits = {
    split: writer.finish() | {name: beside[split].finish()}
    for split, writer in writers.items()
  }
  _require_text(part, splits)
  return splits


def _encode_masked(part: Part, examples, encoder: Tokenizer):
  """Yields [(text, ids, mask)] of each example; masks cover the separator."""
  assert part.template is not None
  of_separator = np.zeros(int(encoder.separator_id is not None), np.uint8)
  whole = lambda mask: np.append(of_separator, mask)
  join = lambda messages: "".join(message.content for message in messages)
  if isinstance(part.source, PreferenceSource):
    found = preferences.encode(examples, part.template, encoder)
    for one, answers in found:
      texts = [join((*one.prompt, *answer)) for answer in one.answers]
      both = zip(texts, answers, strict=True)
      yield [(text, ids, whole(mask)) for text, (ids, mask) in both]
    return
  chats = build_encoder(part.template, encoder)
  for chat, ids, mask in chats.encode_batch(examples):
    yield [(join(chat.messages), ids, whole(mask))]


def _write_manifest(
  folder: str,
  part: Part,
  encoder: Tokenizer,
  notes: dict,
  splits: dict,
  facts: dict,
  labels: Labels | None,
) -> None:
  """Writes tokenizer.json and manifest.json, and flushes the folder."""
  tokenizer = encoder.to_json()
  files.write_text(os.path.join(folder, "tokenizer.json"), tokenizer)
  manifest = {
    "format": FORMAT,
    "key": facts["key"],
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
      "sha256": digest.of_text(tokenizer),
    },
    "dtype": manifest_lib.dtype_of(encoder.vocab_size),
    **{key: value for key, value in facts.items() if key != "key"},
    "splits": splits,
  }
  is_paired = sources.is_paired(part.source.spec)
  if isinstance(part.source, PreferenceSource):
    is_paired = part.source.is_paired
  if is_paired:
    manifest["num_parts"] = 2
  if labels is not None:
    manifest["labels"] = {"kind": labels.kind, "classes": list(labels.classes)}
  text = manifest_lib.dump(manifest_lib.sealed(manifest))
  files.write_text(os.path.join(folder, "manifest.json"), text)
  locks.sync(folder)


def _require_text(part: Part, splits: dict) -> None:
  spec = part.source.spec
  if not any(split["num_tokens"] for split in splits.values()):
    raise InputError(f"the corpus {spec} is empty: no document holds any text")
  if part.role == "split" and not splits["train"]["num_tokens"]:
    raise InputError(
      f"{spec} leaves no text to train on with data.valid_frac "
      f"{part.valid_frac}; give more text or lower data.valid_frac"
    )
