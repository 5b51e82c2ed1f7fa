"""Beam search: the likeliest continuations, in one compiled loop.

A prompt has W beams, the partial hypotheses that are continued at each step
(Sutskever et al. 2014). The KV cache has a row for each. At each step it is
reordered by gathering the rows of the beams' parents; this works for every
array of a cache, because all have their rows in the first dimension.

Design choice: plain beam search can return a hypothesis that scores below
greedy decoding's, because the greedy one may leave the beam early. Here the
greedy hypothesis is followed to its end in a row of its own, so that the best
result never scores below it.

Dimensions: B prompts, W beams, R rows of the cache for each prompt, C candidate
tokens of a row, M candidates of a prompt, X = M + 1 candidates with the greedy
one, T tokens, F hypotheses returned.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import InputError
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.inference import generation, texts
from gpt_jax.machine import processes
from gpt_jax.models import Model

# Never the id of a token.
NO_SEPARATOR = -1


@dataclasses.dataclass(frozen=True)
class Beam:
  """How hypotheses are found and ranked.

  A hypothesis scores its log-probability / ((5 + tokens) / 6)^length_penalty
  (Wu et al. 2016, equation 14, without coverage).

  Attributes:
    num_beams: W; 1 is greedy decoding.
    length_penalty: 0 ranks by log-probability; larger values favour longer
      hypotheses.
    num_best: number of hypotheses that are returned, W at most.
    early_stopping: end when W hypotheses have ended and the greedy one can no
      longer be the best. Otherwise the search goes on until no unfinished
      hypothesis can enter the num_best any more.
  """

  num_beams: int = 4
  length_penalty: float = 0.0
  num_best: int = 1
  early_stopping: bool = False

  def __post_init__(self):
    if not 1 <= self.num_beams <= 4096:
      raise InputError(
        f"the number of beams is {self.num_beams}; it must be 1 or more, at "
        "most 4096"
      )
    if not 1 <= self.num_best <= self.num_beams:
      raise InputError(
        f"num_best is {self.num_best} and there are {self.num_beams} beams; it "
        "must be from 1 to the number of beams"
      )
    if not 0 <= self.length_penalty < math.inf:
      raise InputError(
        f"length_penalty is {self.length_penalty}; it must be finite and 0 or "
        "more"
      )

  def penalty(self, num_tokens):
    """Returns the divisor of a hypothesis's log-probability."""
    return ((5 + num_tokens) / 6) ** self.length_penalty


@dataclasses.dataclass(frozen=True)
class Hypothesis:
  """A continuation of a prompt.

  Attributes:
    ids: int32; the last is the separator if has_ended.
    log_prob: sum of the log-probabilities of ids, in nats.
    score: log_prob over the length penalty.
    has_ended: whether a separator ended it; otherwise it has all num_tokens.
  """

  ids: np.ndarray
  log_prob: float
  score: float
  has_ended: bool


class Search(NamedTuple):
  """The loop's state beside the cache. Sums are of log-probabilities.

  Attributes:
    sums_BR: sum of each row's hypothesis; -inf where the row has none.
    ids_BRT: tokens of each row's hypothesis; the first `made` are valid.
    parents_BR: the row that each hypothesis extended at the last step.
    greedy_B: the row of the greedy hypothesis; R if that has ended.
    best_BF, best_sums_BF, best_lengths_BF, best_ids_BFT: score, sum, length
      and tokens of the best hypotheses that have ended, best first; -inf where
      there are fewer.
    num_ended_B: number of hypotheses that have ended.
    made: number of tokens of each unfinished hypothesis.
    is_finite: whether the logits of every hypothesis have been finite.
  """

  sums_BR: jax.Array
  ids_BRT: jax.Array
  parents_BR: jax.Array
  greedy_B: jax.Array
  best_BF: jax.Array
  best_sums_BF: jax.Array
  best_lengths_BF: jax.Array
  best_ids_BFT: jax.Array
  num_ended_B: jax.Array
  made: jax.Array
  is_finite: jax.Array


@dataclasses.dataclass(frozen=True)
class _Settings:
  """Static arguments of a search."""

  beam: Beam
  num_tokens: int
  separator_id: int
  vocab_size: int

  @property
  def num_rows(self) -> int:
    """R: W, and one more for the greedy hypothesis where W is above 1."""
    return self.beam.num_beams + (self.beam.num_beams > 1)


