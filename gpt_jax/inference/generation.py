"""Generation: prefill, then one compiled decoding loop with a KV cache.

A token's slot in the cache is its index in its row, so that prompts of
different lengths share a batch: each row writes its next token over its
padding, which no token attends to. The loop runs in chunks, so that text can be
printed, and stop strings found, while it runs.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import InputError
from gpt_jax.machine import processes
from gpt_jax.models import Model

# Tokens drawn by one call of the compiled loop.
CHUNK = 16
# Prompt and cache lengths are rounded up to this, to compile fewer shapes.
ROUND = 64
# Draws are counted in int32.
MAX_TOKENS = 2**31 - 1
# Below the smallest normal float32, the token of the largest logit is taken.
MIN_TEMPERATURE = float(np.finfo(np.float32).tiny)
MAX_TEMPERATURE = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is drawn: temperature, then filters, in this order.

  Attributes:
    temperature: of the softmax; 0 (or below MIN_TEMPERATURE) takes the most
      likely token.
    top_k: only the k most likely tokens; 0 for all.
    top_p: the smallest set of likely tokens whose probability reaches this
      (Holtzman et al. 2020); 1 for all.
    min_p: tokens at least this fraction as likely as the likeliest; 0 for
      all.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0

  def __post_init__(self):
    ranges = {
      "temperature": 0 <= self.temperature < math.inf,
      "top_k": self.top_k >= 0,
      "top_p": 0 < self.top_p <= 1,
      "min_p": 0 <= self.min_p <= 1,
    }
    for name, is_fine in ranges.items():
      if not is_fine:
        raise InputError(
          f"{name} is {getattr(self, name)}; temperature and top_k must be "
          "finite and 0 or more, top_p in (0, 1], min_p in [0, 1]"
        )


def sample(
  logits_BV: jax.Array,
  keys_B: jax.Array,
  sampling: Sampling,
  vocab_size: int | None = None,
) -> jax.Array:
  """Returns int32 ids_B drawn from logits, with one key for each row.

  A row whose largest logit is NaN or infinite gives -1.

  Args:
    logits_BV: float32.
    keys_B: from row_keys.
    sampling: temperature and filters.
    vocab_size: ids from here on are padding and never drawn; None for no
      padding.
  """
  V = logits_BV.shape[-1]
  if vocab_size is not None and vocab_size < V:
    is_token_V = jnp.arange(V) < vocab_size
    logits_BV = jnp.where(is_token_V, logits_BV, -jnp.inf)
  largest_B1 = logits_BV.max(-1, keepdims=True)
  if sampling.temperature < MIN_TEMPERATURE:
    ids_B = jnp.argmax(logits_BV, axis=-1)
  else:
    # Shifted to at most 0, so that no temperature overflows the largest. -inf
    # is restored: XLA may multiply it by a reciprocal of 0, which gives NaN.
    temperature = min(sampling.temperature, MAX_TEMPERATURE)
    scaled_BV = (logits_BV - largest_B1) / temperature
    scaled_BV = jnp.where(logits_BV > -jnp.inf, scaled_BV, -jnp.inf)
    scaled_BV = filter_logits(scaled_BV, sampling)
    ids_B = jax.vmap(jax.random.categorical)(keys_B, scaled_BV)
  return jnp.where(jnp.isfinite(largest_B1[:, 0]), ids_B, -1).astype(jnp.int32)


def row_keys(key: jax.Array, made: int | jax.Array, num_rows: int) -> jax.Array:
  """Returns a PRNG key for each row's draw that follows `made` tokens."""
  now = jax.random.fold_in(key, made)
  return jax.vmap(lambda row: jax.random.fold_in(now, row))(
    jnp.arange(num_rows)
  )


def filter_logits(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
  """Returns logits, with -inf for tokens that top_k, top_p or min_p exclude."""
  V = logits_BV.shape[-1]
  if sampling.top_k and sampling.top_k < V:
    kth_B1 = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
    logits_BV = jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)
  if sampling.top_p < 1:
    sorted_BV = jnp.flip(jnp.sort(logits_BV, axis=-1), axis=-1)
    p_BV = jax.nn.softmax(sorted_BV, axis=-1)
    # A token is kept while the likelier ones sum to less than top_p. The first
    # is always kept, even if float32 rounds top_p to 0.
    is_kept_BV = jnp.cumsum(p_BV, axis=-1) - p_BV < sampling.top_p
    is_kept_BV = is_kept_BV.at[:, 0].set(True)
    least_B1 = jnp.where(is_kept_BV, sorted_BV, jnp.inf).min(-1, keepdims=True)
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  if sampling.min_p > 0:
    least_B1 = logits_BV.max(-1, keepdims=True) + math.log(sampling.min_p)
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  return logits_BV


