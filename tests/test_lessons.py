"""The rule-made pairs of reports.py and tutor.py are what they say."""

import random
import re

import lessons
import pytest


def pairs(name: str, folder) -> list[list[str]]:
  text = (folder / f"{name}.tsv").read_text()
  return [line.split("\t") for line in text.splitlines()]


def test_no_source_is_both_learned_from_and_held_out(tmp_path, monkeypatch):
  monkeypatch.setattr(lessons, "NUM_TRAIN", 300)
  monkeypatch.setattr(lessons, "NUM_VALID", 50)
  lessons.write(str(tmp_path))
  for name in ("reports", "tutor"):
    train, valid = (pairs(f"{name}-{s}", tmp_path) for s in ("train", "valid"))
    sources = [source for source, _ in train + valid]
    assert len(train) == 300 and len(set(sources)) == len(sources) == 350


def test_a_report_says_what_its_fields_say():
  draw = random.Random(1)
  for _ in range(300):
    source, target = lessons.report(draw)
    fields = dict(field.split(": ") for field in source.split("; "))
    rain, usual = int(fields["rain"]), int(fields["usual"])
    than = {-1: "less than", 0: "as much as", 1: "more than"}
    said = than[(rain > usual) - (rain < usual)]
    assert f"had {rain} mm of rain, {said} the usual {usual}," in target
    assert target.startswith(f"In {fields['month']} {fields['town']} had ")


@pytest.mark.parametrize("verdict", ["right", "wrong"])
def test_the_tutor_is_right(verdict):
  draw, seen = random.Random(2), 0
  for _ in range(400):
    source, target = lessons.answer(draw)
    word, given = source.split(": ")
    plural = word + "s"
    if re.search("(x|sh|ch)$", word):
      plural = word + "es"
    elif re.search("[^aeiou]y$", word):
      plural = word[:-1] + "ies"
    elif word.endswith("f"):
      plural = word[:-1] + "ves"
    assert target.startswith("right" if given == plural else "wrong")
    if target != "right":
      assert target.startswith(f"wrong: {plural}, since ")
    seen += target.startswith(verdict)
  assert 100 < seen < 300
