"""Repeated measurements: their median, and how far they spread."""

import dataclasses
import statistics

from gpt_jax.config import Config

# Default number of repeats; the median of them is reported.
REPEATS = 5


@dataclasses.dataclass(frozen=True)
class Row:
  """One measured quantity and its prediction.

  Attributes:
    name: of the quantity.
    unit: of its numbers.
    values: one of each repeat, in order.
    predicted: by the ledger, the roofline or the speed of another program;
      None without a prediction.
    note: says what the prediction is.
  """

  name: str
  unit: str
  values: list[float]
  predicted: float | None = None
  note: str = ""

  @property
  def median(self) -> float:
    return statistics.median(self.values)

  @property
  def ratio(self) -> float | None:
    """Returns measured over predicted."""
    return self.median / self.predicted if self.predicted else None

  def to_json(self) -> dict:
    return {
      "name": self.name,
      "unit": self.unit,
      "median": self.median,
      "min": min(self.values),
      "max": max(self.values),
      "values": self.values,
      "predicted": self.predicted,
      "ratio": self.ratio,
      "note": self.note,
    }


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Measurements of gpt_jax and of peers in alternation, round by round.

  Attributes:
    quantity: what is compared; less is better.
    ours: milliseconds of each round.
    peers: {name: one number of each round}.
    failed: {name: why this peer has no numbers}.
  """

  quantity: str
  ours: list[float]
  peers: dict[str, list[float]]
  failed: dict[str, str]

  @property
  def best(self) -> str | None:
    """Returns the peer with the lowest median, None if all failed."""
    median = lambda name: statistics.median(self.peers[name])
    return min(self.peers, key=median, default=None)

  def ratios(self, name: str) -> list[float]:
    """Returns how many times faster gpt_jax was, in each round."""
    pairs = zip(self.peers[name], self.ours, strict=True)
    return [theirs / ours for theirs, ours in pairs]

  def to_json(self) -> dict:
    rows = {}
    for name, values in self.peers.items():
      ratios = self.ratios(name)
      rows[name] = {
        "values": values,
        "median": statistics.median(values),
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
      }
    return {
      "quantity": self.quantity,
      "unit": "ms",
      "ours": self.ours,
      "peers": rows,
      "failed": self.failed,
      "best": self.best,
    }


@dataclasses.dataclass(frozen=True)
class Measurement:
  """What one subject measured.

  Attributes:
    subject: "train", "decode", ...
    config: of the model that was timed.
    rows: quantities with their predictions.
    pairs: comparisons with peers.
    about: further facts for bench.json: {"mesh": ..., "rates": ..., ...}.
    packages: names of packages whose versions matter for the figures.
    remarks: lines that follow the table.
  """

  subject: str
  config: Config
  rows: list[Row]
  pairs: list[Pairs] = dataclasses.field(default_factory=list)
  about: dict = dataclasses.field(default_factory=dict)
  packages: tuple[str, ...] = ()
  remarks: list[str] = dataclasses.field(default_factory=list)


def format_number(value: float) -> str:
  """Returns a number with about four digits."""
  size = abs(value)
  digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 4
  return f"{value:,.{digits}f}"
