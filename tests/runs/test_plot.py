"""Curves as SVG."""

import xml.etree.ElementTree

import pytest

from gpt_jax.runs import plot

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
  "curves",
  [
    {},
    {"none": []},
    {"zero": [(0, 0.0)]},
    {"one": [(1, 2.0)]},
    {"flat": [(1, 2.0), (2, 2.0)]},
    {"a<b & c": [(1, 1e-9), (10**9, 1e30)]},
  ],
  ids=str,
)
def test_few_or_wild_points_are_still_a_valid_plot(curves):
  svg = plot.draw_curves("loss & more", "step", curves)
  root = xml.etree.ElementTree.fromstring(svg)
  assert len(list(root.iter(f"{SVG}polyline"))) == len(curves)
  assert "nan" not in svg and "inf" not in svg


def test_a_run_of_any_length_has_a_few_marks_below_its_curve():
  for steps in [*range(1, 130), 999, 1000, 7777, 10**9]:
    svg = plot.draw_curves("loss", "step", {"a": [(steps, 2.0)]})
    root = xml.etree.ElementTree.fromstring(svg)
    heights = [text.get("y") for text in root.iter(f"{SVG}text")]
    marks = heights.count(str(plot.HEIGHT - plot.BOTTOM + 18))
    assert 2 <= marks <= 7, steps
