"""Sampling: the next token of each row is drawn by that row's own settings."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gpt_jax.inference import generation
from gpt_jax.inference.generation import Sampling

# Number of likeliest tokens whose log-probabilities a step returns.
NUM_LIKELIEST = 20


class Settings(NamedTuple):
  """How one row's tokens are drawn.

  Attributes:
    sampling: temperature and filters.
    seed, choice: the row draws the same random numbers as row `choice` of
      generation.generate with this seed.
    presence_penalty, frequency_penalty: subtracted from the logit of a token
      that the row has drawn before: the first once, the second for each time.
    bias: {id: number that is added to its logit}.
    has_log_probs: whether log-probabilities are wanted.
  """

  sampling: Sampling
  seed: int = 0
  choice: int = 0
  presence_penalty: float = 0.0
  frequency_penalty: float = 0.0
  bias: dict[int, float] = {}
  has_log_probs: bool = False

  @property
  def changes_logits(self) -> bool:
    """Returns whether penalties or a bias change the row's logits."""
    return bool(self.presence_penalty or self.frequency_penalty or self.bias)


class Draws(struct.PyTreeNode):
  """Settings of all rows, as arrays.

  made_R is the number of tokens that a row has drawn; is_changed_R, whether
  penalties or a bias change its logits.
  """

  temperature_R: Any
  top_k_R: Any
  top_p_R: Any
  min_p_R: Any
  presence_R: Any
  frequency_R: Any
  is_changed_R: Any
  seed_R: Any
  choice_R: Any
  made_R: Any
  has_log_probs_R: Any

  def put(self, row: int, settings: Settings) -> None:
    """Sets a row that has drawn nothing yet; the arrays must be NumPy's."""
    sampling = settings.sampling
    for array_R, value in (
      (
        self.temperature_R,
        min(sampling.temperature, generation.MAX_TEMPERATURE),
      ),
      (self.top_k_R, min(sampling.top_k, 2**31 - 1)),
      (self.top_p_R, sampling.top_p),
      (self.min_p_R, sampling.min_p),
      (self.presence_R, settings.presence_penalty),
      (self.frequency_R, settings.frequency_penalty),
      (self.is_changed_R, settings.changes_logits),
      (self.seed_R, settings.seed),
      (self.choice_R, settings.choice),
      (self.made_R, 0),
      (self.has_log_probs_R, settings.has_log_probs),
    ):
      array_R[row] = value


def init_draws(num_rows: int) -> Draws:
  """Returns the Draws of rows that are all free."""
  full = lambda value, dtype: np.full(num_rows, value, dtype)
  return Draws(
    temperature_R=full(0, np.float32),
    top_k_R=full(0, np.int32),
    top_p_R=full(1, np.float32),
    min_p_R=full(0, np.float32),
    presence_R=full(0, np.float32),
    frequency_R=full(0, np.float32),
    is_changed_R=full(False, bool),
    seed_R=full(0, np.uint32),
    choice_R=full(0, np.int32),
    made_R=full(0, np.int32),
    has_log_probs_R=full(False, bool),
  )


class Drawn(NamedTuple):
  """The tokens of one decode step; NumPy arrays. T is 1 + number of drafts.

  Attributes:
    ids_RT: int32; -1 where the logits were not finite.
    num_R: number of ids that each row goes on with; the rest mean nothing.
    log_probs_RT: the ids' log-probabilities before temperature and filters.
    likeliest_RTE, their_log_probs_RTE: ids and log-probabilities of the E =
      NUM_LIKELIEST likeliest tokens. Where no row wants log-probabilities,
      these three arrays are zeros.
  """

  ids_RT: np.ndarray
  num_R: np.ndarray
  log_probs_RT: np.ndarray
  likeliest_RTE: np.ndarray
  their_log_probs_RTE: np.ndarray


def draw(
  logits_VR, counts_RV, bias_RV, draws: Draws, mask_RW, vocab_size: int
) -> jax.Array:
  """Returns int32 ids_R; each row as generation.sample with its settings.

  Where every row is greedy, without penalties, bias or mask, only the argmax is
  computed, which saves four passes over all logits (docs/serving.md).

  Args:
    logits_VR: vocabulary first, the layout of a CPU's fastest matmul.
    counts_RV: how often each row has drawn each token.
    bias_RV: added to each row's logits.
    mask_RW: uint32; a bit that is set allows its token to come next.
    vocab_size: ids from here on are never drawn.
  """
  is_drawn_R = draws.temperature_R >= generation.MIN_TEMPERATURE
  is_plain = ~jnp.any(is_drawn_R | draws.is_changed_R)
  is_plain &= jnp.all(~mask_RW == 0)
  largest_R, ids_R = jax.lax.cond(
    is_plain,
    lambda: _take_likeliest(logits_VR, vocab_size),
    lambda: _draw_changed(
      logits_VR.T, counts_RV, bias_RV, draws, mask_RW, vocab_size
    ),
  )
  return jnp.where(jnp.isfinite(largest_R), ids_R, -1).astype(jnp.int32)


