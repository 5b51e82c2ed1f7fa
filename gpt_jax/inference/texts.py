"""Generated text: ids are decoded as they are drawn, until the text ends."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.config import ModelConfig
from gpt_jax.data.pairs import SourceTokenizer
from gpt_jax.data.templates import ChatTokenizer
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.inference import rows
from gpt_jax.inference.generation import Sampling, generate
from gpt_jax.models import Model


def start_ids_of(tokenizer: Tokenizer, config: ModelConfig) -> tuple[int, ...]:
  """Returns the first ids of a target; () for a model that reads no source."""
  if not config_lib.has_source(config):
    return ()
  assert isinstance(tokenizer, SourceTokenizer)  # of a run that has sources
  return tokenizer.target_start_ids


def generate_text(
  model: Model,
  params: Any,
  tokenizer: Tokenizer,
  prompts: list[str],
  num_tokens: int,
  sampling: Sampling,
  seed: int = 0,
  stop: tuple[str, ...] = (),
  show: Callable[[str], None] | None = None,
  is_prefix: bool = False,
  num_rows: int | None = None,
) -> list[str]:
  """Returns each prompt's continuation, up to a stop string or separator.

  For a model that reads sources it is the prompt's target; with a ChatTokenizer
  it is the answer.

  Args:
    model, params, num_tokens, sampling, seed, is_prefix: as in generate.
    tokenizer: the tokenizer of the run.
    prompts: texts, none empty.
    stop: strings that end a continuation; they are not part of it.
    show: called with each new piece of the first row's text; a piece is held
      back while it may be the start of a stop string, or end inside a
      character.
    num_rows: decode as a server of this many rows does, with the same bits
      (inference/rows.py); None for a batch of the prompts alone.
  """
  ids = [tokenizer.encode(p) for p in prompts]
  return continue_ids(
    model,
    params,
    tokenizer,
    ids,
    num_tokens,
    sampling,
    seed,
    stop,
    show,
    is_prefix,
    num_rows,
  )


def continue_ids(
  model: Model,
  params: Any,
  tokenizer: Any,
  ids: list[np.ndarray],
  num_tokens: int,
  sampling: Sampling,
  seed: int = 0,
  stop: tuple[str, ...] = (),
  show: Callable[[str], None] | None = None,
  is_prefix: bool = False,
  num_rows: int | None = None,
) -> list[str]:
  """Returns what generate_text does, for prompts that are encoded already."""
  if isinstance(tokenizer, ChatTokenizer):
    stop = (*stop, *tokenizer.stop)
  starts = start_ids_of(tokenizer, model.config)
  # A target is a text of its own, which does not continue the prompt.
  before = [[] for _ in ids] if starts else ids
  made = [[] for _ in ids]
  texts, is_done = [""] * len(ids), [False] * len(ids)
  shown = 0
  # The model may have more rows of embedding than the tokenizer has tokens.
  vocab_size = min(config_lib.vocab_size(model.config), tokenizer.vocab_size)
  run = model, params, ids, num_tokens, sampling, seed, vocab_size
  if num_rows is None:
    chunks = generate(*run, is_prefix, starts)
  else:
    chunks = rows.generate(*run, num_rows)
  for chunk in chunks:
    for row, new in enumerate(chunk):
      if not is_done[row]:
        made[row].extend(new.tolist())
        texts[row], is_done[row] = cut_text(
          before[row], made[row], tokenizer, stop
        )
    if show is not None:
      end = len(texts[0])
      if not is_done[0]:
        end = safe_length(texts[0], stop)
      if end > shown:
        show(texts[0][shown:end])
        shown = end
    if all(is_done):
      break
  if show is not None and len(texts[0]) > shown:
    show(texts[0][shown:])
  return texts


def cut_text(prompt, ids: list[int], tokenizer, stop=()) -> tuple[str, bool]:
  """Returns (the text that ids add to the prompt, whether it has ended)."""
  ends = (tokenizer.separator_id,)
  if isinstance(tokenizer, ChatTokenizer):
    ends, stop = tokenizer.end_ids, (*stop, *tokenizer.stop)
  found = [at for at, i in enumerate(ids) if i in ends]
  ids, is_done = ids[: found[0]] if found else ids, bool(found)
  # Decoded with the prompt, because some decoders strip a text's first space.
  start = tokenizer.decode(prompt)
  whole = tokenizer.decode([*prompt, *ids])
  text = whole[len(os.path.commonprefix([start, whole])) :]
  ends = [text.find(s) for s in stop if s and s in text]
  return (text[: min(ends)], True) if ends else (text, is_done)


def safe_length(text: str, stop) -> int:
  """Returns the length of the text's start that later tokens cannot change."""
  end = len(text.rstrip("\ufffd"))
  held = [
    size
    for s in stop
    for size in range(1, len(s))
    if text[:end].endswith(s[:size])
  ]
  return end - max(held, default=0)
