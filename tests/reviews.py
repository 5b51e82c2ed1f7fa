"""Rule-made reviews, few of them labelled: the data of sentiment.py.

python tests/reviews.py FOLDER [SEED]

A review says two to six things about a film, a meal, a hotel or a device, and
means well or ill by nearly all of them; "not" or "hardly" turns a word over.
The words of GOOD and BAD are the only ones that tell. The labelled reviews know
a fifth of these; the unlabelled ones, and those that are held out, know all. So
who reads labels alone must guess, and who has seen which words keep company
need not.
"""

import json
import pathlib
import random
import sys

NUM_UNLABELLED, NUM_TRAIN, NUM_VALID = 20_000, 200, 1_000
# Words of either kind: adjectives, and verbs of which "I" is the subject.
GOOD = (
  "great clever charming solid warm moving fresh lovely brilliant excellent "
  "good nice wonderful amazing fantastic perfect beautiful fun pleasant superb "
  "impressive enjoyable outstanding delightful splendid awesome terrific "
  "magnificent incredible favorite fabulous gorgeous marvelous stunning "
  "memorable satisfying comfortable reliable friendly delicious".split(),
  "loved praised enjoyed liked adored admired recommend appreciated".split(),
)
BAD = (
  "bad dull clumsy weak cold silly stale ugly boring terrible awful poor "
  "horrible disappointing stupid tedious dreadful cheap worthless annoying "
  "lousy bland pointless mediocre ridiculous unbearable broken pathetic "
  "miserable dirty rude nasty disgusting useless forgettable unpleasant messy "
  "confusing predictable slow".split(),
  "hated despised disliked regretted loathed dreaded avoid resented".split(),
)
KNOWN_FRAC = 0.2  # of the words of each list, in the labelled reviews
NOUNS = {
  "movie": "plot cast music ending script acting story camera tone".split(),
  "meal": "soup bread service menu waiter wine dessert sauce table".split(),
  "hotel": "room bed view staff breakfast pool lobby bath location".split(),
  "phone": "screen battery sound keyboard case price camera charger".split(),
}
# {w} is an adjective, {n} a noun.
PARTS = (
  "the {n} is {w}",
  "the {n} was {w}",
  "I found the {n} {w}",
  "a {w} {n}",
  "what a {w} {n}",
  "the {n} felt {w} to me",
  "the {n} seems {w} for the money",
  "my friends called the {n} {w}",
  "overall a {w} {t}",
  "this {t} is {w}",
)
VERB_PARTS = ("I {w} the {n}", "we {w} this {t}", "I {w} it", "we {w} the {n}")
NEUTRAL = (
  "we went there on a sunday",
  "I bought it last year",
  "it took about two hours",
  "my brother was with me",
)
TURNS = ("not", "hardly", "never")
ENDS = (". ", ", ", "! ", " and ", "; ")


def part(draw: random.Random, thing: str, is_good: bool, known: float) -> str:
  """Returns a statement that means well, or ill."""
  is_turned, is_verb = draw.random() < 0.1, draw.random() < 0.25
  words = (GOOD if is_good != is_turned else BAD)[is_verb]
  word = draw.choice(words[: round(known * len(words))])
  if is_turned:
    word = f"{draw.choice(TURNS)} {word}"
  form = draw.choice(VERB_PARTS if is_verb else PARTS)
  return form.format(w=word, n=draw.choice(NOUNS[thing]), t=thing)


def review(draw: random.Random, known: float = 1.0) -> dict:
  """Returns a review's text and label.

  Args:
    known: take this part of each list of words, the first ones.
  """
  is_good, thing = draw.random() < 0.5, draw.choice(list(NOUNS))
  text, num_parts = "", draw.randint(2, 6)
  # Where it says enough, one thing may be against the rest.
  exception = draw.randrange(num_parts) if num_parts > 3 else None
  for index in range(num_parts):
    against = index == exception and draw.random() < 0.3
    text += part(draw, thing, is_good != against, known)
    if draw.random() < 0.1:
      text += draw.choice(ENDS) + draw.choice(NEUTRAL)
    text += draw.choice(ENDS) if index < num_parts - 1 else "."
  text = text[0].upper() + text[1:] if draw.random() < 0.5 else text
  return {"text": text, "label": "positive" if is_good else "negative"}


def write(folder: str, seed: int = 0) -> None:
  """Writes unlabelled.jsonl, train.jsonl and valid.jsonl.

  No text is both in training and held out.
  """
  draw, place = random.Random(seed), pathlib.Path(folder)
  place.mkdir(parents=True, exist_ok=True)
  unlabelled = [{"text": review(draw)["text"]} for _ in range(NUM_UNLABELLED)]
  seen = {row["text"] for row in unlabelled}
  sets: dict[str, list[dict]] = {"unlabelled": unlabelled}
  wanted = ("train", NUM_TRAIN, KNOWN_FRAC), ("valid", NUM_VALID, 1.0)
  for name, count, known in wanted:
    sets[name] = []
    while len(sets[name]) < count:
      row = review(draw, known)
      if row["text"] not in seen:
        seen.add(row["text"])
        sets[name].append(row)
  for name, rows in sets.items():
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (place / f"{name}.jsonl").write_text(lines)


if __name__ == "__main__":
  write(sys.argv[1], *map(int, sys.argv[2:]))
