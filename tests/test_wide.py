"""The default run meets every question and every form of a battery."""

import itertools

from wide import choose


def product(questions: str, forms: int) -> list:
  return [
    (question, (("form", str(form)),))
    for question, form in itertools.product(questions, range(forms))
  ]


def test_every_question_and_every_form_is_in_the_default_run():
  few = [("few", (("form", "x"),)), ("few", (("form", "y"),))]
  rows = product("abcde", 21) + few
  kept = choose(rows)
  for side in range(2):
    assert {row[side] for row in kept} == {row[side] for row in rows}
  assert len(kept) < len(rows) / 3
  assert kept.issuperset(few)


def test_each_question_meets_other_forms():
  kept = choose(product("ab", 8))
  a, b = ({row[1] for row in kept if row[0] == name} for name in "ab")
  assert a and b and not a & b


def test_every_value_of_each_parameter_is_met():
  values = itertools.product("pqrs", "wxyz")
  rows = [("a", (("kernel", k), ("feature", f))) for k, f in values]
  met = {value for _, params in choose(rows) for value in params}
  assert len(met) == 8 and len(choose(rows)) < 10


def test_a_form_of_one_question_alone_is_kept():
  late = ("a", (("form", "late"),))
  assert late in choose([*product("abcd", 8), late])


def test_a_test_that_is_a_battery_itself_takes_each_fourth_row():
  rows = product("a", 8)
  assert choose(rows, is_alone=True) == {rows[0], rows[4]}
  # The control: among others each form must be met.
  assert choose(rows) == set(rows)
