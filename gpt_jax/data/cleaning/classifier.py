"""A quality classifier: how likely is a text from a good set, not a bad one?

Like GPT-3's (Brown et al. 2020, arXiv:2005.14165, appendix A), it is a logistic
regression on hashed words, here with pairs of words like DCLM's (Li et al.
2024, arXiv:2406.11794). x is 1 + ln(count) of a text's n-grams in 2^BITS
buckets, scaled to |x| = 1. The two sets have equal weight in the mean:

  p(good | x) = 1 / (1 + exp(-w.x - b))
  loss(w, b) = mean over texts of -ln p(its set | x) + PENALTY / 2 * |w|^2.

No random number is drawn: the same texts give the same weights.
"""

import base64
import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from gpt_jax import files
from gpt_jax.data.cleaning import duplicates
from gpt_jax.exits import InputError

BITS, GRAMS = 18, 2
PENALTY = 1e-4
# The most characters of a text that are read, and sparse entries of a set.
MAX_CHARACTERS = 1 << 16
MAX_ENTRIES = 20_000_000
MAX_STEPS = 200
# Marks a file as a classifier, with the version of its format.
KIND = "quality classifier 1"


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A trained classifier.

  Attributes:
    weights: float32[2^BITS].
    bias: b above.
    record: what it was trained on, and its accuracy on held-out texts.
    digest: of the content of its file.
  """

  weights: np.ndarray
  bias: float
  record: dict[str, Any]
  digest: str = ""

  def score(self, text: str) -> float:
    """Returns p(good | text)."""
    buckets, values = features(text)
    logit = float(self.weights[buckets] @ values) + self.bias
    return 1 / (1 + math.exp(min(700.0, -logit)))


def features(text: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns (distinct buckets int64[N], values float32[N] of norm 1)."""
  text = text[:MAX_CHARACTERS]
  hashes = [duplicates.gram_hashes(text, n) for n in range(1, GRAMS + 1)]
  found = np.concatenate(hashes) >> np.uint64(64 - BITS)
  buckets, counts = np.unique(found.astype(np.int64), return_counts=True)
  values = 1 + np.log(counts)
  return buckets, (values / np.linalg.norm(values)).astype(np.float32)


class TextSet:
  """The texts of a set as sparse rows, with at most MAX_ENTRIES entries.

  Attributes:
    num_texts: the number of rows.
    is_cut: whether texts beyond MAX_ENTRIES were left out.
  """

  def __init__(self, texts: Iterable[str]):
    rows, size, self.is_cut = [], 0, False
    for text in texts:
      row = features(text)
      size += len(row[0])
      if size > MAX_ENTRIES:
        self.is_cut = True
        break
      rows.append(row)
    self.rows, self.num_texts = rows, len(rows)


def fit(good: TextSet, bad: TextSet) -> tuple[np.ndarray, float]:
  """Returns (weights, bias) at the minimum of the loss."""
  from scipy import optimize, sparse, special

  rows = [*good.rows, *bad.rows]
  ends = np.cumsum([0, *(len(buckets) for buckets, _ in rows)])
  buckets, values = (np.concatenate(parts) for parts in zip(*rows, strict=True))
  # The weights of empty buckets are 0 at the minimum.
  used, places = np.unique(buckets, return_inverse=True)
  x = sparse.csr_matrix((values, places, ends), (len(rows), len(used)))
  # sign: +1 good, -1 bad. share: of each text in the mean; a set has half.
  counts = [good.num_texts, bad.num_texts]
  sign = np.repeat([1.0, -1.0], counts)
  share = np.repeat([0.5 / count for count in counts], counts)

  def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
    w, b = parameters[:-1], parameters[-1]
    margin = sign * (x @ w + b)
    slope = -share * sign * special.expit(-margin)
    gradient = np.append(x.T @ slope + PENALTY * w, slope.sum())
    value = share @ np.logaddexp(0, -margin) + PENALTY / 2 * (w @ w)
    return value, gradient

  start = np.zeros(len(used) + 1)
  found = optimize.minimize(
    loss, start, jac=True, method="L-BFGS-B", options={"maxiter": MAX_STEPS}
  )
  weights = np.zeros(1 << BITS, np.float32)
  weights[used] = found.x[:-1]
  return weights, float(found.x[-1])


def separation(good: list[float], bad: list[float]) -> float:
  """Returns how often a good text scores above a bad one: the area under ROC.

  Equal scores count half.
  """
  from scipy import stats

  ranks = stats.rankdata([*good, *bad])
  above = ranks[: len(good)].sum() - len(good) * (len(good) + 1) / 2
  return float(above / (len(good) * len(bad)))


def write(path: str, classifier: Classifier) -> None:
  """Writes a classifier to a JSON file with a seal."""
  import json

  data = classifier.weights.astype("<f4").tobytes()
  content = {
    "kind": KIND,
    "trained": classifier.record,
    "bias": classifier.bias,
    "weights": base64.b64encode(data).decode(),
  }
  files.write_text(path, json.dumps(files.seal(content), indent=1) + "\n")


def read(flag: str, path: str) -> Classifier:
  """Returns the classifier in a file that `write` wrote.

  Args:
    flag: the flag that named the file, for errors.

  Raises:
    InputError: the file is no classifier, or is damaged.
  """
  try:
    content = files.read_json(path)
    good = isinstance(content, dict) and content.get("kind") == KIND
    if not good or content != files.seal(content):
      raise files.Damage(
        "is no whole classifier; give the file that `gpt_jax.data quality` "
        "wrote"
      )
    weights = np.frombuffer(base64.b64decode(content["weights"]), "<f4")
    record, bias = content["trained"], float(content["bias"])
    if len(weights) != 1 << BITS or not isinstance(record, dict):
      raise files.Damage("holds no weights of this version; train it again")
  except files.Damage as damage:
    raise InputError(f"{flag}={path} {damage}") from None
  return Classifier(weights, bias, record, content["digest"])
