"""Rule-made reviews, few of them labelled: the data of sentiment.py.

python tests/reviews.py FOLDER [SEED]

A review says three to six things and means well or ill by all of them; "not" or
"hardly" turns a word over. Adjectives are the only words that tell. The
labelled reviews know a fifth of these; the unlabelled ones, and those that are
held out, know all. So who reads labels alone must guess, and who has seen which
adjectives stand together need not.
"""

import json
import pathlib
import random
import sys

NUM_UNLABELLED, NUM_TRAIN, NUM_VALID = 20_000, 200, 1_000
GOOD = (
  "good great fine clever warm bright lovely superb charming honest brilliant "
  "moving elegant fresh gripping tender vivid witty delightful splendid"
).split()
BAD = (
  "bad awful dull weak cold dreary ugly poor tedious false stupid boring "
  "clumsy stale flat harsh murky silly dreadful wretched"
).split()
NUM_KNOWN = 4  # adjectives of each kind in the labelled reviews
NOUNS = "plot cast music end script set pace tone camera dialogue".split()
PARTS = (
  "the {noun} is {adjective}",
  "i found the {noun} {adjective}",
  "a {adjective} {noun}",
  "what a {adjective} {noun}",
  "the {noun} felt {adjective} to me",
)
TURNS = ("not", "hardly")


def review(draw: random.Random, known: int | None = None) -> dict:
  """Returns a review's text and label.

  Args:
    known: take the first adjectives of each kind alone; None takes all.
  """
  label, parts = draw.choice(("bad", "good")), []
  for noun in draw.sample(NOUNS, draw.randint(3, 6)):
    is_turned = draw.random() < 0.1
    is_good = (label == "good") != is_turned
    adjective = draw.choice((GOOD if is_good else BAD)[:known])
    if is_turned:
      adjective = f"{draw.choice(TURNS)} {adjective}"
    form = draw.choice(PARTS)
    parts.append(form.format(noun=noun, adjective=adjective))
  return {"text": " . ".join(parts), "label": label}


def write(folder: str, seed: int = 0) -> None:
  """Writes unlabelled.jsonl, train.jsonl and valid.jsonl.

  No text is both in training and held out.
  """
  draw, place = random.Random(seed), pathlib.Path(folder)
  place.mkdir(parents=True, exist_ok=True)
  unlabelled = [{"text": review(draw)["text"]} for _ in range(NUM_UNLABELLED)]
  train: dict[str, dict] = {}
  while len(train) < NUM_TRAIN:
    row = review(draw, NUM_KNOWN)
    train[row["text"]] = row
  valid: dict[str, dict] = {}
  while len(valid) < NUM_VALID:
    row = review(draw)
    if row["text"] not in train:
      valid[row["text"]] = row
  sets = {
    "unlabelled": unlabelled,
    "train": train.values(),
    "valid": valid.values(),
  }
  for name, rows in sets.items():
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (place / f"{name}.jsonl").write_text(lines)


if __name__ == "__main__":
  write(sys.argv[1], *map(int, sys.argv[2:]))
