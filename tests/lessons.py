"""Rule-made pairs of two applications: the data of reports.py and tutor.py.

python tests/lessons.py FOLDER
"""

import pathlib
import random
import sys

NUM_TRAIN, NUM_VALID = 20_000, 1_000
TOWNS = (
  "Oslo Lima Bern Rome Cairo Delhi Quito Tunis Paris Seoul Tokyo Hanoi "
  "Accra Dakar Sofia Riga Vilnius Tallinn Lisbon Madrid"
).split()
MONTHS = (
  "January February March April May June July August September October "
  "November December"
).split()
# {how a word ends: (what its plural ends in, why)}
PLURALS = {
  "x": ("xes", "words in x take es"),
  "sh": ("shes", "words in sh take es"),
  "ch": ("ches", "words in ch take es"),
  "by": ("bies", "y becomes ies"),
  "ry": ("ries", "y becomes ies"),
  "oy": ("oys", "y after a vowel stays"),
  "ay": ("ays", "y after a vowel stays"),
  "lf": ("lves", "f becomes ves"),
  "n": ("ns", "it takes s"),
  "d": ("ds", "it takes s"),
  "t": ("ts", "it takes s"),
}
ENDINGS = ("s", "es", "ies", "ves")


def report(draw: random.Random) -> tuple[str, str]:
  """Returns the fields of a month's weather, in any order, and its report."""
  town, month = draw.choice(TOWNS), draw.choice(MONTHS)
  rain, usual, warmth = (draw.randint(1, 99) for _ in range(3))
  if draw.random() < 0.1:
    usual = rain
  fields = [f"town: {town}", f"month: {month}", f"rain: {rain}"]
  fields += [f"usual: {usual}", f"warmth: {warmth}"]
  draw.shuffle(fields)
  than = "as much as" if rain == usual else "less than"
  than = "more than" if rain > usual else than
  return "; ".join(fields), (
    f"In {month} {town} had {rain} mm of rain, {than} the usual {usual}, and "
    f"{warmth} hours of warmth."
  )


def answer(draw: random.Random) -> tuple[str, str]:
  """Returns a pupil's plural of a made-up word, and what the tutor says."""
  starts, vowels = "b c d f g l m p r s t st pl br".split(), "aeiou"
  word = draw.choice(starts) + draw.choice(vowels)
  word += draw.choice("bdglmnprst") + draw.choice(vowels)
  end, (plural, why) = draw.choice(list(PLURALS.items()))
  right = word + plural
  given = right
  if draw.random() < 0.6:
    stem = word + end.removesuffix("y").removesuffix("f")
    given = draw.choice([word + end, stem, right[:-1]])
    given += draw.choice(ENDINGS)
  said = "right" if given == right else f"wrong: {right}, since {why}"
  return f"{word}{end}: {given}", said


def write(folder: str, seed: int = 0) -> None:
  """Writes {reports,tutor}-{train,valid}.tsv, no source of which is in both."""
  place = pathlib.Path(folder)
  place.mkdir(parents=True, exist_ok=True)
  for name, make in (("reports", report), ("tutor", answer)):
    draw, pairs = random.Random(seed), {}
    while len(pairs) < NUM_TRAIN + NUM_VALID:
      source, target = make(draw)
      pairs[source] = target
    lines = [f"{source}\t{target}\n" for source, target in pairs.items()]
    (place / f"{name}-train.tsv").write_text("".join(lines[:NUM_TRAIN]))
    (place / f"{name}-valid.tsv").write_text("".join(lines[NUM_TRAIN:]))


if __name__ == "__main__":
  write(sys.argv[1])
