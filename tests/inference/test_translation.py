"""An encoder-decoder translates between two small languages, made by rules.

The grammar is written here. Its first language says who does what to whom in
this order, with adjectives before their nouns. In the second one verbs come
last, adjectives after their nouns, nouns have cases, and adjectives and verbs
agree with them in gender and number.
"""

import json
import random

import pytest

# Stem in the first language: (stem in the second, gender).
NOUNS = {
  "dog": ("kanu", "a"),
  "cat": ("misi", "o"),
  "bird": ("avel", "a"),
  "child": ("timo", "o"),
  "farmer": ("agra", "o"),
  "queen": ("rega", "a"),
  "teacher": ("dosce", "a"),
  "tree": ("arbu", "o"),
  "house": ("domi", "a"),
  "river": ("flumi", "o"),
  "book": ("libra", "a"),
  "stone": ("petri", "o"),
  "horse": ("kaval", "o"),
  "fish": ("piska", "a"),
  "sailor": ("navi", "o"),
  "letter": ("skribi", "a"),
}
ADJECTIVES = {
  "big": "gran",
  "small": "pik",
  "old": "vet",
  "young": "jun",
  "red": "rub",
  "green": "verd",
  "kind": "bon",
  "quiet": "kiet",
  "strong": "fort",
  "clever": "sagas",
}
VERBS = {
  "see": "vid",
  "love": "am",
  "find": "trov",
  "carry": "port",
  "follow": "sekv",
  "help": "jut",
  "fear": "tem",
  "draw": "pent",
}
PLACES = {"near": "apud", "behind": "retro", "under": "sub", "with": "kun"}
ENDINGS = {("a", 1): "a", ("a", 2): "ae", ("o", 1): "o", ("o", 2): "i"}


def noun_phrase(draw, case: str, may_go_on: bool = True):
  """Returns (words, words of the other language, (gender, number))."""
  noun = draw.choice(list(NOUNS))
  stem, gender = NOUNS[noun]
  number = draw.choice((1, 2))
  agreement = ENDINGS[gender, number]
  adjectives = draw.sample(list(ADJECTIVES), draw.choice((0, 0, 1, 1, 2)))
  first = [draw.choice(("the", "a" if number == 1 else "some")), *adjectives]
  first.append(noun + "s" * (number == 2))
  second = [stem + "n" * (number == 2) + case]
  second += [ADJECTIVES[a] + agreement for a in reversed(adjectives)]
  second.append("le" if first[0] == "the" else "un")
  if may_go_on and draw.random() < 0.3:
    place = draw.choice(list(PLACES))
    more, other, _ = noun_phrase(draw, "e", False)
    first += [place, *more]
    second = [*second, *other, PLACES[place]]
  return first, second, (gender, number)


def sentence(draw) -> tuple[str, str]:
  subject, who, (gender, number) = noun_phrase(draw, "")
  thing, whom, _ = noun_phrase(draw, "m")
  verb, is_past = draw.choice(list(VERBS)), draw.random() < 0.4
  stem = VERBS[verb] + ("iv" if is_past else "")
  said = verb + ("s" * (number == 1) if not is_past else "ed")
  first = [*subject, said, *thing]
  second = [*whom, *who, stem + ENDINGS[gender, number] + "t"]
  if draw.random() < 0.2:
    first, second = ["today", *first], [*second, "hodi"]
  return " ".join(first) + " .", " ".join(second) + " ."


def sentences(count: int) -> list[tuple[str, str]]:
  draw, found = random.Random(0), {}
  while len(found) < count:
    found.setdefault(*sentence(draw))
  return list(found.items())


def test_the_grammar_agrees_and_reorders():
  pairs = sentences(500)
  assert len(dict(pairs)) == 500
  for first, second in pairs:
    words, others = first.split(), second.split()
    verb = next(w for w in others[::-1] if w.endswith("t"))
    assert others.index(verb) >= len(others) - 3
    is_plural = verb.endswith(("aet", "it"))
    said = [w for w in words if w.rstrip("s") in VERBS]
    assert not said or said[0].endswith("s") != is_plural
  draws = random.Random(1), random.Random(1)
  assert sentence(draws[0]) == sentence(draws[1])


@pytest.mark.slow
def test_rules_of_a_language_are_learned_to_a_bleu_of_95(
  run_verb, call_verb, tmp_path
):
  pytest.importorskip("sacrebleu", reason="extra bleu is not installed")
  text = "".join(f"{a}\t{b}\n" for a, b in sentences(20_000))
  (tmp_path / "pairs.tsv").write_text(text)
  run = f"--workdir={tmp_path / 'run'}"
  # In a process of its own, on one device and with programs that XLA optimises:
  # eight simulated devices take some three times as long.
  run_verb(
    "gpt_jax.train",
    "--config=configs/translation.py",
    f"--config.data.source=pairs:{tmp_path / 'pairs.tsv'}",
    f"--config.data.dir={tmp_path / 'prepared'}",
    run,
    timeout=7200,
    check=0,
    XLA_FLAGS="",
  )
  found = call_verb("evaluate", run, "--generate=1000", "--beams=4", "--json")
  result = json.loads(found.stdout)
  assert result["num_pairs"] == 1000 and result["bleu"] >= 95, result
