"""Which rows of a battery the default run takes: a diagonal of the product.

A battery asks every question of every form. In a file that is marked so, the
default run asks each question of each fourth form, another fourth for each
question, and so meets every question and every form. Of a test that is marked
so itself it takes each fourth row. .ci/run takes all.
"""

import collections

import pytest

EVERY = 4


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items) -> None:
  batteries = collections.defaultdict(list)
  for item in items:
    if item.get_closest_marker("battery") and hasattr(item, "callspec"):
      params = tuple((k, repr(v)) for k, v in item.callspec.params.items())
      is_alone = any(mark.name == "battery" for mark in item.own_markers)
      place = item.path, item.originalname if is_alone else None
      batteries[place].append((item, (item.originalname, params)))
  for (_, alone), rows in batteries.items():
    kept = choose([row for _, row in rows], alone is not None)
    for item, row in rows:
      if row not in kept:
        item.add_marker(pytest.mark.wide)


Row = tuple[str, tuple[tuple[str, str], ...]]


def choose(rows: list[Row], is_alone: bool = False) -> set[Row]:
  """Returns those of (question, its parameters) that the default run takes.

  Args:
    is_alone: they are of one test, whose values need not all be met.
  """
  if is_alone:
    return set(rows[::EVERY])
  asked = collections.defaultdict(list)
  for row in rows:
    asked[row[0]].append(row)
  kept = set()
  for place, of_one in enumerate(asked.values()):
    is_long = len(of_one) >= EVERY
    kept |= set(of_one[place % EVERY :: EVERY] if is_long else of_one)
  met = {value for _, params in kept for value in params}
  for row in reversed(rows):
    if not met.issuperset(row[1]):
      kept.add(row)
      met |= set(row[1])
  return kept