def _empty(num_prompts: int, settings: _Settings) -> Search:
  B, R, T = num_prompts, settings.num_rows, settings.num_tokens
  F = settings.beam.num_best
  return Search(
    sums_BR=jnp.full((B, R), -jnp.inf).at[:, 0].set(0.0),
    ids_BRT=jnp.zeros((B, R, T), jnp.int32),
    parents_BR=jnp.zeros((B, R), jnp.int32),
    greedy_B=jnp.zeros(B, jnp.int32),
    best_BF=jnp.full((B, F), -jnp.inf),
    best_sums_BF=jnp.full((B, F), -jnp.inf),
    best_lengths_BF=jnp.zeros((B, F), jnp.int32),
    best_ids_BFT=jnp.zeros((B, F, T), jnp.int32),
    num_ended_B=jnp.zeros(B, jnp.int32),
    made=jnp.int32(0),
    is_finite=jnp.bool_(True),
  )


class _Candidates(NamedTuple):
  """Hypotheses one token longer; the last of each prompt is the greedy one."""

  sums_BX: jax.Array
  parents_BX: jax.Array
  tokens_BX: jax.Array
  # Whether the greedy hypothesis is alive, and which of the others it equals.
  has_greedy_B1: jax.Array
  is_greedy_BM: jax.Array


def _pick(x, index):
  return jnp.take_along_axis(x, index, axis=1)


def _candidates(search: Search, logits_BRV, settings: _Settings):
  """Returns _Candidates: the beams' best 2W, best first, and the greedy one.

  Each beam ends in at most one of them, so at least W of the 2W go on.
  """
  W, (B, R, V) = settings.beam.num_beams, logits_BRV.shape
  C = min(2 * W, settings.vocab_size)
  is_token_V = jnp.arange(V) < settings.vocab_size
  # Ranked by logits, as greedy decoding does: rounded sums may tie.
  _, tokens_BRC = jax.lax.top_k(jnp.where(is_token_V, logits_BRV, -jnp.inf), C)
  log_p_BRV = jax.nn.log_softmax(logits_BRV)
  sums_BRC = jnp.take_along_axis(log_p_BRV, tokens_BRC, axis=2)
  sums_BRC += search.sums_BR[..., None]
  flat = lambda x_BRC: x_BRC[:, :W].reshape(B, -1)
  sums_BM, places_BM = jax.lax.top_k(flat(sums_BRC), min(2 * W, W * C))
  parents_BM, tokens_BM = places_BM // C, _pick(flat(tokens_BRC), places_BM)

  has_greedy_B1 = search.greedy_B[:, None] < R
  at_B1 = jnp.minimum(search.greedy_B[:, None], R - 1)
  sum_B1 = jnp.where(has_greedy_B1, _pick(sums_BRC[..., 0], at_B1), -jnp.inf)
  token_B1 = _pick(tokens_BRC[..., 0], at_B1)
  is_greedy_BM = (parents_BM == at_B1) & (tokens_BM == token_B1)
  join = lambda x_BM, x_B1: jnp.concatenate([x_BM, x_B1], axis=1)
  return _Candidates(
    join(sums_BM, sum_B1),
    join(parents_BM, at_B1),
    join(tokens_BM, token_B1),
    has_greedy_B1,
    is_greedy_BM & has_greedy_B1,
  )


