"""Generates targets of pairs and answers of chats, and scores them.

A pair's target is found by beam search (greedily with one beam) until it ends;
a chat's last answer is decoded greedily. Scores are exact match and BLEU.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import files
from gpt_jax.config import InputError
from gpt_jax.data import chats
from gpt_jax.data.pairs import Layout, SourceTokenizer, pair_rows
from gpt_jax.data.shards import TokenSet
from gpt_jax.data.templates import ChatTokenizer
from gpt_jax.inference import beam as beam_lib
from gpt_jax.inference import texts
from gpt_jax.inference.generation import Sampling
from gpt_jax.models import Model


class Written(NamedTuple):
  """A pair or a chat, and what a model generated for its target."""

  source: str
  target: str
  written: str


def write_targets(
  model: Model,
  params: Any,
  tokens: TokenSet,
  tokenizer: SourceTokenizer,
  layout: Layout,
  *,
  num_pairs: int,
  batch_size: int,
  num_beams: int,
  show: Callable[[int, int], None] | None = None,
) -> list[Written]:
  """Returns the first pairs of a set, each with the target that is generated.

  Pairs that are longer than a row are left out, as in training.

  Args:
    tokens: a set of pairs.
    layout: how the run reads pairs.
    num_pairs: number of pairs, or all if there are fewer.
    batch_size: number of pairs in a beam search.
    num_beams: 1 is greedy decoding.
    show: called with (pairs done, pairs in all).
  """
  rows = pair_rows(tokens, layout._replace(is_packed=False), None)
  wanted = rows.pairs[:num_pairs]
  parts = [rows.parts(int(pair)) for pair in wanted]
  join = lambda source: [*layout.first, *source, tokenizer.last_id]
  prompts = [np.array(join(source), np.int32) for source, _ in parts]
  most = _most_tokens(model, layout, prompts)
  found = []
  for some in _batches(prompts, batch_size):
    hypotheses = beam_lib.search(
      model,
      params,
      some,
      most,
      beam_lib.Beam(num_beams=num_beams),
      tokenizer.separator_id,
      min(tokenizer.vocab_size, config_lib.vocab_size(model.config)),
      start_ids=tokenizer.target_start_ids,
    )
    found += [own[0].ids for own in hypotheses]
    if show is not None:
      show(min(len(found), len(prompts)), len(prompts))
  decode = tokenizer.decode
  return [
    Written(decode(source), decode(target), decode(ids))
    for (source, target), ids in zip(parts, found, strict=False)
  ]


def write_answers(
  model: Model,
  params: Any,
  tokens: TokenSet,
  tokenizer: ChatTokenizer,
  layout: chats.Layout,
  *,
  num_chats: int,
  batch_size: int,
) -> list[Written]:
  """Returns a set's first dialogues, each with the last answer generated.

  Dialogues that are longer than a row are left out, as in training.

  Args:
    tokens: a set of dialogues.
    layout: how the run reads them.
    num_chats: number of dialogues, or all if there are fewer.
    batch_size: number of dialogues that are answered at a time.
  """
  rows = chats.chat_rows(tokens, layout._replace(is_packed=False), None)
  parts = [rows.last_turn(int(chat)) for chat in rows.chats[:num_chats]]
  prompts, answers = [p for p, _ in parts], [a for _, a in parts]
  # A row's last token is predicted, but never read.
  room = min(layout.seq_len, model.config.max_len) + 1
  most = room - max(map(len, prompts))
  found = []
  for some in _batches(prompts, batch_size):
    found += texts.continue_ids(
      model, params, tokenizer, some, most, Sampling(temperature=0.0)
    )
  cut = lambda p, a: texts.cut_text(p, a.tolist(), tokenizer)[0]
  return [
    Written(tokenizer.decode(prompt), cut(prompt, answer), text)
    for prompt, answer, text in zip(prompts, answers, found, strict=False)
  ]


def _most_tokens(model: Model, layout: Layout, prompts) -> int:
  """Returns the most tokens of a target, its end token included."""
  most = layout.lengths.target
  if layout.lengths.source is None:
    # A row also holds the source; its last token is predicted, but never read.
    most = min(most, model.config.max_len - max(map(len, prompts)) + 1)
  return most


def _batches(prompts: list, size: int) -> Iterator[list]:
  """Yields batches of `size`; the last repeats its last prompt to be full."""
  for at in range(0, len(prompts), size):
    some = prompts[at : at + size]
    yield some + [some[-1]] * (size - len(some))


def exact_match(found: Sequence[Written]) -> float:
  """Returns the fraction of targets that were generated exactly."""
  return float(np.mean([one.target == one.written for one in found]))


def bleu(found: Sequence[Written]) -> float:
  """Returns BLEU of the corpus, 0 to 100, by sacrebleu with its defaults.

  Raises:
    InputError: sacrebleu is not installed.
  """
  try:
    import sacrebleu
  except ImportError:
    raise InputError(
      "BLEU needs the package `sacrebleu`; in the folder of this project, "
      f"install it with {files.pip('bleu')}"
    ) from None
  written = [one.written for one in found]
  references = [[one.target for one in found]]
  return float(sacrebleu.corpus_bleu(written, references).score)
