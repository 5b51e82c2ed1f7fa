"""Labels are parsed, checked, and numbered by their sorted classes."""

import math

import numpy as np
import pytest

from gpt_jax.config import InputError
from gpt_jax.data.labels import Labels, find_labels, parse
from gpt_jax.data.sources.labelled import Example


def example(label, text: str = "a text of words") -> Example:
  return Example("a:1", "a.jsonl, line 1", (text,), label)


class Source:
  def __init__(self, *labels):
    self._labels = labels

  def examples(self):
    return map(example, self._labels)


@pytest.mark.parametrize(
  "kind, label, parsed",
  [
    ("single", "x", "x"),
    ("single", 3, "3"),
    # As spreadsheets have it, and as no one means it.
    ("single", "x ", "x"),
    ("multi", ["x", " x"], ["x", "x"]),
    ("multi", ["x", 2], ["x", "2"]),
    ("multi", [], []),
    ("multi", "x, y", ["x", "y"]),
    ("number", 2, 2.0),
    ("number", "-1.5e1", -15.0),
    ("word", ["O", "O", "B", "O"], ["O", "O", "B", "O"]),
    ("word", "O O B O", ["O", "O", "B", "O"]),
  ],
)
def test_a_label_has_the_form_of_its_kind(kind, label, parsed):
  assert parse(kind, example(label)) == parsed


@pytest.mark.parametrize(
  "kind, label, said",
  [
    ("single", None, "has no label; every text must have one"),
    ("single", 1.5, "the label 1.5; it must be the name of a class"),
    ("single", True, "the label True"),
    ("single", ["x"], "it must be the name of a class"),
    ("single", " ", "it must be the name of a class"),
    ("single", "\ud800", "it must be the name of a class"),
    ("multi", 3, "must be a list of classes, as data.label is multi"),
    ("multi", ["x", None], "the label None; it must be the name"),
    ("number", "x", "the label 'x'; it must be a number"),
    ("number", True, "the label True; it must be a number"),
    ("number", math.nan, "the label nan; it must be a finite number"),
    ("number", 1e39, "it must be a finite number"),
    ("number", 10**400, "it must be a number"),
    ("word", ["O", "B"], "has 2 labels and 4 words; each word must have one"),
  ],
)
def test_a_bad_label_is_one_sentence_with_file_and_line(kind, label, said):
  with pytest.raises(InputError, match=f"^a.jsonl, line 1 .*{said}"):
    parse(kind, example(label))


def test_classes_are_found_sorted_and_bounded(monkeypatch):
  found = find_labels("multi", [Source(["y", "x"], []), Source(["z"])], "s")
  assert found == Labels("multi", ("x", "y", "z"))
  assert find_labels("single", [Source(10, 2)], "s").classes == ("10", "2")
  assert find_labels("number", [Source(1, 1)], "s") == Labels("number", ())
  with pytest.raises(InputError, match="s has one class only, 'x'; there must"):
    find_labels("single", [Source("x", "x")], "s")
  with pytest.raises(InputError, match="s has no class; there must be 2"):
    find_labels("multi", [Source([], [])], "s")
  with pytest.raises(InputError, match="s has 10,001 classes; there may be"):
    find_labels("single", [Source(*range(10_001))], "s")


def test_a_stored_label_is_its_class_or_a_set_of_them_or_a_number():
  encode = lambda kind, value: Labels(kind, ("a", "b", "c")).encode(value, "w")
  assert encode("single", "b").tolist() == [1]
  assert encode("multi", ["c", "a"]).tolist() == [1, 0, 1]
  assert encode("word", ["c", "a", "a"]).tolist() == [2, 0, 0]
  assert Labels("number", ()).encode(0.5, "w").tolist() == [0.5]
  with pytest.raises(
    InputError, match="^w has the label 'd', which is not one"
  ):
    encode("multi", ["a", "d"])


def test_impossible_stored_values_are_seen():
  holds = lambda kind, *values: Labels(kind, ("a", "b")).holds(np.array(values))
  assert holds("single", 0, 1) and not holds("single", 0, 2)
  assert not holds("single", -1)
  assert holds("word", -1, 1) and not holds("word", -2)
  assert holds("multi", 0, 1) and not holds("multi", 2)
  assert holds("number", 1.5) and not holds("number", math.nan)
