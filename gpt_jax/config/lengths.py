"""How long the rows of a batch are, where an objective makes them of windows.

A window of data.seq_len ids becomes a row whose length follows from the config
alone: a compiled step, the planner and the reader of data all ask here.
"""

from collections.abc import Sequence
from typing import NamedTuple

from gpt_jax.config.derived import has_source
from gpt_jax.config.options import OBJECTIVES
from gpt_jax.config.schema import Config, DataConfig


class Lengths(NamedTuple):
  """Numbers of tokens of a corrupted window.

  Attributes:
    noise: tokens that are hidden.
    spans: spans that they form, each with a sentinel.
    inputs: tokens that stay, sentinels, and the end.
    targets: hidden tokens, sentinels, and the end.
  """

  noise: int
  spans: int
  inputs: int
  targets: int


class Denoiser(NamedTuple):
  """A member of a mixture.

  Attributes:
    mode: name of the token that begins its inputs; None for no token.
    density: the part of the tokens that is noise.
    mean_span: mean length of its spans; math.inf hides one span, at the end.
  """

  mode: str | None
  density: float
  mean_span: float


# Tay et al. 2022, table 1: regular, extreme, and sequential, whose only span is
# the last quarter. Each is as likely. Noise is divided into spans as in T5,
# where the paper draws span lengths from a uniform or a normal distribution.
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
    source: S, of what an encoder reads; None where there is no such part.
    target: T, of tokens, targets and mask.
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
  """Returns what corrupts the windows of an objective, () for nothing."""
  if data.objective == "ul2":
    return UL2
  if data.objective == "span_corruption":
    return (Denoiser(None, data.noise_density, data.mean_span_len),)
  return ()


def corrupted_lengths(length: int, density: float, mean_span: float) -> Lengths:
  """Returns the numbers of tokens that a window of `length` gives.

  Args:
    length: at least 2.
    density: the part that is noise, above 0 and below 1; one token at least is
      noise, and one is not.
    mean_span: mean length of a span, 1 or more.
  """
  noise = min(max(round(length * density), 1), length - 1)
  # Between two spans lies a token that stays.
  spans = min(max(round(noise / mean_span), 1), length - noise)
  return Lengths(noise, spans, length - noise + spans + 1, noise + spans + 1)


def mixture_lengths(
  length: int, mixture: Sequence[Denoiser]
) -> tuple[int, int]:
  """Returns the widths (S, U) that hold a window, whoever corrupts it."""
  found = [_lengths(length, one) for one in mixture]
  return max(n.inputs for n in found), max(n.targets for n in found)


def joined_length(length: int, mixture: Sequence[Denoiser]) -> int:
  """Returns the tokens of a row that holds inputs and then targets.

  Its last id is predicted, and predicts nothing.
  """
  found = [_lengths(length, one) for one in mixture]
  return max(n.inputs + n.targets for n in found) - 1


def most_spans(length: int, mixture: Sequence[Denoiser]) -> int:
  """Returns the sentinels that a window may need."""
  return max(_lengths(length, one).spans for one in mixture)


def _lengths(length: int, one: Denoiser) -> Lengths:
  n = corrupted_lengths(length, one.density, one.mean_span)
  return n._replace(inputs=n.inputs + (one.mode is not None))
