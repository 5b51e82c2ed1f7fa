"""The best weights of a mixture, read off a sweep over them."""

import numpy as np
import pytest
import sweeps

from gpt_jax.exits import InputError
from gpt_jax.lab.sweep import mixture

LATTICE = [
  (a, b, 3 - a - b) for a in range(4) for b in range(4 - a)
]  # thirds of three sources


def quadratic(weights: np.ndarray) -> np.ndarray:
  """A surface whose smallest value on the simplex is at (0.25, 0.75, 0)."""
  a, b, c = weights.T
  return 2 + (a - 0.25) ** 2 + (b - 0.75) ** 2 + c * (1 - a - b + 0.5)


def test_a_quadratic_is_found_again_and_so_is_its_minimum():
  weights = np.array(LATTICE) / 3
  found = mixture.fit(["a", "b", "c"], "nats", weights, quadratic(weights))
  np.testing.assert_allclose(found.fitted, found.losses, atol=1e-9)
  np.testing.assert_allclose(found.left_out, found.losses, atol=1e-6)
  np.testing.assert_allclose(found.best, [0.25, 0.75, 0])
  assert found.least == pytest.approx(2) and found.error < 1e-6


def test_a_run_that_is_left_out_is_predicted_from_the_others():
  weights = np.array(LATTICE) / 3
  values = np.random.default_rng(0).normal(size=10)
  found = mixture.fit(["a", "b", "c"], "nats", weights, values)
  for i in range(10):
    rest = np.arange(10) != i
    x = mixture.terms(weights)
    by_hand = x[i] @ np.linalg.lstsq(x[rest], values[rest])[0]
    assert found.left_out[i] == pytest.approx(by_hand)
  assert "the fit says little" in "\n".join(found.lines())


def test_candidates_are_mixtures():
  for count in (2, 3, 5):
    found = mixture.candidates(count)
    assert found.shape[1] == count and found.min() >= 0
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found.max(axis=1) == 1).sum() >= count  # one source alone


MIX = """
  for share in {shares}:
    parts = [(share, "{a}"), (4 - share, "{b}")]
    source = ",".join(f"{{w}}*text:{{s}}" for w, s in parts if w)
    add(f"{{share}}", {{"data.source": source, "data.valid_source": "text:{a}"}}
        {more})
"""


@pytest.fixture
def root(tmp_path):
  """Makes runs of two sources whose loss is least at a quarter of the first."""

  def make(shares=(0, 1, 2, 3, 4), more=""):
    names = {name: tmp_path / f"{name}.txt" for name in "ab"}
    for path in names.values():
      path.write_text("some text\n" * 99)
    text = MIX.format(shares=shares, more=more, **names)
    path = tmp_path / "config.py"
    path.write_text(
      sweeps.CONFIG.format(text=names["a"], folder=tmp_path, sweep=text)
    )
    for cell in sweeps.load(str(path)).cells:
      share = int(cell.title.split()[0]) / 4
      loss = 2 + (share - 0.25) ** 2
      sweeps.make_run(tmp_path / "out", cell, losses=(3.0, loss))
    return str(tmp_path / "out"), names

  return make


def test_a_sweep_over_weights_ends_with_the_best(root, call_verb):
  folder, names = root()
  result = call_verb("lab.sweep.mixture", f"--workdir={folder}")
  assert result.returncode == 0, result.stderr
  lines = result.stdout.splitlines()
  assert lines[0].split() == ["w1", f"text:{names['a']}"]
  assert lines[4].split() == ["0.250", "0.750", *["2.0000"] * 3]
  assert "within 0.0000" in result.stdout
  assert lines[-1] == (
    "best by the fit: 2.0000 at data.source=0.250*text:"
    f"{names['a']},0.750*text:{names['b']}"
  )


def test_what_cannot_be_fitted_is_one_sentence(root, call_verb, tmp_path):
  call = lambda folder: call_verb("lab.sweep.mixture", f"--workdir={folder}")
  result = call(tmp_path / "none")
  assert result.returncode == 2 and "no run in " in result.stderr
  result = call(root(shares=(0, 1, 4))[0])
  assert result.returncode == 2 and "3 mixtures of 2 sources" in result.stderr


def test_runs_that_differ_in_more_are_refused(root):
  folder, _ = root(more=', {"optim.learning_rate": 1e-3 * (1 + share)}')
  with pytest.raises(InputError, match=r"differ in optim.learning_rate too"):
    mixture.study(folder)
