"""Turns dialogues into rows: one dialogue per row, or as many as fit.

Every token is predicted from the earlier tokens of its dialogue, and the stored
mask says which tokens count in the loss. Dialogues are never cut: one that is
longer than a row is left out, and counted.
"""

import functools
from typing import ClassVar, NamedTuple

import numpy as np

from gpt_jax.data.pairs import arrange
from gpt_jax.data.shards import TokenSet
from gpt_jax.exits import InputError


class Layout(NamedTuple):
  """How dialogues become rows.

  Attributes:
    seq_len: T.
    is_packed: whether a row holds as many dialogues as fit.
  """

  seq_len: int
  is_packed: bool


class ChatRows:
  """The rows of a set of dialogues.

  Args:
    token_set: a set with a mask.
    layout: how its documents become rows.
    seed: of the random order in which dialogues fill the rows; None keeps the
      order of the set.

  Attributes:
    num_rows: the number of rows in an epoch.
    num_all: the number of dialogues in the set.
    num_kept: the number of dialogues that fit a row.
    chats: int64 indices into the set of the dialogues that fit, in row order.

  Raises:
    InputError: the set has no mask, or no dialogue is short enough.
  """

  NAME: ClassVar = "chats"
  KEYS: ClassVar = "data.seq_len"

  def __init__(self, token_set: TokenSet, layout: Layout, seed: int | None):
    mask = token_set.read_mask()
    if mask is None:
      raise InputError(
        f"{token_set.name} holds no chats, which data.objective chat needs; "
        "prepare them from chat:FILE"
      )
    self._set, self._layout, self._mask = token_set, layout, mask
    self._borders = np.append(token_set.document_starts, token_set.num_ids)
    self._skip = int(token_set.num_ids > token_set.num_tokens)
    # The last id of a dialogue predicts nothing.
    sizes = np.diff(self._borders)[:, None] - self._skip - 1
    self.num_all = len(sizes)
    if len(sizes) and sizes.min() > layout.seq_len:
      raise InputError(
        f"no chat of {token_set.name} fits a row: the shortest takes "
        f"{sizes.min():,} tokens, and data.seq_len is {layout.seq_len:,}; "
        "raise it"
      )
    limits = np.array([layout.seq_len])
    self.chats, self._rows = arrange(sizes, limits, layout.is_packed, seed)
    self.num_kept = len(self.chats)

  @property
  def num_rows(self) -> int:
    return len(self._rows) - 1

  def last_turn(self, chat: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (ids before the last answer, ids of it and its end), int32."""
    begin, end = map(int, self._borders[chat : chat + 2])
    begin += self._skip
    counts = np.flatnonzero(self._mask[begin:end])
    first = counts[np.flatnonzero(np.diff(counts, prepend=-2) > 1)[-1]]
    ids = self._set.read(begin, end)
    return ids[:first], ids[first : counts[-1] + 1]

  def read(self, rows: np.ndarray) -> dict:
    """Returns a batch of rows; rows beyond the last have mask 0."""
    shape = len(rows), self._layout.seq_len
    names = ("tokens", "targets")
    names += ("segments", "positions") * self._layout.is_packed
    batch: dict = {name: np.zeros(shape, np.int32) for name in names}
    batch["mask"] = np.zeros(shape, np.float32)
    for at, row in enumerate(rows):
      if row < self.num_rows:
        one = {name: values[at] for name, values in batch.items()}
        self._fill(one, self.chats[self._rows[row] : self._rows[row + 1]])
    return batch

  def _fill(self, row: dict, chats: np.ndarray) -> None:
    """Writes dialogues into a row, whose arrays are views into the batch."""
    at = 0
    for part, chat in enumerate(chats):
      begin, end = map(int, self._borders[chat : chat + 2])
      ids = self._set.read(begin + self._skip, end)
      place = slice(at, at + len(ids) - 1)
      row["tokens"][place], row["targets"][place] = ids[:-1], ids[1:]
      row["mask"][place] = self._mask[begin + self._skip + 1 : end]
      if self._layout.is_packed:
        # Padding joins the last dialogue: no earlier token attends to it.
        row["segments"][at:] = part
        row["positions"][at:] = np.arange(self._layout.seq_len - at)
      at = place.stop


@functools.lru_cache(maxsize=8)
def chat_rows(token_set: TokenSet, layout: Layout, seed: int | None):
  """Returns ChatRows of the arguments, cached."""
  return ChatRows(token_set, layout, seed)
