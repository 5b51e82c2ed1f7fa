"""A rule-made set of reviews, whose labels a model can learn."""

import json
import pathlib

import numpy as np

GOOD = ("good", "fine", "great", "clever", "warm")
BAD = ("bad", "dull", "awful", "weak", "cold")
NOUNS = ("plot", "cast", "music", "end", "script", "set")


def review(draw: np.random.Generator) -> tuple[list[str], list[str]]:
  """Returns (words, a class for each): adjectives that "not" may turn over."""
  words, classes = [], []
  for _ in range(int(draw.integers(1, 4))):
    is_good, is_turned = draw.random(2) < (0.5, 0.3)
    adjective = str(draw.choice(GOOD if is_good else BAD))
    part = ["the", str(draw.choice(NOUNS)), "is"]
    part += [*(["not"] if is_turned else []), adjective]
    words += part
    classes += ["other"] * (len(part) - 1)
    classes.append("good" if is_good != is_turned else "bad")
  return words, classes


def rows(count: int, seed: int = 0, kind: str = "single") -> list[dict]:
  """Returns records with labels of a kind; about as many reviews are good."""
  draw, found = np.random.default_rng(seed), []
  for _ in range(count):
    words, classes = review(draw)
    score = classes.count("good") - classes.count("bad")
    label = {
      "single": "good" if score > 0 else "bad" if score < 0 else "mixed",
      "multi": sorted({c for c in classes if c != "other"}),
      "number": score / 2,
      "word": classes,
    }[kind]
    found.append({"text": " ".join(words), "label": label})
  return found


def write(path: pathlib.Path, records: list[dict]) -> pathlib.Path:
  path.write_text("".join(json.dumps(row) + "\n" for row in records))
  return path
