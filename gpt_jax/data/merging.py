"""Merges the chunks of a source into the splits of a prepared folder."""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gpt_jax.data import chunks, workers
from gpt_jax.data import manifest as manifest_lib
from gpt_jax.data.chunks import Chunk, Plan, Stored
from gpt_jax.data.manifest import SPLITS
from gpt_jax.data.progress import Progress
from gpt_jax.data.shards import SplitWriter
from gpt_jax.data.sources.document import Divisible, Unreachable
from gpt_jax.data.splitting import Part
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.encryption import Key


def chunk_folder(dir: str, name: str) -> str:
  """Returns where the chunks of a folder lie until it is complete."""
  return os.path.join(dir, f".chunks-{name}")


def shard_folder(dir: str, name: str, index: int, count: int) -> str:
  """Returns where the chunks of one of `count` machines lie."""
  return os.path.join(dir, f"{name}.shard-{index}-of-{count}")


def find_chunks(part: Part) -> list[Chunk]:
  """Returns the chunks of a part; none if it can only be read whole.

  Labels and dialogues have files beside the ids, and tails need the length of
  a document before its first id: these are encoded in one pass.
  """
  is_cut = part.split == "tail" and part.is_divided
  has_more = part.is_labelled or part.template is not None
  if is_cut or has_more or not isinstance(part.source, Divisible):
    return []
  return chunks.divide(part.source)


def make_plan(
  encoder: Tokenizer,
  name: str,
  wanted: Sequence[Chunk],
  part: Part,
  secret: Key | None,
) -> Plan:
  """Returns the plan for the chunks of the prepared folder `name`."""
  key = name[-manifest_lib.KEY_DIGITS :]
  dtype = manifest_lib.dtype_of(encoder.vocab_size)
  return Plan(
    key, encoder.fingerprint(), dtype, len(wanted), part.split, secret
  )


def encode_missing(
  dir: str,
  name: str,
  part: Part,
  encoder: Tokenizer,
  plan: Plan,
  wanted: list[Chunk],
  into: str,
  num_workers: int | None,
  say: Callable[[str], None],
) -> list[Stored]:
  """Returns the wanted chunks; those that are not stored are encoded first.

  Args:
    dir, name: of the prepared folder; folders of shards may lie beside it.
    into: the folder where chunks are written. What an earlier process stored
      there, or in folders of shards, is not encoded again.

  Raises:
    InputError: as workers.encode_all.
    OSError: the disk is full or cannot be written.
  """
  source = part.source
  assert isinstance(source, Divisible)  # or find_chunks had found none
  os.makedirs(into, exist_ok=True)
  for left in glob.glob(os.path.join(glob.escape(into), "*.tmp")):
    os.remove(left)
  shards = os.path.join(glob.escape(dir), f"{glob.escape(name)}.shard-*-of-*")
  is_shard = into != chunk_folder(dir, name)
  beside = [] if is_shard else sorted(glob.glob(shards))
  found = chunks.find([into, *beside], plan, wanted)
  missing = [chunk for chunk in wanted if chunk.index not in found]
  if found:
    say(f"{len(found)} of {len(wanted)} parts of {source.spec} are encoded")
  try:
    with Progress("encoding", [source], say) as progress:
      add = progress.add_bytes
      workers.encode_all(source, encoder, into, plan, missing, num_workers, add)
  except Unreachable as error:
    done = len(chunks.find([into, *beside], plan, wanted))
    raise Unreachable(
      f"{error}; {done} of {len(wanted)} parts are encoded and kept, and the "
      "same command goes on"
    ) from None
  found = chunks.find([into, *beside], plan, wanted)
  return [found[chunk.index] for chunk in wanted]


def write_splits(
  folder: str,
  part: Part,
  encoder: Tokenizer,
  stored: list[Stored],
  key: Key | None,
) -> dict | None:
  """Writes the shards of a part from its chunks.

  Returns:
    {split: entry of the manifest}, or None if all documents have the same text,
    which must then be divided by its tail.

  Raises:
    InputError: a chunk is damaged.
  """
  names, texts = [], []
  for chunk in stored:
    rows: Any = chunk.read_rows()
    rows = rows[rows["is_target"] == 0]  # a target goes where its source does
    names.append(rows["name"].copy())
    texts.append(rows["text"].copy())
  is_valid = part.choose_sides(np.concatenate(names), np.concatenate(texts))
  if is_valid is None:
    return None
  separator_id = encoder.separator_id if part.split != "tail" else None
  dtype = manifest_lib.dtype_of(encoder.vocab_size)
  writers = [SplitWriter(folder, s, dtype, separator_id, key) for s in SPLITS]
  place = -1
  for chunk in stored:
    rows = chunk.read_rows()
    found = chunk.read_ids(rows["num_ids"])
    for row, ids in zip(rows.tolist(), found, strict=True):
      _, _, _, num_bytes, is_target = row
      place += not is_target
      writers[int(is_valid[place])].write(ids, num_bytes, True)
  entries = [writer.finish() for writer in writers]
  return dict(zip(SPLITS, entries, strict=True))


def text_hashes(stored: Sequence[Stored]) -> Iterator[str]:
  """Yields the digest of the text of each chunk."""
  for chunk in stored:
    yield chunk.note["text_sha256"]
