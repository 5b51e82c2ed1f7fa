"""digits: what a rule makes of random strings."""

import pytest

from gpt_jax.config import InputError
from gpt_jax.data import sources


def read(spec: str):
  texts = ["".join(d.pieces) for d in sources.open_source(spec).documents()]
  return list(zip(texts[::2], texts[1::2], strict=True))


@pytest.mark.parametrize(
  "rule,of_120", [("copy", "120"), ("reverse", "021"), ("sort", "012")]
)
def test_targets_are_what_the_rule_makes(rule, of_120):
  found = read(f"digits:{rule}:1-3")
  assert len(found) == 50_000 and ("120", of_120) in found
  lengths = [len(a) for a, _ in found]
  assert set(lengths) == {1, 2, 3}
  assert all(abs(lengths.count(n) - 16_667) < 600 for n in (1, 2, 3))
  assert found == read(f"digits:{rule}:1-3")
  assert all(sorted(a) == sorted(b) for a, b in found)


def test_rules_share_their_strings_and_differ_in_name():
  sources_of = lambda spec: [a for a, _ in read(spec)]
  assert sources_of("digits:copy") == sources_of("digits:sort:1-12")
  assert sources_of("digits:copy") != sources_of("digits:copy:1-11")
  prints = {
    sources.open_source(f"digits:{spec}").fingerprint()
    for spec in ("copy", "sort", "copy:1-11")
  }
  assert len(prints) == 3
  assert sources.is_paired("digits:copy")


@pytest.mark.parametrize(
  "spec", ["add", "copy:", "copy:3", "copy:5-2", "copy:0-3", "copy:1-1001"]
)
def test_what_is_no_rule_or_range_is_refused(spec):
  with pytest.raises(InputError, match="must name a rule, copy, reverse, sort"):
    sources.open_source(f"digits:{spec}")
