"""Lines of progress, and text that is shown."""

import math

import pytest

from gpt_jax import metric_names
from gpt_jax.machine import console


@pytest.mark.parametrize("loss", [1.8321, 1e30, math.inf, math.nan, -1e300])
def test_a_line_of_progress_stays_below_100_characters(loss):
  rates = {
    metric_names.STEP_SECONDS: 1e4,
    metric_names.TOKENS_PER_SECOND: 1e12,
    metric_names.MFU: 0.9999,
  }
  line = console.progress_line(10**8, 10**9, loss, rates)
  assert len(line) < 100 and "tok/s" in line
  assert console.progress_line(1, 2, 1.5, {}) == "step 1/2  loss 1.5000"


def test_text_to_show_is_cut_and_cannot_steer_the_terminal():
  lines = console.wrap_text("\n\tone\n\n" + "x" * 200 + "\n\x1b[2Jred\r\n")
  assert [len(line) for line in lines] == [5, 0, 90, 90, 20, 7]
  assert not any(c in "".join(lines) for c in "\x1b\r\t")
