"""Rows that join and leave one compiled decoding step at any time.

Every step computes the same number of rows, whichever of them hold a text, and
every prompt is read alone, in chunks of one length. So no product's shape
depends on what else is being written, and a text is the same, bit for bit,
alone and in company: on a CPU another number of rows is another kernel, which
sums in another order. Attention reads a cache block by block up to where the
longest row ends (attend.slotwise), with the same bits whatever that is.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import InputError
from gpt_jax.inference import generation, pages
from gpt_jax.inference.drawing import (
  NUM_LIKELIEST,
  Drawn,
  Settings,
  draw,
  init_draws,
  log_probs,
)
from gpt_jax.inference.generation import Sampling
from gpt_jax.models import Model
from gpt_jax.models import cache as cache_lib
from gpt_jax.models.attend import SLOTS

# Tokens of a prompt that are read at once. A chunk takes about as long as a
# step of eight rows, so that who is being answered waits at most twice as long
# for a token (docs/serving.md).
CHUNK = pages.PAGE
# Blocks of slots that a step reads one after the other, at most: each is a part
# of the program in every layer.
MAX_BLOCKS = 8


class State(struct.PyTreeNode):
  """What stays on the devices from step to step.

  Attributes:
    cache: from Model.init_cache.
    logits_RV: of each row's next token.
    counts_RV: int32, how often a row has drawn each token.
    bias_RV: what is added to its logits.
  """

  cache: Any
  logits_RV: jax.Array
  counts_RV: jax.Array
  bias_RV: jax.Array


@functools.partial(
  jax.jit, static_argnames=("model", "vocab_size"), donate_argnames="state"
)
def _step(
  params, state, lengths_R, draws, mask_RW, drafts_RK, *, model, vocab_size
):
  """Returns (state, Drawn): draws a token of each row, and reads it.

  With it the drafts after it are read, and the token after each is drawn. The
  row goes on behind the first draft that is not what was drawn: its keys and
  values are written over.

  Args:
    drafts_RK: what may come after the token; -1 for nothing.
  """
  (R, K), E = drafts_RK.shape, min(NUM_LIKELIEST, vocab_size)
  rows_R, bias_RV = jnp.arange(R), state.bias_RV

  def draw_at(t: int, logits_RV, counts_RV, mask_RW):
    now = draws.replace(made_R=draws.made_R + t)
    ids_R = draw(logits_RV, counts_RV, bias_RV, now, mask_RW, vocab_size)
    chances = jax.lax.cond(
      jnp.any(draws.has_log_probs_R),
      lambda: log_probs(logits_RV, ids_R, vocab_size),
      lambda: (
        jnp.zeros(R),
        jnp.zeros((R, E), jnp.int32),
        jnp.zeros((R, E)),
      ),
    )
    return ids_R, chances

  ids_R, chances = draw_at(0, state.logits_RV, state.counts_RV, mask_RW)
  found, read_R = [(ids_R, *chances)], jnp.maximum(ids_R, 0)
  counts_RV = state.counts_RV.at[rows_R, read_R].add(1)
  tokens_RT = jnp.concatenate(
    [read_R[:, None], jnp.maximum(drafts_RK, 0)], axis=1
  )
  logits_RTV, cache = model.apply_cached(
    params,
    tokens_RT,
    state.cache,
    lengths_R,
    filled=jnp.max(lengths_R) + 1 + K,
  )
  is_on_R, next_R = jnp.ones(R, bool), jnp.zeros(R, jnp.int32)
  num_R = jnp.ones(R, jnp.int32)
  for t in range(1, K + 2 if K else 1):
    any_RW = jnp.full_like(mask_RW, 2**32 - 1)
    ids_R, chances = draw_at(t, logits_RTV[:, t - 1], counts_RV, any_RW)
    next_R = jnp.where(is_on_R, ids_R, next_R)
    if t > K:
      break
    is_on_R &= ids_R == drafts_RK[:, t - 1]
    num_R += is_on_R
    read_R = jnp.maximum(ids_R, 0)
    counts_RV = counts_RV.at[rows_R, read_R].add(is_on_R)
    found.append((ids_R, *chances))
  logits_RV = logits_RTV[rows_R, num_R - 1]
  ids, *chances = (jnp.stack(each, axis=1) for each in zip(*found, strict=True))
  state = State(cache, logits_RV, counts_RV, bias_RV)
  return state, (ids, num_R, next_R, *chances)


@functools.partial(
  jax.jit, static_argnames=("model", "is_last"), donate_argnames="cache"
)
def _read(params, cache, tokens_1C, start_1, last_1, *, model, is_last):
  """Returns (cache, logits_1V of token last_1 of the chunk).

  Only the last chunk of a prompt has logits: they take a third of its time.
  """
  logits_11V, cache = model.apply_cached(
    params,
    tokens_1C,
    cache,
    start_1,
    last_1,
    filled=start_1[0] + tokens_1C.shape[1],
  )
  return cache, logits_11V[:, 0] if is_last else None


@functools.partial(jax.jit, static_argnames=("model", "num_slots"))
def _empty(model, num_slots):
  """Returns the cache of a prompt.

  One program: array by array, it took a third of the time of 64 tokens.
  """
  return model.init_cache(1, num_slots)


@functools.partial(jax.jit, donate_argnames="state")
def _join(state, row, cache, logits_1V, bias_V):
  """Returns the state with a prompt that has been read in a row."""
  put = lambda whole, own: jax.lax.dynamic_update_slice(
    whole, own.astype(whole.dtype), (row, *(0,) * (whole.ndim - 1))
  )

  def put_slots(whole, own):
    if not isinstance(whole, list):
      return put(whole, own)
    size, blocks = whole[0].shape[2], list(whole)
    for i in range(-(-own.shape[2] // size)):  # the prompt may end before
      part = own[:, :, i * size : (i + 1) * size]
      blocks[i] = put(blocks[i], part)
    return blocks

  return State(
    [
      tuple(map(put_slots, whole, own))
      for whole, own in zip(state.cache, cache, strict=True)
    ],
    put(state.logits_RV, logits_1V),
    put(state.counts_RV, jnp.zeros_like(state.counts_RV[:1])),
    put(state.bias_RV, bias_V[None]),
  )


class Prompt:
  """A prompt that is being read, a chunk at a time.

  Attributes:
    ids: int32.
    num_read: how many of them are in the cache.
    cache: of one row.
    logits_1V: of the token after the last, once all are read.
    own: the same prompt as a drafter reads it, or None.
  """

  def __init__(self, ids: np.ndarray, cache: Any, num_read: int = 0):
    self.ids, self.cache, self.num_read = ids, cache, num_read
    self.logits_1V: jax.Array | None = None
    self.own: Prompt | None = None

  @property
  def is_read(self) -> bool:
    return self.num_read == len(self.ids)


class Rows:
  """The rows of a compiled step, and the prompts that will join them.

  Call it in one thread, within jax.set_mesh of the run's mesh.

  Args:
    model: of the run.
    params: stacked, as trained; a second copy is held.
    num_rows: computed at every step.
    vocab_size: ids from here on are never drawn.
    num_drafts: K, guesses that a step tries in each row.
    num_pages: of pages.PAGE tokens, that are stored of prompts; those of models
      with sliding windows are not.
    drafter: drafter.Drafter, which makes the drafts; None: the caller does.

  Raises:
    InputError: the model does not continue texts token by token.
  """

  def __init__(
    self,
    model: Model,
    params: Any,
    num_rows: int,
    vocab_size: int,
    num_pages: int = 0,
    num_drafts: int = 0,
    drafter: Any = None,
  ):
    c = model.config
    if not model.can_generate or config_lib.has_source(c):
      raise InputError(
        "the run's model does not continue a text, and rows are texts that are "
        "continued; take a decoder that was trained to predict the next token"
      )
    self.model, self.vocab_size, self.num_rows = model, vocab_size, num_rows
    self.params, self.drafter = generation.prepare(params, model), drafter
    # A row's last drafts need slots too.
    self.max_len, self.num_drafts = c.max_len - num_drafts, num_drafts
    is_ring = "local" in config_lib.layer_kinds(c)
    if num_drafts and (is_ring or self.max_len < 1):
      raise InputError(
        f"{num_drafts} drafts are asked for; they need a model without sliding "
        f"windows, found {config_lib.layer_kinds(c)}, of more positions than "
        f"that, found {c.max_len}"
      )
    # Where a token lies in a ring is by the length of the ring.
    self._least = self._most if is_ring else SLOTS
    has_pages = num_pages > 0 and not is_ring
    self.pages = pages.Pages(model, num_pages) if has_pages else None
    V = self._padded_vocab()
    zeros = lambda dtype: jnp.zeros((num_rows, V), dtype)
    block = -(-self._most // (MAX_BLOCKS * SLOTS)) * SLOTS
    self.state = State(
      cache_lib.split(model.init_cache(num_rows, self._most), block),
      zeros(jnp.float32),
      zeros(jnp.int32),
      zeros(jnp.float32),
    )
    self.lengths_R = np.zeros(num_rows, np.int32)
    self.is_held_R = np.zeros(num_rows, bool)
    self._no_bias_V = jnp.zeros(V)
    self.mask_RW = np.full((num_rows, -(-V // 32)), 2**32 - 1, np.uint32)
    self.draws = init_draws(num_rows)

  @property
  def _most(self) -> int:
    return -(-self.model.config.max_len // SLOTS) * SLOTS

  def _padded_vocab(self) -> int:
    """Returns V of the logits, which may be above the config's."""
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    start = jax.ShapeDtypeStruct((1,), jnp.int32)
    cache = jax.eval_shape(lambda: self.model.init_cache(1, SLOTS))
    found, _ = jax.eval_shape(
      self.model.apply_cached, self.params, one, cache, start
    )
    return found.shape[-1]

  def _slots_for(self, length: int) -> int:
    """Returns the slots of a prompt's cache, of few lengths."""
    size = self._least
    while size < length:
      size *= 2
    return min(size, self._most)

  def start(self, ids: np.ndarray) -> Prompt:
    """Returns a prompt of which nothing is read but what is stored."""
    cache, num_read = _empty(self.model, self._slots_for(len(ids))), 0
    if self.pages is not None:
      cache, num_read = self.pages.load(cache, ids)
    prompt = Prompt(np.asarray(ids, np.int32), cache, num_read)
    if self.drafter is not None:
      prompt.own = self.drafter.rows.start(ids)
    return prompt

  def read(self, prompt: Prompt) -> None:
    """Reads the next chunk of a prompt."""
    start = prompt.num_read
    own = prompt.ids[start : start + CHUNK]
    tokens_1C = np.zeros((1, CHUNK), np.int32)
    tokens_1C[0, : len(own)] = own
    prompt.cache, prompt.logits_1V = _read(
      self.params,
      prompt.cache,
      tokens_1C,
      np.array([start], np.int32),
      np.array([len(own) - 1], np.int32),
      model=self.model,
      is_last=start + len(own) == len(prompt.ids),
    )
    prompt.num_read += len(own)
    if self.drafter is not None:
      self.drafter.read(prompt.own, prompt.num_read)
    if prompt.is_read and self.pages is not None:
      self.pages.store(prompt.cache, prompt.ids)

  def join(self, row: int, prompt: Prompt, settings: Settings) -> None:
    """Lets a prompt that is read be continued in a free row."""
    assert prompt.is_read and not self.is_held_R[row]
    self.is_held_R[row], self.lengths_R[row] = True, len(prompt.ids)
    bias_V = self._no_bias_V
    if settings.bias:
      ids = np.array(list(settings.bias), np.int32)
      values = np.array(list(settings.bias.values()), np.float32)
      bias_V = bias_V.at[ids].set(values)
    self.state = _join(
      self.state, np.int32(row), prompt.cache, prompt.logits_1V, bias_V
    )
    self.draws.put(row, settings)
    if self.drafter is not None:
      self.drafter.join(row, prompt.own, settings)

  def leave(self, row: int) -> None:
    """Frees a row."""
    self.is_held_R[row], self.lengths_R[row] = False, 0
    self.draws.temperature_R[row] = 0
    self.draws.has_log_probs_R[row] = False
    self.mask_RW[row] = 2**32 - 1
    if self.drafter is not None:
      self.drafter.rows.leave(row)

  def step(self, drafts: dict[int, list[int]] | None = None) -> Drawn:
    """Draws a token of each row; those of free rows mean nothing.

    A row that holds max_len tokens draws one more, and must then leave.

    Args:
      drafts: {row: guesses of what comes after Drawn.next_R}.
    """
    return self.end(self.begin(drafts))

  def begin(self, drafts: dict[int, list[int]] | None = None) -> tuple:
    """Starts a step, as `step`; returns what `end` waits for.

    Without drafts the next one may begin before this one's end, while rows join
    and leave: what was drawn for a row that has left meanwhile means nothing.
    """
    drafts_RK = np.full((self.num_rows, self.num_drafts), -1, np.int32)
    for row, guesses in (drafts or {}).items():
      drafts_RK[row, : len(guesses)] = guesses[: self.num_drafts]
    # Copies: the step may read them after they have changed here.
    now = jax.tree.map(np.copy, (self.lengths_R, self.draws, self.mask_RW))
    if self.drafter is not None:
      # What comes first follows from the prompt, and is not known yet.
      is_on_R = self.is_held_R & (self.draws.made_R > 0)
      is_on_R &= (self.mask_RW == 2**32 - 1).all(1)
      drafts_RK = self.drafter.guess(*now[:2], is_on_R)
    self.state, drawn = _step(
      self.params,
      self.state,
      *now,
      drafts_RK,
      model=self.model,
      vocab_size=self.vocab_size,
    )
    if not self.num_drafts:
      self._advance(np.int32(1))
    return drawn

  def end(self, drawn: tuple) -> Drawn:
    """Waits for a step that has begun, and returns what it has drawn."""
    found = Drawn(*map(sharding.fetch, drawn))
    if self.num_drafts:
      self._advance(found.num_R)
    if self.drafter is not None:
      self.drafter.follow(found)
    return found

  def _advance(self, num_R) -> None:
    made_R = np.where(self.is_held_R, num_R, 0)
    self.draws.made_R[:] += made_R
    self.lengths_R += made_R


