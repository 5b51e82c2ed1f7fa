"""Each quality rule keeps and removes what its paper's number says.

Documents are made by hand on both sides of each border: the last that is kept,
and the first that is not.
"""

import pytest

from gpt_jax.data.cleaning import quality
from gpt_jax.exits import InputError


def different(count: int, letters: int = 5, start: int = 0) -> list[str]:
  """Returns words of letters alone, no two the same."""
  words = []
  for number in range(start, start + count):
    word = ""
    for _ in range(letters):
      word, number = word + "bcdfghjklm"[number % 10], number // 10
    words.append(word)
  return words


def text(*words) -> str:
  return " ".join(words)


def lines(good: int, bad: int, *forms: str) -> str:
  """Returns lines, all different: `good` of one form and `bad` of another."""
  words = different(good + bad)
  return "\n".join(
    forms[i >= good].format(word) for i, word in enumerate(words)
  )


def with_repeats(size: int, times: int, total: int) -> str:
  """Returns `total` words, of which the first `size` come `times` times.

  Between repeats stands a word of its own.
  """
  gram, rest = different(size), different(total, start=500)
  words = []
  for i in range(times):
    words += [*gram, rest[i]]
  return text(*words, *rest[times : total - len(words) + times])


SENTENCE = "It is a fine day here.\n"
# {filter: (the last document that is kept, the first that is not)}
BORDERS = {
  "gopher_words": [
    (text(*["word"] * 50), text(*["word"] * 49)),
    ("a " * 100_000, "a " * 100_001),
  ],
  "gopher_word_length": [
    ("abc " * 9, "abc " * 9 + "ab"),
    ("abcdefghij " * 9, "abcdefghij " * 9 + "abcdefghijk"),
  ],
  # 20 words with signs at most 2, and 21.
  "gopher_hashes": [("#a #b " + "c " * 18, "#a #b " + "c " * 17)],
  "gopher_ellipses": [
    ("a... b… " + "c " * 18, "a... b… " + "c " * 17),
  ],
  "gopher_bullets": [
    (lines(1, 9, "{}", "- {}"), lines(1, 10, "{}", "• {}")),
  ],
  "gopher_line_ellipses": [
    (lines(7, 3, "{}", "{}..."), lines(6, 3, "{}", "{}…")),
  ],
  "gopher_alphabetic": [("a a a a 1", "a a a 1")],
  "gopher_stop_words": [("The x, of", "the x off")],
  "gopher_repeated_lines": [
    ("a\n" * 4 + "b\nc\nd\ne\nf\ng", "a\n" * 4 + "b\nc\nd\ne\nf"),
  ],
  "gopher_repeated_paragraphs": [
    (
      "a\n\n" * 4 + "b\n\nc\n\nd\n\ne\n\nf\n\ng",
      "a\n\n" * 4 + "b\n\nc\n\nd\n\ne\n\nf",
    ),
  ],
  "gopher_repeated_line_characters": [
    ("ab\nab\n" + "c" * 6, "ab\nab\n" + "c" * 5),
  ],
  "gopher_repeated_paragraph_characters": [
    ("ab\n\nab\n\n" + "c" * 6, "ab\n\nab\n\n" + "c" * 5),
  ],
  "c4_sentences": [(SENTENCE * 5, SENTENCE * 4)],
  "c4_braces": [("x = (1)", "x = {1")],
  "c4_lorem": [("Lorem, ipsum", "Lorem Ipsum")],
  "fineweb_line_ends": [
    (lines(87, 13, "{}", "{}."), lines(88, 12, "{}", "{}!")),
  ],
  "fineweb_repeated_characters": [
    ("ab\nab\n" + "c" * 197, "ab\nab\n" + "c" * 196),
  ],
  "fineweb_short_lines": [
    (
      lines(34, 66, "{:0<31}", "{:0<30}"),
      lines(33, 67, "{:0<31}", "{:0<30}"),
    ),
  ],
  "fineweb_line_breaks": [("a\n" * 3 + "b " * 7, "a\n" * 3 + "b " * 6)],
}


@pytest.mark.parametrize("name", BORDERS)
def test_a_rule_ends_at_its_papers_number(name):
  rule = quality.FILTERS[name]
  for kept, removed in BORDERS[name]:
    for document, is_kept in ((kept, True), (removed, False)):
      found = rule.measure(quality.Page(document))
      assert rule.keeps(found) == is_kept, (name, found, document[:80])


TOPS = {2: 0.20, 3: 0.18, 4: 0.16}
REPEATS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


@pytest.mark.parametrize("size", TOPS)
def test_the_commonest_gram_may_hold_its_share(size):
  """Words of 5 letters: a gram has 6 n - 1 characters, a text 6 w - 1."""
  rule = quality.FILTERS[f"gopher_top_{size}_gram"]
  sides = set()
  for total in range(8 * size, 40 * size):
    document = with_repeats(size, 4, total)
    words = len(document.split())
    share = 4 * (6 * size - 1) / (6 * words - 1)
    found = rule.measure(quality.Page(document))
    assert found == pytest.approx(share)
    assert rule.keeps(found) == (share <= TOPS[size])
    sides.add(share <= TOPS[size])
  assert sides == {True, False}


@pytest.mark.parametrize("size", REPEATS)
def test_repeated_grams_may_hold_their_share(size):
  """Of 3 occurrences 2 are repeats; a character in two grams counts once."""
  rule = quality.FILTERS[f"gopher_repeated_{size}_grams"]
  sides = set()
  for total in range(8 * size, 40 * size):
    document = with_repeats(size + 1, 3, total)
    share = 2 * (size + 1) / len(document.split())
    found = rule.measure(quality.Page(document))
    assert found == pytest.approx(share)
    assert rule.keeps(found) == (share <= REPEATS[size] + 1e-12)
    sides.add(share <= REPEATS[size])
  assert sides == {True, False}


def test_every_filter_has_a_border_that_is_tested():
  grams = {f"gopher_top_{n}_gram" for n in TOPS}
  grams |= {f"gopher_repeated_{n}_grams" for n in REPEATS}
  assert set(quality.FILTERS) == set(BORDERS) | grams


def test_c4_keeps_lines_that_are_sentences():
  kept = ["Three words here.", 'He said "no way."', "Is this it?"]
  removed = ["Two words.", "No mark at the end", "It goes on ...", "menu", ""]
  removed += ["Please enable Javascript to go on."]
  assert quality.c4_lines("\n".join([*removed, *kept])) == "\n".join(kept)


def test_prose_passes_all_rules():
  rest = iter(different(600, 6))
  prose = "\n".join(
    f"The {next(rest)} of {next(rest)} and {next(rest)} have {next(rest)}."
    for _ in range(60)
  )
  assert quality.first_failed(prose, tuple(quality.FILTERS)) is None
  found = quality.first_failed("", tuple(quality.FILTERS))
  assert found == ("gopher_words", 0)


def test_a_paper_stands_for_its_rules():
  assert quality.parse_filters("c4,gopher_words") == (
    "gopher_words",
    *("c4_sentences", "c4_braces", "c4_lorem"),
  )
  assert quality.parse_filters("") == ()
  assert len(quality.parse_filters("gopher,c4,fineweb")) == len(quality.FILTERS)
  with pytest.raises(InputError, match="did you mean fineweb"):
    quality.parse_filters("finewebb")
