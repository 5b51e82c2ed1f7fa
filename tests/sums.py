"""Rule-made sums: the data of tune_preference.py and tune_grpo.py.

python tests/sums.py FOLDER
"""

import json
import pathlib
import random
import sys

LIMIT, NUM_VALID = 30, 100
# Texts of each sum that the base of either recipe reads, and the part of those
# of tune_preference.py that is right.
COPIES, RIGHT = 16, 0.5
# How far off those of tune_grpo.py are at most, each distance as often.
REACH = 4


def slip(draw: random.Random, total: int) -> int:
  """Returns a wrong answer, near the right one."""
  near = [total + by for by in (-10, -2, -1, 1, 2, 10)]
  return draw.choice([n for n in near if n >= 0])


def guess(draw: random.Random, total: int) -> int:
  """Returns an answer that is right by chance, 1 time in 9."""
  return draw.randint(max(total - REACH, 0), total + REACH)


def write(folder: str, seed: int = 0) -> None:
  """Writes what the bases read, and preferences; no held-out sum is in both.

  base.jsonl     texts, half of them wrong: 7+5=12
  train.jsonl    preferences: the right answer before a wrong one
  base.tsv       pairs of a sum and any answer near the right one
  train.tsv      pairs of a sum and its right answer
  valid.jsonl, valid.tsv  as train, of held-out sums
  """
  draw, guesses = random.Random(seed), random.Random(seed + 1)
  place = pathlib.Path(folder)
  place.mkdir(parents=True, exist_ok=True)
  sums = [(a, b) for a in range(LIMIT) for b in range(LIMIT)]
  draw.shuffle(sums)
  texts, pairs = [], []
  for a, b in sums[NUM_VALID:] * COPIES:
    is_right = draw.random() < RIGHT
    answer = a + b if is_right else slip(draw, a + b)
    texts.append(json.dumps({"text": f"{a}+{b}={answer}"}))
    pairs.append(f"{a}+{b}\t{guess(guesses, a + b)}")
  write_lines(place / "base.jsonl", texts)
  write_lines(place / "base.tsv", pairs)
  splits = ("train", sums[NUM_VALID:]), ("valid", sums[:NUM_VALID])
  for name, some in splits:
    records = [
      {
        "prompt": f"{a}+{b}=",
        "chosen": str(a + b),
        "rejected": str(slip(draw, a + b)),
      }
      for a, b in some
    ]
    write_lines(place / f"{name}.jsonl", map(json.dumps, records))
    write_lines(place / f"{name}.tsv", [f"{a}+{b}\t{a + b}" for a, b in some])


def write_lines(path: pathlib.Path, lines) -> None:
  path.write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
  write(sys.argv[1])
