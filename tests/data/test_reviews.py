"""The rule-made reviews: what the labelled ones lack, the others have."""

import json

import reviews


def read(folder, name: str) -> list[dict]:
  return [json.loads(line) for line in (folder / f"{name}.jsonl").open()]


def adjectives_of(rows) -> set[str]:
  words = {word for row in rows for word in row["text"].split()}
  return words & {*reviews.GOOD, *reviews.BAD}


def label_of(text: str) -> str:
  """Returns the label by the rule, of each part of a review."""
  found = set()
  for part in text.split(" . "):
    words = part.split()
    is_turned = any(word in reviews.TURNS for word in words)
    is_good = any(word in reviews.GOOD for word in words)
    assert is_good != any(word in reviews.BAD for word in words), part
    found.add("good" if is_good != is_turned else "bad")
  (label,) = found
  return label


def test_held_out_reviews_use_words_that_only_the_unlabelled_have(tmp_path):
  reviews.write(str(tmp_path))
  train, valid = read(tmp_path, "train"), read(tmp_path, "valid")
  unlabelled = read(tmp_path, "unlabelled")
  assert (len(train), len(valid)) == (200, 1000)
  known = {*reviews.GOOD[:4], *reviews.BAD[:4]}
  assert adjectives_of(train) == known
  assert adjectives_of(valid) == adjectives_of(unlabelled)
  assert len(adjectives_of(valid)) == 40
  assert not {r["text"] for r in train} & {r["text"] for r in valid}
  for row in train + valid:
    assert row["label"] == label_of(row["text"])
  assert all(row.keys() == {"text"} for row in unlabelled)
  # About as many are good.
  share = [row["label"] for row in valid].count("good") / len(valid)
  assert 0.45 < share < 0.55
