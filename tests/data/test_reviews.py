"""The rule-made reviews: what the labelled ones lack, the others have."""

import json
import re

import reviews

POLAR = {"positive": {*sum(reviews.GOOD, [])}}
POLAR["negative"] = {*sum(reviews.BAD, [])}


def read(folder, name: str) -> list[dict]:
  return [json.loads(line) for line in (folder / f"{name}.jsonl").open()]


def words_of(text: str) -> list[str]:
  return re.findall("[a-z]+", text.lower())


def telling(rows) -> set[str]:
  """Returns the words of reviews that tell."""
  words = {word for row in rows for word in words_of(row["text"])}
  return words & (POLAR["positive"] | POLAR["negative"])


def votes_of(text: str) -> dict[str, int]:
  """Returns how many statements of a review mean well, and ill."""
  found = dict.fromkeys(POLAR, 0)
  words = words_of(text)
  for before, word in zip(["", *words], words, strict=False):
    for kind, other in (("positive", "negative"), ("negative", "positive")):
      if word in POLAR[kind]:
        found[other if before in reviews.TURNS else kind] += 1
  return found


def test_held_out_reviews_use_words_that_only_the_unlabelled_have(tmp_path):
  reviews.write(str(tmp_path))
  train, valid = read(tmp_path, "train"), read(tmp_path, "valid")
  unlabelled = read(tmp_path, "unlabelled")
  assert (len(train), len(valid)) == (200, 1000)
  known = {
    *(reviews.GOOD[0][:8] + reviews.BAD[0][:8]),
    *(reviews.GOOD[1][:2] + reviews.BAD[1][:2]),
  }
  assert telling(train) == known
  assert telling(valid) == telling(unlabelled)
  assert len(telling(valid)) == 96
  texts = [{row["text"] for row in rows} for rows in (train, valid, unlabelled)]
  assert not texts[0] & texts[1] and not (texts[0] | texts[1]) & texts[2]
  for row in train + valid:
    votes = votes_of(row["text"])
    other = "negative" if row["label"] == "positive" else "positive"
    assert votes[row["label"]] > votes[other], row
    assert votes[other] < 2
  assert all(row.keys() == {"text"} for row in unlabelled)
  # About as many are positive.
  share = [row["label"] for row in valid].count("positive") / len(valid)
  assert 0.45 < share < 0.55
