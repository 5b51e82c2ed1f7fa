"""The lengths of the rows of a batch, by objective.

A window of data.seq_len ids becomes a row whose length depends on the config
alone. The compiled step, the planner and the data pipeline all use this module.
"""

from collections.abc import Sequence
from typing import NamedTuple

from gpt_jax.config.derived import has_source
from gpt_jax.config.options import OBJECTIVES
from gpt_jax.config.schema import Config, DataConfig


class Lengths(NamedTuple):
  """Numbers of tokens in a corrupted window.

  Attributes:
    noise: hidden tokens.
    spans: spans of hidden tokens, each with a sentinel.
    inputs: visible tokens, sentinels, and the end.
    targets: hidden tokens, sentinels, and the end.
  """

  noise: int
  spans: int
  inputs: int
  targets: int


class Denoiser(NamedTuple):
  """One denoiser of a mixture.

  Attributes:
    mode: name of the token that begins its inputs; None for no token.
    density: the fraction of tokens that are noise.
    mean_span: mean length of its spans; math.inf hides one span, at the end.
  """

  mode: str | None
  density: float
  mean_span: float


# Tay et al. 2022, table 1: regular (R), extreme (X), and sequential (S), whose
# only span is the last quarter. All are equally likely. Noise is divided into
# spans as in T5, whereas the paper draws span lengths from a uniform or a
# normal distribution.
UL2 = (
  Denoiser("R", 0.15, 3.0),
  Denoiser("R", 0.15, 8.0),
  Denoiser("S", 0.25, float("inf")),
  Denoiser("X", 0.5, 3.0),
  Denoiser("X", 0.5, 8.0),
  Denoiser("X", 0.15, 64.0),
  Denoiser("X", 0.5, 64.0),
)


class RowLengths(NamedTuple):
  """Lengths of a row of a batch.

  Attributes:
    source: S, the length that an encoder reads; None without an encoder.
    target: T, the length of tokens, targets and mask.
  """

  source: int | None
  target: int


def row_lengths(config: Config) -> RowLengths:
  """Returns the lengths of the rows that the objective makes."""
  data, mixture = config.data, denoisers(config.data)
  if has_source(config.model) and OBJECTIVES[data.objective].has_labels:
    return RowLengths(data.seq_len, 1)
  if has_source(config.model) and not mixture:
    return RowLengths(data.source_len or data.seq_len, data.seq_len)
  if not mixture:
    return RowLengths(None, data.seq_len)
  if has_source(config.model):
    return RowLengths(*mixture_lengths(data.seq_len, mixture))
  return RowLengths(None, joined_length(data.seq_len, mixture))


def denoisers(data: DataConfig) -> tuple[Denoiser, ...]:
  """Returns the denoisers of data.objective; () if it corrupts nothing."""
  if data.objective == "ul2":
    return UL2
  if data.objective == "span_corruption":
    return (Denoiser(None, data.noise_density, data.mean_span_len),)
  return ()


def corrupted_lengths(length: int, density: float, mean_span: float) -> Lengths:
  """Returns the numbers of tokens after corrupting a window of `length`.

  Args:
    length: at least 2.
    density: the fraction of noise, above 0 and below 1; at least one token is
      noise, and at least one is not.
    mean_span: mean length of a span, 1 or more.
  """
  noise = min(max(round(length * density), 1), length - 1)
  # At least one visible token separates two spans.
  spans = min(max(round(noise / mean_span), 1), length - noise)
  return Lengths(noise, spans, length - noise + spans + 1, noise + spans + 1)


def mixture_lengths(
  length: int, mixture: Sequence[Denoiser]
) -> tuple[int, int]:
  """Returns the widths (S, U) that fit a window for all denoisers."""
  found = [_lengths(length, one) for one in mixture]
  return max(n.inputs for n in found), max(n.targets for n in found)


def joined_length(length: int, mixture: Sequence[Denoiser]) -> int:
  """Returns the length of a row that holds inputs and then targets.

  The last id is only predicted, not read, so it takes no position.
  """
  found = [_lengths(length, one) for one in mixture]
  return max(n.inputs + n.targets for n in found) - 1


def most_spans(length: int, mixture: Sequence[Denoiser]) -> int:
  """Returns the largest number of sentinels that a window needs."""
  return max(_lengths(length, one).spans for one in mixture)


def _lengths(length: int, one: Denoiser) -> Lengths:
  n = corrupted_lengths(length, one.density, one.mean_span)
  return n._replace(inputs=n.inputs + (one.mode is not None))