def _take_likeliest(logits_VR, vocab_size: int):
  """Returns (each row's largest logit, the first token that has it)."""
  logits_VR = logits_VR[:vocab_size]
  largest_R = logits_VR.max(0)
  # On a CPU, XLA's argmax takes five times as long as these two passes.
  at_V1 = jnp.arange(vocab_size, dtype=jnp.int32)[:, None]
  at_VR = jnp.where(logits_VR == largest_R[None], at_V1, vocab_size - 1)
  return largest_R, at_VR.min(0)


def _draw_changed(
  logits_RV, counts_RV, bias_RV, draws: Draws, mask_RW, vocab_size: int
):
  """Returns (each row's largest logit, ids_R), with all settings and masks."""
  V = logits_RV.shape[1]
  column = lambda x_R: x_R[:, None]
  logits_RV = (
    logits_RV
    + bias_RV
    - column(draws.presence_R) * (counts_RV > 0)
    - column(draws.frequency_R) * counts_RV
  )
  shift_W1 = jnp.arange(32, dtype=jnp.uint32)[None, None]
  may_RV = ((mask_RW[..., None] >> shift_W1) & 1).reshape(len(mask_RW), -1) > 0
  may_RV = may_RV[:, :V] & (jnp.arange(V) < vocab_size)[None]
  largest_R = logits_RV.max(-1)
  logits_RV = jnp.where(may_RV, logits_RV, -jnp.inf)
  _, likeliest_R = _take_likeliest(logits_RV.T, V)
  is_drawn_R = draws.temperature_R >= generation.MIN_TEMPERATURE

  def by_chance():
    temperature_R1 = column(jnp.where(is_drawn_R, draws.temperature_R, 1.0))
    shifted_RV = logits_RV - logits_RV.max(-1, keepdims=True)
    scaled_RV = shifted_RV / temperature_R1
    scaled_RV = jnp.where(logits_RV > -jnp.inf, scaled_RV, -jnp.inf)
    is_filtered_R = (draws.top_k_R > 0) | (draws.top_p_R < 1)
    is_filtered_R |= draws.min_p_R > 0
    scaled_RV = jax.lax.cond(
      jnp.any(is_filtered_R & is_drawn_R),
      lambda x_RV: filter_rows(x_RV, draws),
      lambda x_RV: x_RV,
      scaled_RV,
    )
    keys_R = jax.vmap(
      lambda seed, made, choice: jax.random.fold_in(
        jax.random.fold_in(jax.random.key(seed), made), choice
      )
    )(draws.seed_R, draws.made_R, draws.choice_R)
    return jax.vmap(jax.random.categorical)(keys_R, scaled_RV)

  drawn_R = jax.lax.cond(jnp.any(is_drawn_R), by_chance, lambda: likeliest_R)
  return largest_R, jnp.where(is_drawn_R, drawn_R, likeliest_R)


def filter_rows(logits_RV, draws: Draws):
  """Returns generation.filter_logits of each row, with its own settings."""
  V = logits_RV.shape[-1]
  column = lambda x_R: x_R[:, None]
  sorted_RV = jnp.flip(jnp.sort(logits_RV, axis=-1), axis=-1)
  top_k_R = jnp.where(draws.top_k_R > 0, jnp.minimum(draws.top_k_R, V), V)
  kth_R1 = jnp.take_along_axis(sorted_RV, column(top_k_R) - 1, axis=-1)
  logits_RV = jnp.where(logits_RV < kth_R1, -jnp.inf, logits_RV)
  sorted_RV = jnp.where(sorted_RV < kth_R1, -jnp.inf, sorted_RV)
  p_RV = jax.nn.softmax(sorted_RV, axis=-1)
  is_kept_RV = jnp.cumsum(p_RV, axis=-1) - p_RV < column(draws.top_p_R)
  is_kept_RV |= column(draws.top_p_R) >= 1
  is_kept_RV = is_kept_RV.at[:, 0].set(True)
  least_R1 = jnp.where(is_kept_RV, sorted_RV, jnp.inf).min(-1, keepdims=True)
  logits_RV = jnp.where(logits_RV < least_R1, -jnp.inf, logits_RV)
  least_R1 = logits_RV.max(-1, keepdims=True) + jnp.log(column(draws.min_p_R))
  return jnp.where(logits_RV < least_R1, -jnp.inf, logits_RV)


def log_probs(logits_RV, ids_R, vocab_size: int):
  """Returns (log-probabilities of ids_R, likeliest_RE ids, theirs)."""
  E = min(NUM_LIKELIEST, vocab_size)
  logits_RV = logits_RV[:, :vocab_size]
  all_RV = jax.nn.log_softmax(logits_RV, axis=-1)
  own_R = jnp.take_along_axis(all_RV, jnp.maximum(ids_R, 0)[:, None], axis=1)
  values_RE, likeliest_RE = jax.lax.top_k(all_RV, E)
  return own_R[:, 0], likeliest_RE, values_RE