def _select(search: Search, logits_BRV, settings: _Settings) -> Search:
  """Returns the search one token later."""
  beam, W, R = settings.beam, settings.beam.num_beams, settings.num_rows
  is_alive_BR = search.sums_BR > -jnp.inf
  is_finite_BR = jnp.isfinite(logits_BRV.max(-1)) | ~is_alive_BR
  found = _candidates(search, logits_BRV, settings)
  sums_BX, is_greedy_BM = found.sums_BX, found.is_greedy_BM
  B, M = is_greedy_BM.shape
  made = search.made + 1
  ids_BXT = _pick(search.ids_BRT, found.parents_BX[..., None])
  ids_BXT = ids_BXT.at[:, :, search.made].set(found.tokens_BX)

  # What ends here: among the W best candidates, or greedy.
  join = lambda old, new: jnp.concatenate([old, new], axis=1)
  is_separator_BX = found.tokens_BX == settings.separator_id
  is_first_BM = jnp.broadcast_to(jnp.arange(M)[None] < W, (B, M))
  is_new_B1 = ~is_greedy_BM[:, :W].any(-1, keepdims=True)
  is_end_BX = is_separator_BX & join(is_first_BM, is_new_B1)
  end_sums_BX = jnp.where(is_end_BX, sums_BX, -jnp.inf)
  scores = join(search.best_BF, end_sums_BX / beam.penalty(made))
  best_BF, places_BF = jax.lax.top_k(scores, beam.num_best)
  lengths = join(search.best_lengths_BF, jnp.full((B, M + 1), made))
  ids = join(search.best_ids_BFT, ids_BXT)

  # What goes on: the W best, and greedy where it is not one of them.
  on_BX = jnp.where(is_separator_BX, -jnp.inf, sums_BX)
  sums_BR, picks_BR = jax.lax.top_k(on_BX[:, :M], W)
  is_greedy_BW = _pick(is_greedy_BM, picks_BR) & (sums_BR > -jnp.inf)
  is_inside_B1 = is_greedy_BW.any(-1, keepdims=True)
  if R > W:
    own_B1 = jnp.where(is_inside_B1, -jnp.inf, on_BX[:, M:])
    sums_BR = join(sums_BR, own_B1)
    picks_BR = join(picks_BR, jnp.full((B, 1), M, jnp.int32))
  has_greedy_B1 = found.has_greedy_B1 & ~is_separator_BX[:, M:]
  at_B1 = jnp.where(is_inside_B1, is_greedy_BW.argmax(-1, keepdims=True), W)
  search = Search(
    sums_BR=sums_BR,
    ids_BRT=_pick(ids_BXT, picks_BR[..., None]),
    parents_BR=_pick(found.parents_BX, picks_BR),
    greedy_B=jnp.where(has_greedy_B1, at_B1, R)[:, 0].astype(jnp.int32),
    best_BF=best_BF,
    best_sums_BF=_pick(join(search.best_sums_BF, end_sums_BX), places_BF),
    best_lengths_BF=_pick(lengths, places_BF),
    best_ids_BFT=_pick(ids, places_BF[..., None]),
    num_ended_B=search.num_ended_B + (end_sums_BX > -jnp.inf).sum(-1),
    made=made,
    is_finite=search.is_finite & is_finite_BR.all(),
  )
  is_done_B = _is_done(search, settings)
  return search._replace(
    sums_BR=jnp.where(is_done_B[:, None], -jnp.inf, search.sums_BR)
  )


def _is_done(search: Search, settings: _Settings) -> jax.Array:
  """Returns for each prompt whether no unfinished hypothesis matters any more.

  A sum only falls, and the longest hypothesis has the largest divisor, so no
  descendant of a row's hypothesis can score more than reach_BR.
  """
  beam, R = settings.beam, settings.num_rows
  reach_BR = search.sums_BR / beam.penalty(settings.num_tokens)
  is_done_B = search.best_BF[:, -1] >= reach_BR.max(-1)
  if beam.early_stopping or beam.num_beams == 1:
    is_greedy_BR = search.greedy_B[:, None] == jnp.arange(R)[None]
    reach_B = jnp.where(is_greedy_BR, reach_BR, -jnp.inf).max(-1)
    has_enough_B = search.num_ended_B >= beam.num_beams
    is_done_B |= has_enough_B & (search.best_BF[:, 0] >= reach_B)
  return is_done_B


@functools.partial(jax.jit, static_argnames=("settings",))
def _begin(cache, logits_BV, settings: _Settings):
  """Returns (cache with R rows per prompt, the search at one token)."""
  R = settings.num_rows
  cache = jax.tree.map(lambda x: jnp.repeat(x, R, axis=0), cache)
  logits_BRV = jnp.repeat(logits_BV[:, None], R, axis=1)
  search = _empty(logits_BV.shape[0], settings)
  return cache, _select(search, logits_BRV, settings)


@functools.partial(
  jax.jit, static_argnames=("model", "settings"), donate_argnames=("cache",)
)
def _advance(
  params, cache, search, lengths_B, stop, *, model, settings: _Settings
):
  """Returns (cache, search) at `stop` tokens, or once all hypotheses ended."""
  B, R, _ = search.ids_BRT.shape
  starts = jnp.repeat(lengths_B, R)
  first_B1 = R * jnp.arange(B)[:, None]

  def is_going(carry):
    search = carry[1]
    return (search.made < stop) & (search.sums_BR > -jnp.inf).any()

  def one(carry):
    cache, search = carry
    rows = (first_B1 + search.parents_BR).reshape(-1)
    cache = jax.tree.map(lambda x: x[rows], cache)
    last = search.made - 1
    tokens = jax.lax.dynamic_index_in_dim(search.ids_BRT, last, 2)
    logits, cache = model.apply_cached(
      params, tokens.reshape(B * R, 1), cache, starts + last
    )
    return cache, _select(search, logits.reshape(B, R, -1), settings)

  return jax.lax.while_loop(is_going, one, (cache, search))


