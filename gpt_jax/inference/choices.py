"""Choices: log-probabilities of several given texts after a prompt.

This classifies without a classification head. The prompt is prefilled once, and
all choices are then scored in one batch, over copies of its KV cache.

Dimensions: B prompts, A choices per prompt, T tokens of the longest choice.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import sharding
from gpt_jax.config import InputError
from gpt_jax.data.objectives import ANSWERED
from gpt_jax.data.tokenizers.protocol import Tokenizer, ids_behind
from gpt_jax.inference import generation, texts
from gpt_jax.models import Model


@dataclasses.dataclass(frozen=True)
class Choice:
  """A possible continuation of a prompt.

  Attributes:
    text: the continuation.
    log_prob: sum of the log-probabilities of its tokens, in nats.
    num_tokens: number of its tokens, 1 or more.
  """

  text: str
  log_prob: float
  num_tokens: int


def rank(choices: Sequence[Choice], per_token: bool = False) -> list[Choice]:
  """Returns choices, likeliest first; ties stay in the order given.

  Args:
    per_token: compare mean log-probabilities per token, which do not favour
      short choices.
  """
  size = lambda c: c.num_tokens if per_token else 1
  return sorted(choices, key=lambda c: -c.log_prob / size(c))


def check_choices(choices: Sequence[str]) -> None:
  """Raises InputError for no choices, an empty choice or a repeated one."""
  if not choices:
    raise InputError("there is no choice; give one text or more")
  for index, text in enumerate(choices):
    if not text:
      raise InputError(f"choice {index + 1} is empty; give some text")
    if text in choices[:index]:
      raise InputError(f"the choice {text!r} is given twice; give it once")


def encode_choices(
  tokenizer: Tokenizer, prompt: str, choices: Sequence[str]
) -> list[np.ndarray]:
  """Returns the ids of each choice, none empty.

  A choice is encoded as it follows the prompt in one text, as in training
  (protocol.ids_behind). With a tokenizer of pairs or chats it is a whole target
  or answer, with its end token.

  Raises:
    InputError: a choice has no token.
  """
  if isinstance(tokenizer, ANSWERED):
    return [tokenizer.encode_target(c).astype(np.int32) for c in choices]
  plain = getattr(tokenizer, "plain", tokenizer)
  start, found = plain.encode(prompt), []
  for text in choices:
    ids = ids_behind(start, plain.encode(prompt + text), plain.encode(text))
    if not len(ids):
      raise InputError(
        f"the choice {text!r} has no token in the vocabulary of "
        f"{tokenizer.name}; give another text"
      )
    found.append(ids.astype(np.int32))
  return found


def check_room(prompts, choices, model: Model) -> None:
  """Raises InputError unless the ids of each choice fit after its prompt."""
  limit = model.config.max_len
  for prompt, own in zip(prompts, choices, strict=True):
    longest = max(map(len, own))
    # The last token is scored, but never read.
    if len(prompt) + longest - 1 > limit:
      raise InputError(
        f"a prompt of {len(prompt)} tokens and a choice of {longest} are more "
        f"than the model's {limit} positions; shorten one of them"
      )


@functools.partial(jax.jit, static_argnames=("model",))
def _score(
  params, cache, logits_BV, lengths_B, ids_BAT, num_BA, *, model: Model
):
  """Returns log_p_BA, summed over the first num_BA tokens of each choice."""
  B, A, T = ids_BAT.shape
  logits_BATV = jnp.repeat(logits_BV[:, None, None], A, axis=1)
  if T > 1:
    cache = jax.tree.map(lambda x: jnp.repeat(x, A, axis=0), cache)
    read = ids_BAT[:, :, :-1].reshape(B * A, T - 1)
    starts = jnp.repeat(lengths_B, A)
    rest, _ = model.apply_cached(params, read, cache, starts)
    rest = rest.reshape(B, A, T - 1, -1)
    logits_BATV = jnp.concatenate([logits_BATV, rest], axis=2)
  log_p_BATV = jax.nn.log_softmax(logits_BATV)
  log_p_BAT = jnp.take_along_axis(log_p_BATV, ids_BAT[..., None], 3)[..., 0]
  is_token_BAT = jnp.arange(T)[None, None] < num_BA[..., None]
  return jnp.where(is_token_BAT, log_p_BAT, 0.0).sum(-1)


def score_ids(
  model: Model,
  params: Any,
  prompts: Sequence[Sequence[int] | np.ndarray],
  choices: Sequence[Sequence[Sequence[int] | np.ndarray]],
  is_prefix: bool = False,
  start_ids: Sequence[int] = (),
) -> np.ndarray:
  """Returns float32 log_p_BA of each prompt's choices, in nats.

  Args:
    params: stacked, as trained.
    prompts: the ids of each prompt, of any lengths, none empty.
    choices: the ids of A choices for each prompt, none empty.
    is_prefix, start_ids: as in generation.generate.

  Raises:
    InputError: the model cannot continue these prompts, a prompt and a choice
      have more tokens than it has positions, or the logits are not finite.
  """
  generation.check_prompts(prompts, model)
  sources, rows = generation.split_prompts(model, prompts, start_ids)
  check_room(rows, choices, model)
  num_BA = np.array([[len(ids) for ids in own] for own in choices], np.int32)
  T = int(np.max(num_BA))
  pad = lambda ids: np.pad(np.asarray(ids, np.int32), (0, T - len(ids)))
  ids_BAT = np.stack([np.stack([pad(ids) for ids in own]) for own in choices])
  lengths_B = np.array([len(r) for r in rows], np.int32)
  # The slots may exceed the model's positions: a write that does not fit would
  # be dropped as a whole, and only padding of shorter choices lies beyond them.
  num_slots = generation.round_up(int(np.max(lengths_B)) + T)
  prepared = generation.prepare(params, model)
  cache, logits_BV, lengths_B = generation.read_prompts(
    model, prepared, rows, num_slots, lengths_B if is_prefix else None, sources
  )
  log_p_BA = sharding.fetch(
    _score(prepared, cache, logits_BV, lengths_B, ids_BAT, num_BA, model=model)
  )
  generation.check_finite(bool(np.isfinite(log_p_BA).all()))
  return log_p_BA


def score(
  model: Model,
  params: Any,
  tokenizer: Tokenizer,
  prompts: Sequence[str],
  choices: Sequence[str],
  is_prefix: bool = False,
) -> list[list[Choice]]:
  """Returns each prompt's choices, in the order given.

  Args:
    model, params, is_prefix: as in score_ids.
    tokenizer: the tokenizer of the run.
    prompts, choices: texts, none empty; choices differ from each other.

  Raises:
    InputError: as in score_ids; or there is no choice, an empty one, or one
      that is given twice.
  """
  check_choices(choices)
  ids = [encode_choices(tokenizer, prompt, choices) for prompt in prompts]
  starts = [tokenizer.encode(prompt) for prompt in prompts]
  target = texts.start_ids_of(tokenizer, model.config)
  log_p_BA = score_ids(model, params, starts, ids, is_prefix, target)
  return [
    [
      Choice(text, log_p, len(each))
      for text, log_p, each in zip(choices, row, own, strict=True)
    ]
    for row, own in zip(log_p_BA.tolist(), ids, strict=True)
  ]