@functools.partial(jax.jit, static_argnames=("model", "num_slots"))
def prefill(
  params: Any,
  tokens_BP: jax.Array,
  lengths_B: jax.Array,
  prefix_B: jax.Array | None = None,
  source: tuple[jax.Array, jax.Array] | None = None,
  *,
  model: Model,
  num_slots: int,
):
  """Returns (cache, logits_BV of each row's last token).

  Args:
    params: from Model.prepare_for_decoding.
    tokens_BP: prompts, padded on the right.
    lengths_B: int32, number of tokens of each prompt, 1 or more.
    prefix_B: int32, number of tokens at the start of each prompt that attend to
      each other in both directions; None for no prefix.
    source: (sources_BS, lengths_B), the inputs of a model's encoder, padded on
      the right, and their numbers of tokens; None for a model without one.
    model: the model of `params`.
    num_slots: slots of the cache for each row.
  """
  slots_BP = None
  if prefix_B is not None:
    order_1P = jnp.arange(tokens_BP.shape[1])[None]
    slots_BP = jnp.maximum(order_1P, prefix_B[:, None] - 1)
  read = {}
  if source is not None:
    sources_BS, source_lengths_B = source
    order_1S = jnp.arange(sources_BS.shape[1])[None]
    is_padding_BS = order_1S >= source_lengths_B[:, None]
    read["sources_BS"] = sources_BS
    read["source_segments_BS"] = is_padding_BS.astype(jnp.int32)
  cache = model.init_cache(tokens_BP.shape[0], num_slots)
  logits_B1V, cache = model.apply_cached(
    params,
    tokens_BP,
    cache,
    jnp.zeros_like(lengths_B),
    lengths_B - 1,
    slots_BP,
    **read,
  )
  return cache, logits_B1V[:, 0]


@functools.partial(
  jax.jit,
  static_argnames=("model", "sampling", "num_tokens", "vocab_size"),
  donate_argnames=("cache",),
)
def decode_chunk(
  params: Any,
  cache: Any,
  logits_BV: jax.Array,
  lengths_B: jax.Array,
  key: jax.Array,
  made: jax.Array,
  *,
  model: Model,
  sampling: Sampling,
  num_tokens: int,
  vocab_size: int,
):
  """Returns (cache, logits_BV, ids_BC) after C = `num_tokens` decode steps.

  A row's draw depends on the key, the row's index and the number of tokens
  drawn before (`made`), so that chunks of any size draw the same tokens.
  """

  def one(carry, index):
    cache, logits_BV, lengths_B = carry
    keys_B = row_keys(key, index, logits_BV.shape[0])
    ids_B = sample(logits_BV, keys_B, sampling, vocab_size)
    logits_B1V, cache = model.apply_cached(
      params, ids_B[:, None], cache, lengths_B
    )
    return (cache, logits_B1V[:, 0], lengths_B + 1), ids_B

  carry, ids_CB = jax.lax.scan(
    one, (cache, logits_BV, lengths_B), made + jnp.arange(num_tokens)
  )
  return carry[0], carry[1], ids_CB.T


_sample = jax.jit(sample, static_argnames=("sampling", "vocab_size"))
prepare = jax.jit(
  lambda params, model: model.prepare_for_decoding(params),
  static_argnames=("model",),
)


