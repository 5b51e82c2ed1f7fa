"""Continuous batching: rows join and leave a compiled decode step at any time.

Every step computes the same number of rows, whichever of them are in use, and
every prefill pass the same number of chunks (prefill.py). So no matmul's shape
depends on the other requests, and a text is the same, bit for bit, alone or in
a full batch: on a CPU another batch size selects another kernel, which sums in
another order. Attention reads a cache block by block up to the end of the
longest row (attend.slotwise), and where that is does not change the bits.
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
from gpt_jax.inference.prefill import Prefill, Prompt, chunk_for, have_same_bits
from gpt_jax.models import Model
from gpt_jax.models import cache as cache_lib
from gpt_jax.models.attend import SLOTS

# Decode rows per prompt of a prefill pass. One prompt's chunk takes about as
# long as a decode step of this many rows, so that a client being answered waits
# at most twice as long for a token (docs/serving.md). Beyond 8 prompts in a
# pass, the time per prompt no longer falls.
ROWS_PER_PROMPT, MAX_PROMPTS = 4, 8
# The narrow prefill reads this many times fewer prompts in a pass. It is used
# while texts are being generated, or where few prompts wait.
NARROWER = 4
# Most blocks of slots into which a row's cache is divided. A step reads them in
# turn, and each block is a part of the program in every layer.
MAX_BLOCKS = 8


class State(struct.PyTreeNode):
  """The arrays that stay on the devices from step to step.

  Attributes:
    cache: from Model.init_cache, in blocks.
    next_R: int32, the token that each row drew last, which it reads next.
    logits_VR: the logits that next_R was drawn from.
    counts_RV: int32, how often each row has drawn each token.
    bias_RV: added to each row's logits.
  """

  cache: Any
  next_R: jax.Array
  logits_VR: jax.Array
  counts_RV: jax.Array
  bias_RV: jax.Array


@functools.partial(
  jax.jit, static_argnames=("model", "vocab_size"), donate_argnames="state"
)
def _step(
  params,
  state,
  lengths_R,
  draws,
  mask_RW,
  last_R,
  drafts_RK,
  *,
  model,
  vocab_size,
):
  """Decodes a token or more in each row; returns (state, fields of Drawn).

  A row reads the token that it drew in the last step, or if it has just joined,
  the last token of its prompt. Its drafts are read in the same pass, and a
  token is drawn after each. A draft is accepted if it is the token that is
  drawn in its place. The first that is not, and those after it, are dropped:
  the next step overwrites their keys and values.

  Args:
    last_R: the last token of each row's prompt.
    drafts_RK: guesses of the next tokens; -1 for none.
  """
  (R, K), E = drafts_RK.shape, min(NUM_LIKELIEST, vocab_size)
  rows_R, bias_RV = jnp.arange(R), state.bias_RV

  def draw_at(t: int, logits_VR, counts_RV, mask_RW):
    now = draws.replace(made_R=draws.made_R + t)
    ids_R = draw(logits_VR, counts_RV, bias_RV, now, mask_RW, vocab_size)
    chances = jax.lax.cond(
      jnp.any(draws.has_log_probs_R),
      lambda: log_probs(logits_VR.T, ids_R, vocab_size),
      lambda: (
        jnp.zeros(R),
        jnp.zeros((R, E), jnp.int32),
        jnp.zeros((R, E)),
      ),
    )
    return ids_R, chances

  next_R = jnp.where(draws.made_R == 0, last_R, state.next_R)
  tokens_RT = jnp.concatenate(
    [next_R[:, None], jnp.maximum(drafts_RK, 0)], axis=1
  )
  logits_RTV, cache = model.apply_cached(
    params,
    tokens_RT,
    state.cache,
    lengths_R,
    filled=jnp.max(lengths_R) + 1 + K,
  )
  is_on_R, num_R = jnp.ones(R, bool), jnp.zeros(R, jnp.int32)
  counts_RV, found = state.counts_RV, []
  for t in range(K + 1):
    # A row with a token mask has no drafts.
    now_RW = jnp.full_like(mask_RW, 2**32 - 1) if t else mask_RW
    ids_R, chances = draw_at(t, logits_RTV[:, t].T, counts_RV, now_RW)
    found.append((ids_R, *chances))
    next_R = jnp.where(is_on_R, jnp.maximum(ids_R, 0), next_R)
    counts_RV = counts_RV.at[rows_R, next_R].add(is_on_R)
    num_R += is_on_R
    if t < K:
      is_on_R &= ids_R == drafts_RK[:, t]
  # XLA fuses the transposition below into the unembedding matmul.
  last_RV = logits_RTV[rows_R, num_R - 1] if K else logits_RTV[:, 0]
  ids, *chances = (jnp.stack(each, axis=1) for each in zip(*found, strict=True))
  state = State(cache, next_R, last_RV.T, counts_RV, bias_RV)
  return state, (ids, num_R, *chances)


@functools.partial(jax.jit, donate_argnames="state")
def _join(state, row, cache, place, length, bias_V):
  """Returns the state with a prefilled prompt copied into a row.

  Args:
    cache, place: the prefill cache, and the prompt's row in it.
    length: number of the prompt's tokens there.
  """
  put = lambda whole, own: jax.lax.dynamic_update_slice(
    whole, own.astype(whole.dtype), (row, *(0,) * (whole.ndim - 1))
  )
  pick = lambda x_P: jax.lax.dynamic_slice_in_dim(x_P, place, 1)

  def put_slots(whole, own_PKSH):
    if not isinstance(whole, list):
      return put(whole, pick(own_PKSH))
    size, blocks = whole[0].shape[2], []

    def put_block(i: int, block):
      (_, K, S, H), first = block.shape, (place, 0, i * size, 0)
      return put(block, jax.lax.dynamic_slice(own_PKSH, first, (1, K, S, H)))

    for i, block in enumerate(whole):
      own = functools.partial(put_block, i)
      blocks.append(jax.lax.cond(length > i * size, own, lambda x: x, block))
    return blocks

  return State(
    [
      tuple(map(put_slots, whole, own))
      for whole, own in zip(state.cache, cache, strict=True)
    ],
    state.next_R,
    state.logits_VR,
    put(state.counts_RV, jnp.zeros_like(state.counts_RV[:1])),
    put(state.bias_RV, bias_V[None]),
  )


class Rows:
  """The rows of a compiled decode step, and the prompts that will join them.

  Call it in one thread, within jax.set_mesh of the run's mesh.

  Args:
    model: the run's model.
    params: stacked, as trained; a second copy is held.
    num_rows: number of rows that every step computes.
    vocab_size: ids from here on are never drawn.
    num_drafts: K, the number of drafts that a step checks in each row.
    num_pages: size of the prefix cache, in pages of pages.PAGE tokens; not used
      for models with sliding windows.
    drafter: drafter.Drafter, which makes the drafts; None: the caller does.

  Raises:
    InputError: the model does not continue texts token by token, or cannot take
      num_drafts.
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
    most = -(-c.max_len // SLOTS) * SLOTS
    has_pages = num_pages > 0 and not is_ring
    self.pages = pages.Pages(model, num_pages, most) if has_pages else None
    size = min(max(1, num_rows // ROWS_PER_PROMPT), MAX_PROMPTS)
    args = most, self.pages, chunk_for(num_rows)
    build = lambda size: Prefill(model, self.params, size, *args)
    self.prefill = build(size)
    self.narrow = build(max(1, size // NARROWER)) if size > 1 else None
    V = self._padded_vocab()
    zeros = lambda dtype: jnp.zeros((num_rows, V), dtype)
    block = -(-most // (MAX_BLOCKS * SLOTS)) * SLOTS
    self.state = State(
      cache_lib.split(model.init_cache(num_rows, most), block),
      jnp.zeros(num_rows, jnp.int32),
      zeros(jnp.float32).T,
      zeros(jnp.int32),
      zeros(jnp.float32),
    )
    self.lengths_R = np.zeros(num_rows, np.int32)
    self.is_held_R = np.zeros(num_rows, bool)
    self.mask_RW = np.full((num_rows, -(-V // 32)), 2**32 - 1, np.uint32)
    self.last_R = np.zeros(num_rows, np.int32)
    self.draws = init_draws(num_rows)

  def _padded_vocab(self) -> int:
    """Returns V of the logits, which padding may raise above the config's."""
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    start = jax.ShapeDtypeStruct((1,), jnp.int32)
    cache = jax.eval_shape(lambda: self.model.init_cache(1, SLOTS))
    found, _ = jax.eval_shape(
      self.model.apply_cached, self.params, one, cache, start
    )
    return found.shape[-1]

  @property
  def homes(self) -> list[Prefill]:
    """Returns the Prefills: the wide one, and the narrow one if it exists."""
    return [self.prefill] + ([] if self.narrow is None else [self.narrow])

  def warm_up(self) -> None:
    """Compiles all programs; call it while no row is in use.

    The narrow Prefill is dropped if it gives other bits than the wide one.
    """
    others = [] if self.drafter is None else self.drafter.rows.homes
    for home in [*self.homes, *others]:
      home.warm_up()
    for is_narrow in range(len(self.homes)):
      prompt = self.start(np.zeros(1, np.int32), bool(is_narrow))
      self.join(0, prompt, Settings(Sampling(temperature=0.0)))
      self.drop(prompt)
      self.step()
      self.leave(0)
    length = min(2 * self.prefill.chunk, self.max_len - 1) + 1
    if self.narrow is not None and not have_same_bits(*self.homes, length):
      self.narrow = None

  def start(
    self, ids: Sequence[int] | np.ndarray, is_narrow: bool = False
  ) -> Prompt:
    """Returns a new prompt, with the prefix that the prefix cache has of it.

    Args:
      is_narrow: whether self.narrow, which must not be None, will read it
        instead of self.prefill. That Prefill must have a free place (num_free);
        `drop` frees the place again.
    """
    home = self.narrow if is_narrow else self.prefill
    assert home is not None
    prompt = home.start(ids)
    if self.drafter is not None:
      prompt.own = self.drafter.rows.start(ids, is_narrow)
    return prompt

  def read(self, prompts: Sequence[Prompt]) -> None:
    """Prefills the next chunk of each prompt; none may be read to its end."""
    for home in dict.fromkeys(prompt.home for prompt in prompts):
      home.read([prompt for prompt in prompts if prompt.home is home])
    if self.drafter is not None:
      self.drafter.read(prompts)

  def drop(self, prompt: Prompt) -> None:
    """Frees a prompt's place in the prefill cache; no more rows can take it."""
    prompt.home.drop(prompt)
    if prompt.own is not None:
      prompt.own.home.drop(prompt.own)

  def join(self, row: int, prompt: Prompt, settings: Settings) -> None:
    """Copies a prefilled prompt into a free row, to be continued there.

    The next step reads the prompt's last token.
    """
    assert prompt.is_read and not self.is_held_R[row]
    self.is_held_R[row], self.lengths_R[row] = True, prompt.num_read
    self.last_R[row] = prompt.ids[-1]
    bias_V = np.zeros(self.state.bias_RV.shape[1], np.float32)
    bias_V[list(settings.bias)] = list(settings.bias.values())
    self.state = _join(
      self.state,
      np.int32(row),
      prompt.home.cache,
      np.int32(prompt.place),
      np.int32(prompt.num_read),
      bias_V,
    )
    self.draws.put(row, settings)
    if self.drafter is not None:
      self.drafter.join(row, prompt.own, settings)

  def leave(self, row: int) -> None:
    """Frees a row."""
    self.is_held_R[row], self.lengths_R[row] = False, 0
    self.draws.temperature_R[row] = 0
    self.draws.is_changed_R[row] = False
    self.draws.has_log_probs_R[row] = False
    self.mask_RW[row] = 2**32 - 1
    if self.drafter is not None:
      self.drafter.rows.leave(row)

  def step(self, drafts: dict[int, list[int]] | None = None) -> Drawn:
    """Runs a decode step; what it draws for free rows means nothing.

    A row that holds max_len tokens after it must leave.

    Args:
      drafts: {row: guesses of its next tokens}.
    """
    return self.end(self.begin(drafts))

  def begin(self, drafts: dict[int, list[int]] | None = None) -> tuple:
    """Starts a step and returns at once, with the argument of `end`.

    Without drafts, the next step may begin before this one ends, and rows may
    join and leave in between. What is drawn for a row that has left means
    nothing.
    """
    drafts_RK = np.full((self.num_rows, self.num_drafts), -1, np.int32)
    for row, guesses in (drafts or {}).items():
      drafts_RK[row, : len(guesses)] = guesses[: self.num_drafts]
    # Copies: the step runs asynchronously, and these change in the meantime.
    now = jax.tree.map(
      np.copy, (self.lengths_R, self.draws, self.mask_RW, self.last_R)
    )
    if self.drafter is not None:
      # The drafter reads the last two tokens, and a row may have only one.
      is_on_R = self.is_held_R & (self.lengths_R > 0)
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

  The texts are those of a server of num_rows rows, bit for bit.

  Args: as in generation.generate; num_rows: as in Rows.

  Raises:
    InputError: there are more prompts than rows, or a prompt and num_tokens
      need more positions than the model has.
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
  size = rows.prefill.num_places
  for first in range(0, len(prompts), size):
    own = [rows.start(ids) for ids in prompts[first : first + size]]
    while unread := [prompt for prompt in own if not prompt.is_read]:
      rows.read(unread)
    for row, prompt in enumerate(own, first):
      rows.join(row, prompt, Settings(sampling, seed, row))
      rows.drop(prompt)
  for _ in range(num_tokens):
    ids_B1 = rows.step().ids_RT[: len(prompts)]
    generation.check_finite(bool((ids_B1 >= 0).all()))
    yield ids_B1
