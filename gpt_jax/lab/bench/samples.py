"""What repeats of one measurement say: the median, and how far they spread."""

import dataclasses
import statistics


@dataclasses.dataclass(frozen=True)
class Row:
  """One measured quantity beside what was predicted.

  Attributes:
    name: of the quantity.
    unit: of its numbers.
    values: of the repeats, in their order.
    predicted: from the ledger, the roofline or another's speed; None without.
    note: what the prediction is.
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
  """Alternating measurements of ours and of peers, round by round.

  Attributes:
    quantity: what is compared; less of it is better.
    unit: of its numbers.
    ours: one number a round.
    peers: {name: one number a round}.
    failed: {name: why there are none}.
  """

  quantity: str
  unit: str
  ours: list[float]
  peers: dict[str, list[float]]
  failed: dict[str, str]

  @property
  def best(self) -> str | None:
    """Returns the peer of the lowest median, None if all have failed."""
    median = lambda name: statistics.median(self.peers[name])
    return min(self.peers, key=median, default=None)

  def ratios(self, name: str) -> list[float]:
    """Returns how many times faster ours was, in each round."""
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
      "unit": self.unit,
      "ours": self.ours,
      "peers": rows,
      "failed": self.failed,
      "best": self.best,
    }


def format_number(value: float) -> str:
  """Returns about four digits of a number."""
  size = abs(value)
  digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 4
  return f"{value:,.{digits}f}"
