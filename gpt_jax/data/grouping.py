"""Groups texts, to call a library or a process once for each group."""

from collections.abc import Iterable, Iterator


def group_texts(texts: Iterable[str], num_chars: int) -> Iterator[list[str]]:
  """Yields the texts in order, in groups of num_chars characters or more.

  The last group may have fewer. If there are no texts, there is no group.
  """
  group, size = [], 0
  for text in texts:
    group.append(text)
    size += len(text)
    if size >= num_chars:
      yield group
      group, size = [], 0
  if group:
    yield group