def round_up(length: int) -> int:
  """Returns the length rounded up to a multiple of ROUND."""
  return -(-length // ROUND) * ROUND


def read_prompts(
  model: Model,
  prepared: Any,
  rows: Sequence[np.ndarray],
  num_slots: int,
  prefix_B: np.ndarray | None = None,
  sources: Sequence[np.ndarray] | None = None,
):
  """Prefills; returns (cache, logits_BV of each row's last token, lengths_B).

  Args:
    prepared: from prepare.
    rows: int32 ids of each prompt, of any lengths.
    num_slots, prefix_B: as in prefill.
    sources: int32 ids of each row's encoder input, for a model with an encoder.
  """
  limit = model.config.max_len

  def pad(rows):
    lengths_B = np.array([len(r) for r in rows], np.int32)
    width = min(round_up(int(np.max(lengths_B))), limit)
    return np.stack([np.pad(r, (0, width - len(r))) for r in rows]), lengths_B

  tokens_BP, lengths_B = pad(rows)
  read = None if sources is None else pad(sources)
  cache, logits_BV = prefill(
    prepared,
    tokens_BP,
    lengths_B,
    prefix_B,
    read,
    model=model,
    num_slots=num_slots,
  )
  return cache, logits_BV, lengths_B


def split_prompts(model: Model, prompts: Sequence, start_ids: Sequence[int]):
  """Returns (sources or None, the ids that each row begins with), int32.

  For a model that reads sources, the prompts are the sources, and each row
  begins with start_ids. For any other model, each row begins with its prompt.

  Raises:
    ValueError: a model that reads sources has no start_ids.
  """
  as_ids = lambda each: [np.asarray(ids, np.int32) for ids in each]
  if not config_lib.has_source(model.config):
    return None, as_ids(prompts)
  if not len(start_ids):
    raise ValueError("a model that reads sources needs start_ids")
  return as_ids(prompts), as_ids([start_ids] * len(prompts))


def generate(
  model: Model,
  params: Any,
  prompts: Sequence[Sequence[int] | np.ndarray],
  num_tokens: int,
  sampling: Sampling,
  seed: int = 0,
  vocab_size: int | None = None,
  is_prefix: bool = False,
  start_ids: Sequence[int] = (),
) -> Iterator[np.ndarray]:
  """Yields ids_BC in chunks, num_tokens in all for each row.

  Rows run past stop strings and separators; the caller cuts them. When the
  longest row has filled the model's positions, rows that no longer fit keep
  only their last max_len // 2 tokens, and all rows are prefilled again. A model
  that reads prompts as sources stops instead.

  Args:
    params: stacked, as trained; a second, unstacked copy is held while
      generating.
    prompts: the ids of each row's prompt, none empty.
    vocab_size: ids from here on are never drawn; None for the model's.
    is_prefix: whether the tokens of a prompt attend to each other in both
      directions, as in training with prefixes (config.has_prefixes).
    start_ids: the first ids of a target, for a model that reads sources.

  Raises:
    InputError: the model cannot continue these prompts, num_tokens is above
      MAX_TOKENS, or the logits are not finite.
  """
  _check_number(num_tokens)
  limit = model.config.max_len
  vocab_size = vocab_size or model.config.vocab_size
  check_prompts(prompts, model)
  sources, rows = split_prompts(model, prompts, start_ids)
  if sources is not None:
    num_tokens = min(num_tokens, limit - len(start_ids) + 1)
  prefixes = np.array([len(r) for r in rows], np.int32)
  prepared = prepare(params, model)
  key = jax.random.key(seed)
  left = num_tokens
  while left > 0:
    rows, prefixes = _cut_to(limit, rows, prefixes)
    num_slots = min(round_up(max(map(len, rows)) + left), limit)
    cache, logits_BV, lengths = read_prompts(
      model, prepared, rows, num_slots, prefixes if is_prefix else None, sources
    )
    while left > 0:
      free = num_slots - int(np.max(lengths))
      if free:
        cache, logits_BV, ids = decode_chunk(
          prepared,
          cache,
          logits_BV,
          lengths,
          key,
          num_tokens - left,
          model=model,
          sampling=sampling,
          num_tokens=min(CHUNK, free),
          vocab_size=vocab_size,
        )
        ids = sharding.fetch(ids)[:, :left]
      else:
        # The cache is full: draw one more token, then prefill again.
        keys_B = row_keys(key, num_tokens - left, len(rows))
        ids = _sample(
          logits_BV, keys_B, sampling=sampling, vocab_size=vocab_size
        )
        ids = sharding.fetch(ids)[:, None]
      processes.mark()
      check_finite(bool((ids >= 0).all()))
      yield ids
      rows = [np.append(r, new) for r, new in zip(rows, ids, strict=True)]
      lengths = lengths + ids.shape[1]
      left -= ids.shape[1]
      if not free:
        break


def _cut_to(limit: int, rows: list, prefixes):
  """Returns (rows, prefixes); rows above limit keep their last limit // 2."""
  half = max(1, limit // 2)
  cuts = [0 if len(r) <= limit else len(r) - half for r in rows]
  rows = [r[cut:] for r, cut in zip(rows, cuts, strict=True)]
  return rows, np.maximum(prefixes - np.array(cuts, np.int32), 1)


def _check_number(num_tokens: int) -> None:
  if not 0 <= num_tokens <= MAX_TOKENS:
    raise InputError(
      f"num_tokens is {num_tokens}; it must be from 0 to {MAX_TOKENS}"
    )


def check_finite(is_finite: bool) -> None:
  """Raises InputError unless the logits of all rows were finite."""
  if not is_finite:
    raise InputError(
      "the model's logits are NaN or infinite: the parameters come from a run "
      "that diverged, or compute_dtype overflows; use an earlier checkpoint, "
      "or train again with a lower optim.learning_rate"
    )


def check_prompts(
  prompts: Sequence[Sequence[int] | np.ndarray], model: Model
) -> None:
  """Raises InputError unless the model can continue prompts of these ids."""
  limit = model.config.max_len
  if not model.can_generate:
    key = "head" if config_lib.has_classes(model.config) else "family"
    word = getattr(model.config, key)
    raise InputError(f"model.{key} is {word}, which cannot continue a text")
  for prompt in prompts:
    if not len(prompt):
      raise InputError(
        "the prompt is empty; give some text, for instance --prompt='The '"
      )
    if len(prompt) > limit:
      raise InputError(
        f"the prompt has {len(prompt)} tokens and the model {limit} positions;"
        " shorten it"
      )
