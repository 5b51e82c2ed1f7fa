"""Rule-made dialogues in which a user orders: the data of tune_chat.py.

python tests/orders.py FOLDER
"""

import json
import pathlib
import random
import sys

NUM_TRAIN, NUM_VALID = 200, 100
NUMBERS = "a two three four five six seven eight nine".split()
THINGS = "apple pear lemon tea coffee juice cake bun pie egg".split()
ASKED = ("{}, please.", "Can I have {}?", "I would like {}.", "Give me {}!")
MORE = ("Also {}.", "And {}, please.")


def dialogue(draw: random.Random) -> list[dict]:
  """Returns the messages of an order, which half of the users add to."""
  things = draw.sample(THINGS, draw.randint(2, 3))
  order = [(draw.randint(1, 9), thing) for thing in things]
  rounds = [order] if draw.random() < 0.5 else [order[:-1], order[-1:]]
  messages, taken = [], []
  for asked in rounds:
    words = [
      f"{NUMBERS[count - 1]} {thing}{'s' * (count > 1)}"
      for count, thing in asked
    ]
    forms = MORE if taken else ASKED
    taken += [f"{count} {thing}" for count, thing in asked]
    said = draw.choice(forms).format(" and ".join(words))
    messages.append({"role": "user", "content": said})
    answer = f"order: {', '.join(taken)}"
    messages.append({"role": "assistant", "content": answer})
  return messages


def write(folder: str, seed: int = 0) -> None:
  """Writes train.jsonl and valid.jsonl, which have no dialogue in common."""
  draw, lines = random.Random(seed), {}
  while len(lines) < NUM_TRAIN + NUM_VALID:
    lines[json.dumps({"messages": dialogue(draw)})] = None
  place, texts = pathlib.Path(folder), list(lines)
  place.mkdir(parents=True, exist_ok=True)
  for name, some in (
    ("train", texts[:NUM_TRAIN]),
    ("valid", texts[NUM_TRAIN:]),
  ):
    (place / f"{name}.jsonl").write_text("\n".join(some) + "\n")


if __name__ == "__main__":
  write(sys.argv[1])