def search(
  model: Model,
  params: Any,
  prompts: Sequence[Sequence[int] | np.ndarray],
  num_tokens: int,
  beam: Beam,
  separator_id: int | None = None,
  vocab_size: int | None = None,
  is_prefix: bool = False,
  start_ids: Sequence[int] = (),
) -> list[list[Hypothesis]]:
  """Returns the num_best hypotheses of each prompt, best first.

  Args:
    params: stacked, as trained.
    prompts: the ids of each prompt, none empty.
    num_tokens: the most tokens of a hypothesis.
    separator_id: the token between documents, which ends a hypothesis; its
      probability counts. None: nothing ends before num_tokens.
    vocab_size, is_prefix, start_ids: as in generation.generate.

  Raises:
    InputError: the model cannot continue these prompts, a prompt and
      num_tokens need more positions than it has, or logits are not finite.
  """
  generation.check_prompts(prompts, model)
  sources, rows = generation.split_prompts(model, prompts, start_ids)
  check_room(rows, num_tokens, model)
  separator_id = NO_SEPARATOR if separator_id is None else separator_id
  vocab_size = vocab_size or config_lib.vocab_size(model.config)
  settings = _Settings(beam, num_tokens, separator_id, vocab_size)
  lengths = np.array([len(r) for r in rows], np.int32)
  limit = model.config.max_len
  num_slots = min(generation.round_up(int(np.max(lengths)) + num_tokens), limit)
  prepared = generation.prepare(params, model)
  cache, logits_BV, lengths = generation.read_prompts(
    model, prepared, rows, num_slots, lengths if is_prefix else None, sources
  )
  cache, found = _begin(cache, logits_BV, settings)
  made = 1
  # In chunks, so that the watchdog sees progress.
  while made < num_tokens:
    made = min(made + generation.CHUNK, num_tokens)
    cache, found = _advance(
      prepared, cache, found, lengths, made, model=model, settings=settings
    )
    processes.mark()
    generation.check_finite(bool(sharding.fetch(found.is_finite)))
    if int(sharding.fetch(found.made)) < made:
      break
  generation.check_finite(bool(sharding.fetch(found.is_finite)))
  return _finalists(jax.tree.map(sharding.fetch, found), settings)


def search_text(
  model: Model,
  params: Any,
  tokenizer: Tokenizer,
  prompts: Sequence[str],
  num_tokens: int,
  beam: Beam,
  is_prefix: bool = False,
) -> list[list[tuple[str, Hypothesis]]]:
  """Returns what search finds, each with the text that continues the prompt.

  The tokenizer's separator ends a hypothesis and is not in its text.
  """
  ids = [tokenizer.encode(prompt) for prompt in prompts]
  vocab_size = min(config_lib.vocab_size(model.config), tokenizer.vocab_size)
  separator_id = tokenizer.separator_id
  starts = texts.start_ids_of(tokenizer, model.config)
  found = search(
    model,
    params,
    ids,
    num_tokens,
    beam,
    separator_id,
    vocab_size,
    is_prefix,
    starts,
  )
  text = lambda prompt, h: texts.cut_text(prompt, h.ids.tolist(), tokenizer)
  return [
    [(text([] if starts else prompt, h)[0], h) for h in own]
    for prompt, own in zip(ids, found, strict=True)
  ]


def check_room(prompts, num_tokens: int, model: Model) -> None:
  """Raises InputError unless num_tokens fit after each prompt."""
  longest, limit = max(map(len, prompts)), model.config.max_len
  # The last token is drawn, but never read.
  most = limit - longest + 1
  if not 1 <= num_tokens <= most:
    raise InputError(
      f"num_tokens is {num_tokens} and the longest prompt has {longest} tokens;"
      f" with the model's {limit} positions, beam search makes from 1 to "
      f"{most} tokens of it"
    )


def _finalists(found: Search, settings: _Settings) -> list[list[Hypothesis]]:
  """Returns the best ended and unfinished hypotheses of each prompt."""
  T, beam = settings.num_tokens, settings.beam
  results = []
  for b in range(len(found.sums_BR)):
    ended = zip(
      found.best_ids_BFT[b],
      found.best_lengths_BF[b].tolist(),
      found.best_sums_BF[b].tolist(),
      found.best_BF[b].tolist(),
      strict=True,
    )
    each = [
      Hypothesis(np.asarray(ids[:length]), sum_, score, True)
      for ids, length, sum_, score in ended
    ]
    scores_R = found.sums_BR[b] / np.float32(beam.penalty(T))
    sums = found.sums_BR[b].tolist()
    alive = zip(found.ids_BRT[b], sums, scores_R.tolist(), strict=True)
    each += [Hypothesis(np.asarray(ids), *one, False) for ids, *one in alive]
    each = [h for h in each if h.log_prob > -math.inf]
    each.sort(key=lambda h: -h.score)
    results.append(each[: beam.num_best])
  return results
