"""Turns preferences into rows: a row holds two answers to a prompt.

Each answer follows its own copy of the prompt and does not attend to the other
one, like packed documents. So a row has all that its loss needs, however a
batch is sharded. The stored mask is 0 outside answers, BAD in a single answer
that is to be avoided, and 1 in all other answers. A row that would be too long
is left out, and counted.

A row of KTO has one answer to learn from; its other one is the next answer of
the set, put behind the same prompt. From such mismatched pairs Ethayarajh et
al. 2024 (section 4.1) estimate the KL divergence from the reference.
"""

import collections
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

from gpt_jax.config import Template
from gpt_jax.data.pairs import arrange
from gpt_jax.data.shards import TokenSet
from gpt_jax.data.sources.chat import Chat
from gpt_jax.data.sources.preference import Preference, count_answers
from gpt_jax.data.templates import build_encoder
from gpt_jax.data.tokenizers.protocol import Tokenizer, ids_behind
from gpt_jax.exits import InputError

# Answers in a row.
SIDES = 2
# The mask of an answer that is to be avoided.
BAD = 2


class Layout(NamedTuple):
  """How preferences become rows.

  Attributes:
    seq_len: T, which both answers with their prompts must fit.
    has_reference: whether rows have the reference's log-probabilities.
    is_single: whether a row has one answer to learn from, as in KTO.
  """

  seq_len: int
  has_reference: bool
  is_single: bool = False


class PlainEncoder:
  """Encodes a prompt and its answer as one text that ends with a separator."""

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer

  def encode_batch(self, chats: Iterable[Chat]) -> Iterator[tuple]:
    """Yields (chat, ids, mask), as ChatEncoder.encode_batch."""
    own = self._tokenizer
    end = [] if own.separator_id is None else [own.separator_id]
    for chat in chats:
      texts = [message.content for message in chat.messages]
      prompt, alone, whole = own.encode_batch([*texts, "".join(texts)])
      answer = ids_behind(prompt, whole, alone)
      ids = np.concatenate([own.start_ids, prompt, answer, end])
      mask = np.zeros(len(ids), np.uint8)
      mask[len(own.start_ids) + len(prompt) :] = 1
      yield chat, ids.astype(np.uint32), mask


def encode(
  examples: Iterable[Preference], template: Template, tokenizer: Tokenizer
) -> Iterator[tuple[Preference, list[tuple[np.ndarray, np.ndarray]]]]:
  """Yields (example, [(ids, mask) of the prompt and each answer]).

  Messages are rendered by the template, strings are encoded as they are. mask
  is 1 in the answer, or BAD if it is to be avoided, and 0 in the prompt and in
  answers within the prompt.

  Raises:
    InputError: an example cannot be encoded, or is of another kind than the
      first.
  """
  examples = iter(examples)
  first = next(examples, None)
  if first is None:
    return
  taken: collections.deque[Preference] = collections.deque()

  def chats() -> Iterator[Chat]:
    for one in itertools.chain([first], examples):
      if one.is_plain != first.is_plain:
        kinds = ("messages", "strings")
        raise InputError(
          f"{one.where} has {kinds[one.is_plain]}, and {first.where} "
          f"{kinds[first.is_plain]}; all of a source must have the same"
        )
      taken.append(one)
      for answer in one.answers:
        yield Chat(one.name, one.where, (*one.prompt, *answer))

  encoder: Any = PlainEncoder(tokenizer)
  if not first.is_plain:
    encoder = build_encoder(template, tokenizer)
  found = []
  for _, ids, mask in encoder.encode_batch(chats()):
    found.append((ids, _last_answers(mask, taken[0])))
    if len(found) == len(taken[0].answers):
      yield taken.popleft(), found
      found = []


def _last_answers(mask: np.ndarray, example: Preference) -> np.ndarray:
  """Returns the mask, set to 0 in answers within the prompt."""
  begins = np.flatnonzero(np.diff(mask, prepend=0) == 1)
  skipped = count_answers(example.prompt)
  if len(begins) <= skipped:
    raise InputError(
      f"{example.where} has an answer of which the tokenizer leaves nothing to "
      "learn; it must have some text of its vocabulary"
    )
  start = begins[skipped]
  value = BAD if example.label is False else 1
  kept = mask * (np.arange(len(mask)) >= start)
  return (value * kept).astype(np.uint8)


