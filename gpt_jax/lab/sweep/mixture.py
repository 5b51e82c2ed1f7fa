"""Finds the best weights of a mixture: python -m gpt_jax.lab.sweep.mixture.

Reads the runs of a sweep over data.source that differ in their weights w alone,
and fits their final losses by Scheffe's quadratic (1958) on the simplex,

  L(w) = sum_i b_i w_i + sum_(i<j) b_ij w_i w_j,

by least squares; b_i is the loss with source i alone, and a negative b_ij means
that mixing i and j is better than the weighted mean of their losses. The fit's
error is measured by leave-one-out: each run is predicted from all others. As in
RegMix (Liu et al. 2024, arXiv:2407.01492), small runs choose the weights of a
large one.
"""

import dataclasses
import itertools

import numpy as np

from gpt_jax import cli
from gpt_jax.data import sources
from gpt_jax.exits import InputError
from gpt_jax.lab.sweep import folder, listing, losses
from gpt_jax.machine import console

# Up to FEW sources, all mixtures on a grid of STEPS steps are evaluated; for
# more sources, DRAWN random ones.
STEPS, FEW, DRAWN = 40, 3, 200_000


def main(argv: list[str]) -> int:
  parser = cli.build_parser(
    "lab.sweep.mixture",
    "The weights of a mixture that a sweep over them finds best.",
    needs_config=False,
  )
  parser.add_argument(
    "--workdir", required=True, metavar="ROOT", help="the folder of the sweep"
  )
  args = cli.parse_flags(parser, argv)
  print("\n".join(map(console.plain, study(args.workdir).lines())))
  return 0


@dataclasses.dataclass(frozen=True)
class Study:
  """Runs of a mixture, and the fit through them.

  Attributes:
    specs: the M sources.
    unit: of the losses.
    weights: [N, M], each row of sum 1.
    losses: [N].
    fitted: [N], losses predicted by the fit to all runs.
    left_out: [N], losses predicted by a fit to all other runs.
    best: [M], the weights with the least fitted loss.
    least: the fitted loss there.
  """

  specs: list[str]
  unit: str
  weights: np.ndarray
  losses: np.ndarray
  fitted: np.ndarray
  left_out: np.ndarray
  best: np.ndarray
  least: float

  @property
  def error(self) -> float:
    """The root mean square of the leave-one-out errors."""
    return float(np.sqrt(np.mean((self.left_out - self.losses) ** 2)))

  def lines(self) -> list[str]:
    """Returns the runs, the fit's error and the best weights, as text."""
    names = [f"w{i + 1}" for i in range(len(self.specs))]
    lines = [f"{n:>6}  {s}" for n, s in zip(names, self.specs, strict=True)]
    heads = [*names, "loss", "fit", "left out"]
    lines += ["", "".join(f"{head:>10}" for head in heads)]
    rows = (self.losses, self.fitted, self.left_out)
    for i in np.argsort(self.losses):
      cells = [f"{w:>10.3f}" for w in self.weights[i]]
      lines.append("".join([*cells, *(f"{row[i]:>10.4f}" for row in rows)]))
    spread = float(self.losses.std())
    lines += [
      "",
      f"losses in {self.unit}; a run that is left out is predicted within "
      f"{self.error:.4f}, and the losses spread by {spread:.4f}",
    ]
    if self.error > spread / 2:
      lines.append("the fit says little: take the best run, or add runs")
    mixture = ",".join(
      f"{w:.3f}*{s}" for w, s in zip(self.best, self.specs, strict=True) if w
    )
    lines.append(f"best by the fit: {self.least:.4f} at data.source={mixture}")
    return lines


def study(root: str) -> Study:
  """Returns the study of the runs of a sweep that have ended.

  Raises:
    InputError: too few runs have ended, or they differ in more than their
      weights.
  """
  states, _ = listing.states_of(None, root)
  ended = [s for s in states if s.final is not None]
  if not ended:
    raise InputError(
      f"no run in {root} has ended; give the --workdir of a sweep that has run"
    )
  unit, why = losses.find_unit(ended)
  if not unit:
    raise InputError(f"the runs in {root} cannot be compared: {why}")
  parsed = [_weights_of(state) for state in ended]
  specs = sorted({spec for found in parsed for spec in found})
  weights = np.array([[found.get(s, 0.0) for s in specs] for found in parsed])
  need = len(specs) * (len(specs) + 1) // 2 + 1
  count = len(np.unique(weights.round(6), axis=0))
  if len(specs) < 2 or count < need:
    raise InputError(
      f"{root} has {count:,} mixtures of {len(specs):,} sources that ended; "
      f"the fit needs 2 sources or more, and for {max(2, len(specs)):,} of "
      f"them {max(4, need):,} mixtures"
    )
  _require_same(ended, root)
  values = np.array([losses.value(state, unit) for state in ended])
  return fit(specs, unit, weights, values)


def fit(
  specs: list[str], unit: str, weights: np.ndarray, values: np.ndarray
) -> Study:
  """Returns the study of losses [N] at weights [N, M]."""
  x = terms(weights)
  hat = x @ np.linalg.pinv(x)
  fitted = hat @ values
  # In least squares, a leave-one-out residual is residual / (1 - leverage).
  room = np.maximum(1 - np.diag(hat), 1e-9)
  left_out = values - (values - fitted) / room
  grid = candidates(weights.shape[1])
  surface = terms(grid) @ (np.linalg.pinv(x) @ values)
  place = int(np.argmin(surface))
  least = float(surface[place])
  return Study(
    specs, unit, weights, values, fitted, left_out, grid[place], least
  )


def terms(weights: np.ndarray) -> np.ndarray:
  """Returns w_i and w_i w_j: [N, M (M + 1) / 2]."""
  pairs = itertools.combinations(weights.T, 2)
  return np.stack([*weights.T, *(a * b for a, b in pairs)], axis=1)


def candidates(count: int) -> np.ndarray:
  """Returns mixtures of `count` sources: [K, count], each of sum 1."""
  if count > FEW:
    dice = np.random.default_rng(0)
    drawn = dice.dirichlet(np.full(count, 0.5), DRAWN)
    return np.concatenate([np.eye(count), drawn])
  counts = itertools.product(range(STEPS + 1), repeat=count)
  return np.array([c for c in counts if sum(c) == STEPS]) / STEPS


def _weights_of(state: folder.State) -> dict[str, float]:
  pairs = sources.parse_mixture(state.the_config().data.source)
  return {spec: weight for weight, spec in pairs}


def _require_same(states: list[folder.State], root: str) -> None:
  """Raises InputError if runs differ in more than seed and weights."""
  from gpt_jax.lab.sweep.groups import axes_of

  more = [k for k in axes_of(states) if k not in ("data.source", "seed")]
  if more:
    raise InputError(
      f"the runs in {root} differ in {', '.join(more)} too; give the folder of "
      "a sweep over the weights of data.source alone"
    )


if __name__ == "__main__":
  cli.run(main)
