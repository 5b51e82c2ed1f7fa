"""Prompt lookup: drafts of the next tokens, without a model (Saxena 2023).

A text often repeats itself or its prompt. The last NUM_TOKENS tokens are looked
up in the text so far, and the guess is what followed them the last time. The
model then reads the guesses with the token before them in one pass, and draws
after each; a guess that equals the token drawn saves a pass. Tokens are drawn
as they are without drafts, so no guess changes a text.
"""

# Lengths of the n-grams that are looked up, longest first.
NUM_TOKENS = (3, 2)


class Lookup:
  """The tokens of one text, and where each n-gram of them last occurred."""

  def __init__(self, ids: list[int]):
    self._ids: list[int] = []
    # {n-gram: index of the token after it}, without the text's last n-grams,
    # which no token follows yet.
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
