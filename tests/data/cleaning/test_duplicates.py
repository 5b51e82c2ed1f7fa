"""Near-duplicates are the pairs of Jaccard .8 and more; tests are found."""

import contextlib
import random

import numpy as np
import pytest

from gpt_jax.data.cleaning import duplicates
from gpt_jax.exits import InputError


def pairs(count: int, seed: int = 0):
  """Yields (one, other, Jaccard index of their sets of 5-grams).

  `other` has the words of `one` and new ones at the end, so that the index is
  known without any set: all words differ. Half are above .8, half below.
  """
  rng = random.Random(seed)
  for number in range(count):
    grams = rng.randrange(40, 160)
    wanted = rng.uniform(0.8, 1.0) if number % 2 else rng.uniform(0.4, 0.8)
    shared = round(2 * grams * wanted / (1 + wanted))
    index = shared / (2 * grams - shared)
    words = [f"w{number}x{i}" for i in range(2 * grams + 4 - shared)]
    one = words[: grams + 4]
    other = words[: shared + 4] + words[grams + 4 :]
    yield " ".join(one), " ".join(other), index


def recall_and_precision(count: int) -> tuple[float, float, float]:
  found, true, right = duplicates.NearDuplicates(), [], 0
  for one, other, index in pairs(count):
    found.add(duplicates.sign(one))
    found.add(duplicates.sign(other))
    true.append(index >= 0.8)
  first = found.copies()
  is_pair = first[1::2] == first[::2]
  wrong = np.sum(first != np.arange(2 * count)) - np.sum(is_pair)
  right = np.sum(is_pair & true)
  return right / np.sum(true), right / np.sum(is_pair), wrong


def test_planted_near_duplicates_are_found():
  recall, precision, wrong = recall_and_precision(2_000)
  assert recall >= 0.98 and precision >= 0.98 and wrong == 0


@pytest.mark.slow
def test_fifty_thousand_planted_near_duplicates_are_found():
  recall, precision, wrong = recall_and_precision(50_000)
  print(f"recall {recall:.5f}, precision {precision:.5f}")
  assert recall >= 0.98 and precision >= 0.98 and wrong == 0


def jaccard(one: str, other: str) -> float:
  sets = []
  for text in (one, other):
    words = text.split()
    sets.append({tuple(words[i : i + 5]) for i in range(len(words) - 4)})
  return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_the_planted_index_is_that_of_the_sets():
  for one, other, index in pairs(20):
    assert jaccard(one, other) == pytest.approx(index)


def copies(*texts) -> list[int]:
  found = duplicates.NearDuplicates()
  for text in texts:
    found.add(duplicates.sign(text))
  return found.copies().tolist()


def test_a_pair_below_the_border_is_none_and_one_on_it_is():
  words = [f"w{i}" for i in range(200)]
  # 100 n-grams, of which 89 are shared: 89 / 111 = .802, and 88 / 112 = .786.
  one, on = words[:104], words[:93] + words[110:121]
  below = words[:92] + words[110:122]
  assert copies(" ".join(one), " ".join(on)) == [0, 0]
  assert copies(" ".join(one), " ".join(below)) == [0, 1]


def test_copies_of_copies_have_the_first_one_as_theirs():
  words = [f"w{i}" for i in range(140)]
  chain = [" ".join(words[i : i + 100]) for i in (20, 0, 10)]
  assert copies("other", *chain) == [0, 1, 1, 1]
  assert copies(chain[0], chain[1]) == [0, 1]
  assert copies() == []


def test_capitals_spaces_and_signs_do_not_count():
  text = "The old bridge, built long ago, is closed to all traffic."
  again = text.upper().replace(" ", "\n").replace(",", " ;")
  assert copies(text, again, "Something else altogether.") == [0, 0, 2]
  chinese = "今天的天气很好，我们一起去公园散步。"
  assert copies(chinese, chinese.replace("，", " "), "另外一句话") == [0, 0, 2]


def test_memory_is_bounded_by_the_number_of_documents():
  import tracemalloc

  text = " ".join(f"w{i}" for i in range(20_000))
  found = duplicates.NearDuplicates()
  found.add(duplicates.sign(text))
  tracemalloc.start()
  for number in range(20):
    found.add(duplicates.sign(f"{number} {text}"))
  kept, _ = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert kept < 20 * 1_000


def test_few_sets_are_held_while_documents_are_compared(monkeypatch):
  monkeypatch.setattr(duplicates, "MAX_HELD", 300)
  words = [f"w{i}" for i in range(130)]
  found = duplicates.NearDuplicates()
  for start in range(30):
    found.add(duplicates.sign(" ".join(words[start : start + 100])))
  assert set(found.copies().tolist()) == {0}
  assert 0 < sum(map(len, found._held.values())) <= 300


def test_items_of_an_evaluation_set_are_found_in_documents():
  words = [f"w{i}" for i in range(60)]
  item, short = " ".join(words[:13]), "Who wrote the play about a prince, then?"
  tests = duplicates.Contamination([item, short, "too short"])
  assert tests.num_short == 1
  assert tests.count("before, " + item.upper() + "; after") == 1
  assert tests.count(" ".join(words[:12])) == 0
  assert tests.count(" ".join(words[1:40])) == 0
  assert tests.count("x " + short + " y") == 1
  assert tests.count("Who wrote the play about a prince?") == 0


@pytest.mark.parametrize("buffering", [0, 1 << 20])
def test_a_full_disk_for_n_grams_is_one_sentence(buffering):
  near = duplicates.NearDuplicates()
  with pytest.raises(InputError, match="No space left.*; set TMPDIR"):
    near._file = open("/dev/full", "wb", buffering=buffering)
    near.add(duplicates.sign("one two three four five six seven"))
    near.copies()
  with contextlib.suppress(OSError):
    near._file.close()
