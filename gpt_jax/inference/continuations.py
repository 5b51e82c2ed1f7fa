"""Log-probabilities of continuations, each after a context of its own.

Evaluation harnesses ask for these: many (context, continuation) pairs of any
length, each scored in one forward pass, in batches of similar length; or the
log-probability of every token of a text.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.exits import InputError
from gpt_jax.inference import generation
from gpt_jax.models import Model


def check_model(model: Model, is_prefix: bool) -> None:
  """Raises InputError unless the model continues plain text."""
  what = None
  if not model.can_generate:
    what = "an encoder, or has classes,"
  elif config_lib.has_source(model.config):
    what = "a model that reads sources"
  elif is_prefix:
    what = "trained with prefixes"
  if what:
    raise InputError(
      f"the model is {what} and these are tasks of models that continue text; "
      "use evaluate --generate or generate --choice"
    )


def _read(params, tokens_BT, model: Model, vocab_size: int):
  """Returns logits_BTV, with -inf for padding ids (vocab_size and above)."""
  logits_BTV = model.apply(params, tokens_BT)
  is_token_V = jnp.arange(logits_BTV.shape[-1]) < vocab_size
  return jnp.where(is_token_V, logits_BTV, -jnp.inf)


@functools.partial(jax.jit, static_argnames=("model", "vocab_size"))
def _score(params, tokens_BT, ids_BT, counts_BT, *, model: Model, vocab_size):
  """Returns (log_p_B, is_greedy_B) of the continuations.

  Args:
    ids_BT: the token that follows each position.
    counts_BT: whether that token belongs to the continuation.
  """
  logits_BTV = _read(params, tokens_BT, model, vocab_size)
  log_p_BTV = jax.nn.log_softmax(logits_BTV)
  log_p_BT = jnp.take_along_axis(log_p_BTV, ids_BT[..., None], 2)[..., 0]
  is_first_BT = logits_BTV.argmax(-1) == ids_BT
  log_p_B = jnp.where(counts_BT, log_p_BT, 0.0).sum(-1)
  return log_p_B, (is_first_BT | ~counts_BT).all(-1)


def score_pairs(
  model: Model,
  params: Any,
  pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
  batch_size: int,
  vocab_size: int,
) -> list[tuple[float, bool]]:
  """Returns each pair's (log-probability in nats, whether it is greedy).

  A continuation is greedy if each of its tokens is the likeliest.

  Args:
    params: stacked, as trained.
    pairs: ids of a context and of its continuation, neither empty. Only the
      last tokens of a pair longer than the model's positions are read.
    batch_size: rows of a forward pass.
    vocab_size: ids from here on are padding.

  Raises:
    InputError: a continuation is longer than the model's positions, or the
      logits are not finite.
  """
  limit = model.config.max_len
  for _, continuation in pairs:
    if len(continuation) > limit:
      raise InputError(
        f"a continuation of {len(continuation)} tokens is longer than the "
        f"model's {limit} positions; shorten it"
      )
  whole = [np.array([*a, *b], np.int32)[-limit - 1 :] for a, b in pairs]
  # The longest first: what does not fit in memory fails at once.
  order = sorted(range(len(pairs)), key=lambda i: -len(whole[i]))
  found: list = [None] * len(pairs)
  for first in range(0, len(order), batch_size):
    own = order[first : first + batch_size]
    T = min(generation.round_up(len(whole[own[0]]) - 1), limit)
    tokens_BT = np.zeros((batch_size, T), np.int32)
    ids_BT = np.zeros((batch_size, T), np.int32)
    counts_BT = np.zeros((batch_size, T), bool)
    for row, i in enumerate(own):
      end = len(whole[i]) - 1
      tokens_BT[row, :end], ids_BT[row, :end] = whole[i][:-1], whole[i][1:]
      counts_BT[row, end - len(pairs[i][1]) : end] = True
    scored = _score(
      params, tokens_BT, ids_BT, counts_BT, model=model, vocab_size=vocab_size
    )
    log_p_B, is_greedy_B = map(sharding.fetch, scored)
    generation.check_finite(bool(np.isfinite(log_p_B).all()))
    for row, i in enumerate(own):
      found[i] = float(log_p_B[row]), bool(is_greedy_B[row])
  return found


@functools.partial(jax.jit, static_argnames=("model", "vocab_size", "count"))
def _score_all(params, tokens_T, *, model: Model, vocab_size: int, count: int):
  """Returns (log_p_T of the next token, likeliest_TE ids, theirs_TE).

  The last element of log_p_T means nothing: no token follows there.
  """
  logits_TV = _read(params, tokens_T[None], model, vocab_size)[0]
  log_p_TV = jax.nn.log_softmax(logits_TV)
  log_p_T = jnp.take_along_axis(log_p_TV, jnp.roll(tokens_T, -1)[:, None], 1)
  theirs_TE, likeliest_TE = jax.lax.top_k(log_p_TV, count)
  return log_p_T[:, 0], likeliest_TE, theirs_TE


def score_text(
  model: Model, params: Any, ids: Sequence[int], vocab_size: int, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the log-probability of each token of a text but the first, in nats.

  Args:
    params: stacked, as trained.
    ids: the text's ids, at most as many as the model has positions.
    vocab_size: ids from here on are padding.
    count: E, the number of likeliest tokens that are returned beside each.

  Returns:
    (log_p_N, likeliest_NE ids, their log-probabilities_NE, likeliest first), N
    the number of ids less one.

  Raises:
    InputError: the logits are not finite.
  """
  N = len(ids) - 1
  T = min(generation.round_up(len(ids)), model.config.max_len)
  tokens_T = np.zeros(T, np.int32)
  tokens_T[: len(ids)] = ids
  found = _score_all(
    params,
    tokens_T,
    model=model,
    vocab_size=vocab_size,
    count=min(count, vocab_size),
  )
  log_p_N, likeliest_NE, theirs_NE = (
    np.asarray(sharding.fetch(x))[:N] for x in found
  )
  generation.check_finite(bool(np.isfinite(log_p_N).all()))
  return log_p_N, likeliest_NE, theirs_NE
