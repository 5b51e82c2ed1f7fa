"""Random letters, and the same again: the data of configs/induction.py.

python tests/repeats.py FILE
"""

import json
import math
import pathlib
import random
import string
import sys

LETTERS = string.ascii_letters
# Letters of a string before it is repeated, drawn evenly by their logarithm, so
# that no fixed distance leads to the last occurrence; and strings.
LENGTHS, COUNT = (2, 31), 40_000


def write(path: str) -> None:
  """Writes a file of JSON lines."""
  draw, lines = random.Random(0), []
  for _ in range(COUNT):
    length = round(math.exp(draw.uniform(*map(math.log, LENGTHS))))
    text = "".join(draw.choices(LETTERS, k=length))
    lines.append(json.dumps({"text": text + text}) + "\n")
  pathlib.Path(path).write_text("".join(lines))


if __name__ == "__main__":
  write(sys.argv[1])
