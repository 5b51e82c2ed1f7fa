"""Fill-in-the-middle: documents whose middle is moved to their end.

This teaches a decoder to fill a gap from the text before and after it (Bavarian
et al. 2022). A document is cut at two random places into prefix, middle and
suffix, and becomes

  psm  PRE prefix SUF suffix MID middle
  spm  PRE SUF suffix MID prefix middle   (appendix D, the second form)

The loss is on all tokens. The separator of the next document says where a
middle ends.

Design choice: documents are cut within a window of the data ("context level",
section 4.2), so that a gap's prefix and suffix are in the same window.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpt_jax.config import DataConfig
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.exits import InputError

# Separates these draws from others of the same seed.
STREAM = 0xC4CE


class Marks(NamedTuple):
  """Ids before the prefix, the suffix and the middle."""

  prefix: int
  suffix: int
  middle: int


def find_marks(vocab_size: int) -> Marks:
  """Returns the marks, whose ids follow those of the tokenizer."""
  return Marks(*range(vocab_size, vocab_size + 3))


class GapTokenizer:
  """Wraps a run's tokenizer: a prompt asks for the text before a suffix.

  All other attributes are those of the wrapped tokenizer.
  """

  def __init__(self, tokenizer: Tokenizer, suffix: str):
    self._tokenizer = tokenizer
    self._suffix = tokenizer.encode(suffix)

  def __getattr__(self, name: str):
    return getattr(self._tokenizer, name)

  def encode(self, text: str) -> np.ndarray:
    """Returns the ids of the prompt as prefix, the suffix, and their marks."""
    marks = find_marks(self.vocab_size)
    return prompt_of(self._tokenizer.encode(text), self._suffix, marks)

  def decode(self, ids) -> str:
    """Returns the text of ids, marks left out."""
    return self._tokenizer.decode([i for i in ids if i < self.vocab_size])


def prompt_of(prefix: np.ndarray, suffix: np.ndarray, marks: Marks):
  """Returns the ids after which a model writes the middle."""
  parts = [marks.prefix], prefix, [marks.suffix], suffix, [marks.middle]
  return np.concatenate(parts).astype(np.int32)


def build(data: DataConfig, tokenizer: Tokenizer) -> Callable:
  """Returns the function that makes batches of fill_in_the_middle.

  Raises:
    InputError: documents are packed, and the tokenizer has no separator to
      find their borders by.
  """
  if data.packing == "documents" and tokenizer.separator_id is None:
    raise InputError(
      f"data.objective is {data.objective}, data.packing is documents, and "
      f"{tokenizer.name} has no separator, by which moved documents are told "
      "apart; take data.packing=stream"
    )
  return functools.partial(
    fill_in_the_middle,
    tokenizer=tokenizer,
    rate=data.fim_rate,
    spm_rate=data.fim_spm_rate,
    unit=data.fim_unit,
  )


def fill_in_the_middle(
  batch: dict,
  seed: int,
  g: np.ndarray,
  *,
  tokenizer: Tokenizer,
  rate: float,
  spm_rate: float,
  unit: str,
) -> dict:
  """Moves the middles of documents; every token is predicted from earlier ones.

  Marks lengthen a window, so its end is cut off. If documents are packed, their
  segments and positions are computed again.

  Args:
    batch, seed, g: as in objectives.Task.
    rate: the fraction of the documents that are changed.
    spm_rate: the fraction of the changed documents in the form spm.
    unit: "token" cuts between tokens; "character" cuts anywhere, and tokenizes
      the parts again. A document whose parts do not decode to the same text,
      such as one that begins inside a character, is cut between tokens.
  """
  marks, separator = find_marks(tokenizer.vocab_size), tokenizer.separator_id
  separator = -1 if separator is None else separator
  tokens, T = batch["tokens"], batch["tokens"].shape[1]
  whole_BW = np.concatenate([tokens[:, :1], batch["targets"]], 1)
  ids_BW = whole_BW.copy()
  mask_BT = np.array(batch["mask"])
  for row, place in enumerate(g):
    counted = np.flatnonzero(mask_BT[row])
    if not counted.size:
      continue
    length = counted[-1] + 2
    draw = np.random.default_rng([STREAM, seed, int(place)])
    starts = np.flatnonzero(whole_BW[row, :length] == separator)
    parts = []
    for piece in np.split(whole_BW[row, :length], starts):
      own = piece[:1] == separator
      head, body = (piece[:1], piece[1:]) if own.any() else (piece[:0], piece)
      is_moved, is_spm = draw.random(2) < (rate, spm_rate)
      if is_moved and body.size:
        cut = _cut(body, draw, tokenizer if unit == "character" else None)
        body = _move(cut, is_spm, marks)
      parts += [head, body]
    new = np.concatenate(parts)[:length]
    ids_BW[row] = 0
    ids_BW[row, : new.size] = new
    mask_BT[row, max(new.size - 1, 0) :] = 0
  changed = {"tokens": ids_BW[:, :-1], "targets": ids_BW[:, 1:]}
  if "segments" in batch:
    is_start_BT = ids_BW[:, :-1] == separator
    place_T = np.arange(T, dtype=np.int32)
    began_BT = np.maximum.accumulate(np.where(is_start_BT, place_T, 0), axis=1)
    changed["segments"] = np.cumsum(is_start_BT, axis=1, dtype=np.int32)
    changed["positions"] = (place_T - began_BT).astype(np.int32)
  return batch | changed | {"mask": mask_BT}


def _move(cut, is_spm: bool, marks: Marks) -> np.ndarray:
  prefix, middle, suffix = cut
  if is_spm:
    parts = [marks.prefix, marks.suffix], suffix, [marks.middle], prefix, middle
    return np.concatenate(parts)
  return np.concatenate([prompt_of(prefix, suffix, marks), middle])


def _cut(body: np.ndarray, draw, tokenizer: Tokenizer | None):
  """Returns (prefix, middle, suffix), cut at two uniformly random places.

  Args:
    tokenizer: None cuts between tokens.
  """
  place = draw.random(2)
  if tokenizer is not None:
    text = tokenizer.decode(body)
    low, high = np.sort((place * (len(text) + 1)).astype(int))
    texts = text[:low], text[low:high], text[high:]
    parts = [tokenizer.encode(part) for part in texts]
    is_exact = tokenizer.decode(np.concatenate(parts)) == text
    if is_exact and "\N{REPLACEMENT CHARACTER}" not in text:
      return parts
  return np.split(body, np.sort((place * (body.size + 1)).astype(int)))
