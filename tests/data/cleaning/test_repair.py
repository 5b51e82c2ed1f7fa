"""What is mended in a text, and which language it is taken for."""

import json

import pytest

from gpt_jax.data.cleaning import repair
from gpt_jax.exits import InputError

pytest.importorskip("ftfy")
pytest.importorskip("py3langid")


@pytest.mark.parametrize(
  "step, text, wanted",
  [
    ("unicode", "schÃ¶n â€” ﬁne\x07", "schön — fine"),
    ("unicode", "“quoted” &amp; <b>", "“quoted” &amp; <b>"),
    ("unicode", "今天的天气", "今天的天气"),
    ("normal", "e\u0301a\u00a0b\u200bc", "éa bc"),
    ("normal", "a \r\nb\t\rc\n\n\n\nd", "a\nb\nc\n\nd"),
    ("normal", "if x:\n    y  =  1\n\n", "if x:\n    y  =  1\n\n"),
    ("stop_words", "The man of the house is a theme.", "man house theme."),
    ("stop_words", "notable otters\n", "notable otters\n"),
  ],
)
def test_a_step_mends_what_it_says_and_nothing_else(step, text, wanted):
  assert repair.STEPS[step](text) == wanted
  assert repair.STEPS[step](wanted) == wanted  # a second time changes nothing


def test_steps_are_applied_in_the_order_of_the_table():
  assert repair.parse_steps("normal, unicode") == ("unicode", "normal")
  assert repair.parse_steps("") == ()
  with pytest.raises(InputError, match="unknown step 'unicod'.*unicode"):
    repair.parse_steps("unicod")


def test_a_language_that_is_not_wanted_has_no_probability():
  english = "This is a text in English, and it has a few words more."
  german = "Dieser Text ist auf Deutsch und hat einige Wörter mehr."
  chinese = "今天的天气很好，我们一起去公园散步。"
  found = repair.Languages("en,zh")
  assert found.probability(english) > 0.65 < found.probability(chinese)
  assert found.probability(german) == 0
  with pytest.raises(InputError, match="unknown language 'xx'"):
    repair.Languages("en,xx")


def test_clean_mends_before_it_judges_and_counts(tmp_path, call_verb):
  texts = [
    "This is schÃ¶n, and it is a text in English of several words.",
    "This is schön, and it is a text in English of several words.",
    "Dieser Text ist auf Deutsch und hat einige Wörter mehr als andere.",
  ]
  source = tmp_path / "a.jsonl"
  source.write_text("\n".join(json.dumps({"text": t}) for t in texts))
  out, page = tmp_path / "out.jsonl", tmp_path / "page.html"
  result = call_verb(
    *("data.__main__", "clean", f"--source=jsonl:{source}", f"--out={out}"),
    *("--rules=none", "--repair=unicode,normal", "--languages=en"),
    *("--copies=exact", f"--report={page}"),
  )
  assert result.returncode == 0, result.stderr
  (row,) = map(json.loads, out.read_text().splitlines())
  assert row["text"] == texts[1]
  counts = [line.split() for line in result.stdout.splitlines()]
  assert ["unicode", "1", "documents", "mended"] in counts
  assert ["normal", "0", "documents", "mended"] in counts
  assert ["language", "1", "left", "out"] in counts
  assert ["copy", "1", "left", "out"] in counts
  assert "<td>unicode</td><td>1" in page.read_text()
