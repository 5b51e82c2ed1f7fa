"""Drafts: tokens that may come next, guessed without the model.

A text often repeats what stands in it or in its prompt. What followed the last
NUM_TOKENS tokens when they stood there before is the guess (prompt lookup;
Saxena 2023). The model then reads the guesses with the token before them, in
one pass, and draws after each; a guess that equals what is drawn saves a pass.
What is drawn is drawn as always, so no guess changes a text.
"""

# The longest run of tokens that is looked up, and the shortest.
NUM_TOKENS = (3, 2)


class Lookup:
  """The tokens of one text, and where each run of them last stood."""

  def __init__(self, ids: list[int]):
    self._ids: list[int] = []
    # {run of tokens: index of the token after it}; the last run, of which no
    # token has followed, is not in it.
    self._after: dict[tuple[int, ...], int] = {}
    for i in ids:
      self.push(i)

  def push(self, i: int) -> None:
    """Adds a token."""
    for size in NUM_TOKENS:
      if len(self._ids) >= size:
        self._after[tuple(self._ids[-size:])] = len(self._ids)
    self._ids.append(i)

  def guess(self, count: int) -> list[int]:
    """Returns up to `count` tokens that may come after the text."""
    for size in NUM_TOKENS:
      at = self._after.get(tuple(self._ids[-size:]))
      if at is not None:
        return self._ids[at : at + count]
    return []