def generate(
  model: Model,
  params: Any,
  prompts: Sequence[Sequence[int] | np.ndarray],
  num_tokens: int,
  sampling: Sampling,
  seed: int,
  vocab_size: int,
  num_rows: int,
) -> Iterator[np.ndarray]:
  """Yields ids_B1 of each prompt's next token, num_tokens times.

  The texts are those of a server of as many rows, bit for bit.

  Args: as generation.generate's.

  Raises:
    InputError: there are more prompts than rows, or the model has not the
      positions for a prompt and its continuation.
  """
  generation.check_prompts(prompts, model)
  if len(prompts) > num_rows:
    raise InputError(
      f"there are {len(prompts)} prompts and {num_rows} rows; give no more "
      "prompts than rows"
    )
  longest = max(map(len, prompts))
  if longest + num_tokens > model.config.max_len + 1:
    raise InputError(
      f"a prompt of {longest} tokens and {num_tokens} after it are more than "
      f"the model's {model.config.max_len} positions; shorten either"
    )
  rows = Rows(model, params, num_rows, vocab_size)
  for row, ids in enumerate(prompts):
    prompt = rows.start(np.asarray(ids, np.int32))
    while not prompt.is_read:
      rows.read(prompt)
    rows.join(row, prompt, Settings(sampling, seed, row))
  for _ in range(num_tokens):
    ids_B1 = rows.step().ids_RT[: len(prompts)]
    generation.check_finite(bool((ids_B1 >= 0).all()))
    yield ids_B1