class PreferenceRows:
  """The rows of a set of preferences.

  Args:
    token_set: a set with a mask; its documents alternate between chosen and
      rejected answers, or are single answers.
    layout: how they become rows.
    seed: of the random order of rows; None keeps the order of the set.

  Attributes:
    num_rows, num_kept: the number of rows in an epoch.
    num_all: the number of preferences in the set.
    pairs: int64 indices into the set of those that fit a row, in row order.

  Raises:
    InputError: the set has no preferences of this kind, or none is short
      enough.
  """

  NAME: ClassVar = "preferences"
  KEYS: ClassVar = "data.seq_len"

  def __init__(self, token_set: TokenSet, layout: Layout, seed: int | None):
    mask = token_set.read_mask()
    if mask is None:
      raise InputError(
        f"{token_set.name} holds no preferences; prepare them from "
        "preference:FILE"
      )
    if not (token_set.is_paired or layout.is_single):
      raise InputError(
        f"{token_set.name} holds single answers with a label, and no pairs of "
        "a chosen and a rejected one; learn from them by data.objective=kto"
      )
    self._set, self._layout, self._mask = token_set, layout, mask
    self._borders = np.append(token_set.document_starts, token_set.num_ids)
    self._skip = int(token_set.num_ids > token_set.num_tokens)
    # The last id of an answer predicts nothing.
    lengths = np.diff(self._borders) - self._skip - 1
    sizes = self._find_sizes(lengths)
    self.num_all = len(sizes)
    if len(sizes) and sizes.min() > layout.seq_len:
      raise InputError(
        f"no preference of {token_set.name} fits a row: the shortest takes "
        f"{sizes.min():,} tokens, both answers with their prompts, and "
        f"data.seq_len is {layout.seq_len:,}; raise it"
      )
    limits = np.array([layout.seq_len])
    self.pairs, _ = arrange(sizes, limits, False, seed)
    self.num_rows = self.num_kept = len(self.pairs)

  def _find_sizes(self, lengths: np.ndarray) -> np.ndarray:
    """Returns the number of tokens of each row, (rows, 1)."""
    if not self._layout.is_single:
      return lengths.reshape(-1, SIDES).sum(1, keepdims=True)
    # A prompt ends where the first id that counts in the loss stands.
    starts, counts = self._borders[:-1], np.flatnonzero(self._mask)
    firsts = counts[np.searchsorted(counts, starts)] if len(starts) else counts
    self._prompts = firsts - starts - self._skip
    others = (lengths - self._prompts)[self._other(np.arange(len(lengths)))]
    return (lengths + self._prompts + others)[:, None]

  def _other(self, i):
    """Returns the document whose answer is put behind the prompt of i.

    It is of another pair, as both answers of a pair are to the same prompt.
    """
    step = SIDES if self._set.is_paired else 1
    return (i + step) % (len(self._borders) - 1)

  def read(self, rows: np.ndarray) -> dict:
    """Returns a batch of rows; rows beyond the last have labels 0.

    segments is 1 in the second answer. labels are (1, -1), or (1, 0) or (-1, 0)
    for a single answer. reference has each answer's stored log-probability.
    """
    b, T = len(rows), self._layout.seq_len
    names = ("tokens", "targets", "segments", "positions")
    batch: dict = {name: np.zeros((b, T), np.int32) for name in names}
    batch["mask"] = np.zeros((b, T), np.float32)
    batch["labels"] = np.zeros((b, SIDES), np.float32)
    if self._layout.has_reference:
      batch["reference"] = np.zeros((b, SIDES), np.float32)
    for at, row in enumerate(rows):
      if row < self.num_rows:
        one = {name: values[at] for name, values in batch.items()}
        self._fill(one, int(self.pairs[row]))
    return batch

  def _fill(self, row: dict, pair: int) -> None:
    """Writes a preference into a row, whose arrays are views into the batch."""
    at = 0
    for side, (ids, mask) in enumerate(self._answers(pair)):
      place = slice(at, at + len(ids) - 1)
      row["tokens"][place], row["targets"][place] = ids[:-1], ids[1:]
      row["mask"][place] = mask[1:] > 0
      # Padding joins the last answer: no earlier token attends to it.
      row["segments"][at:] = side
      row["positions"][at:] = np.arange(self._layout.seq_len - at)
      at = place.stop
    row["labels"][:] = self._labels(pair)
    if self._layout.has_reference and self._set.reference is not None:
      row["reference"][:] = self._set.reference[pair]

  def _labels(self, pair: int) -> tuple[int, int]:
    if not self._layout.is_single:
      return 1, -1
    is_bad = self._read(pair)[1].max() == BAD
    if self._set.is_paired:
      is_bad = pair % SIDES == 1
    return (-1 if is_bad else 1), 0

  def _answers(self, pair: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns (ids, mask) of both answers of a row, each with its prompt."""
    if not self._layout.is_single:
      return [self._read(SIDES * pair + side) for side in range(SIDES)]
    ids, mask = self._read(pair)
    other = self._other(pair)
    prompt, skip = int(self._prompts[pair]), int(self._prompts[other])
    joined = [
      np.concatenate([own[:prompt], theirs[skip:]])
      for own, theirs in zip((ids, mask), self._read(other), strict=True)
    ]
    return [(ids, mask), (joined[0], joined[1])]

  def _read(self, document: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (ids, mask) of a document without its separator."""
    begin, end = map(int, self._borders[document : document + 2])
    begin += self._skip
    return self._set.read(begin, end), self._mask[begin:end]


@functools.lru_cache(maxsize=8)
def preference_rows(token_set: TokenSet, layout: Layout, seed: int | None):
  """Returns PreferenceRows of the arguments, cached."""
  return PreferenceRows(token_set, layout, seed)
