"""Objectives: how windows of ids become batches, a pure function of (seed, g).

g is a sequence's place in the order of data (order.py), so that a batch is the
same after a resume and on any number of processes. An objective is one entry of
OBJECTIVES, and one of config.OBJECTIVES, which names the fields of its batches.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.config import Config, DataConfig, InputError, Template
from gpt_jax.data import (
  chats,
  denoising,
  examples,
  infilling,
  preferences,
  sources,
)
from gpt_jax.data.marks import find_marks, pair_ids
from gpt_jax.data.pairs import SourceTokenizer, build_layout
from gpt_jax.data.templates import ChatTokenizer
from gpt_jax.data.tokenizers.protocol import Tokenizer

# Separate the draws of each objective from others of the same seed.
PREFIX_STREAM, MASK_STREAM = 0x9E37, 0x85EB


class Vocabulary(NamedTuple):
  """What objectives know of the tokenizer.

  Attributes:
    size: V; every id is below it.
    separator_id: the id before each document, or None.
    mask_id: the id that hides a token.
    continues_V: bool, whether a token continues the word before it; None if
      the objective does not need it.
  """

  size: int
  separator_id: int | None
  mask_id: int
  continues_V: np.ndarray | None = None


class Task(NamedTuple):
  """data.objective, ready for batches.

  Attributes:
    make: function of (batch, seed, g) that returns the batch to train on.
      batch: tokens, targets and mask, (b, T), and the fields of packed
      documents; g: (b,) indices of the sequences in the order of data.
    word: option of data.objective.
    pairs: the Layout by which pairs, texts with labels, dialogues or
      preferences become the rows of a batch; None reads windows of ids.
    beta: train.preference_beta.
    group_size: rows that hold the same pair.
  """

  make: Callable[[dict, int, np.ndarray], dict]
  word: str
  pairs: Any = None
  beta: float = 0.0
  group_size: int = 1

  @property
  def label(self) -> str | None:
    """The option of data.label, None where there are no labels."""
    has_labels = isinstance(self.pairs, examples.Layout)
    return self.pairs.kind if has_labels else None


def causal(batch: dict, seed: int, g: np.ndarray) -> dict:
  """Causal language modelling: predicts every token from earlier ones."""
  return batch


def prefix_lm(batch: dict, seed: int, g: np.ndarray) -> dict:
  """Draws a prefix whose tokens attend to each other; the loss is on the rest.

  Prefix language modelling (Raffel et al. 2020, section 3.2.1): the length of
  the prefix is uniform from 1 to T - 1.
  """
  T = batch["tokens"].shape[1]
  draw = lambda i: np.random.default_rng([PREFIX_STREAM, seed, i])
  lengths_B1 = np.array(
    [[draw(int(i)).integers(1, max(2, T))] for i in g], np.int32
  )
  order_BT = np.tile(np.arange(T, dtype=np.int32), (len(g), 1))
  is_asked_BT = order_BT >= lengths_B1 - 1
  return batch | {
    "mask": batch["mask"] * is_asked_BT,
    "slots": np.maximum(order_BT, lengths_B1 - 1),
  }


def masked_lm(
  batch: dict,
  seed: int,
  g: np.ndarray,
  *,
  vocabulary: Vocabulary,
  rate: float,
  shares: tuple[float, ...],
) -> dict:
  """Masks tokens at random; they are predicted from all others.

  Masked language modelling (Devlin et al. 2019, section 3.1). If a sequence has
  n tokens besides separators, round(rate * n) of them are chosen, at least one.
  With whole words, words are chosen in random order until they have at least
  that many tokens.

  Args:
    rate: the fraction of tokens that is chosen.
    shares: the fractions of the chosen tokens that become the mask, become a
      random token, and stay (config.MASK_ACTIONS).
  """
  tokens_BT = np.array(batch["tokens"])
  targets_BT, T = tokens_BT.copy(), tokens_BT.shape[1]
  may_BT = batch["mask"] > 0
  if vocabulary.separator_id is not None:
    may_BT = may_BT & (tokens_BT != vocabulary.separator_id)
  mask_BT = np.zeros(tokens_BT.shape, np.float32)
  for row, place in enumerate(g):
    draw = np.random.default_rng([MASK_STREAM, seed, int(place)])
    rank_T, action_T = draw.random(T), draw.random(T)
    random_T = draw.integers(0, vocabulary.size, T)
    places = np.flatnonzero(may_BT[row])
    chosen = _choose(places, targets_BT[row], rank_T, rate, vocabulary)
    mask_BT[row, chosen] = 1.0
    is_masked = action_T[chosen] < shares[0]
    is_random = ~is_masked & (action_T[chosen] < shares[0] + shares[1])
    tokens_BT[row, chosen[is_masked]] = vocabulary.mask_id
    tokens_BT[row, chosen[is_random]] = random_T[chosen[is_random]]
  return batch | {"tokens": tokens_BT, "targets": targets_BT, "mask": mask_BT}


def mask_one(
  batch: dict, seed: int, g: np.ndarray, *, vocabulary: Vocabulary, place: int
) -> dict:
  """Hides the token at one place of every row, unless it is a separator."""
  tokens_BT = np.array(batch["tokens"])
  may_B = batch["mask"][:, place] > 0
  if vocabulary.separator_id is not None:
    may_B &= tokens_BT[:, place] != vocabulary.separator_id
  mask_BT = np.zeros(tokens_BT.shape, np.float32)
  mask_BT[:, place] = may_B
  targets_BT = tokens_BT.copy()
  tokens_BT[may_B, place] = vocabulary.mask_id
  return batch | {"tokens": tokens_BT, "targets": targets_BT, "mask": mask_BT}


def _choose(places, ids_T, rank_T, rate: float, vocabulary: Vocabulary):
  """Returns the positions to mask, chosen from `places`."""
  if not places.size:
    return places
  count = max(1, round(rate * places.size))
  if vocabulary.continues_V is None:
    return places[np.argsort(rank_T[places], kind="stable")[:count]]
  begins = ~vocabulary.continues_V[ids_T[places]]
  begins[1:] |= np.diff(places) > 1
  begins[0] = True
  word = np.cumsum(begins) - 1
  order = np.argsort(rank_T[places[begins]], kind="stable")
  size = np.bincount(word)[order]
  # Words until the count is reached; the last may go beyond it.
  num_words = int(np.searchsorted(np.cumsum(size), count)) + 1
  return places[np.isin(word, order[:num_words])]


def _build_masked(config: Config, tokenizer: Callable) -> Callable:
  data = config.data
  return functools.partial(
    masked_lm,
    vocabulary=describe_vocabulary(tokenizer(), data.mask_unit == "word"),
    rate=data.mask_rate,
    shares=data.mask_mix.shares,
  )


def _build_denoising(config: Config, tokenizer: Callable) -> Callable:
  return denoising.build(config, tokenizer().vocab_size)


# {option of data.objective: function of (config, function that returns the
# tokenizer) that returns the `make` of its Task}
OBJECTIVES: dict[str, Callable] = {
  "causal": lambda config, tokenizer: causal,
  "prefix_lm": lambda config, tokenizer: prefix_lm,
  "masked_lm": _build_masked,
  "fill_in_the_middle": lambda config, tokenizer: infilling.build(
    config.data, tokenizer()
  ),
  "span_corruption": _build_denoising,
  "ul2": _build_denoising,
  "sequence_to_sequence": lambda config, tokenizer: causal,
  "classification": lambda config, tokenizer: causal,
  "chat": lambda config, tokenizer: causal,
  "dpo": lambda config, tokenizer: causal,
  "ipo": lambda config, tokenizer: causal,
  "kto": lambda config, tokenizer: causal,
  "orpo": lambda config, tokenizer: causal,
  "grpo": lambda config, tokenizer: causal,
}
_PAIRS = (
  sources.is_paired,
  "pairs",
  "pairs:FILE, with FILE of two columns (.tsv) or of records with the fields "
  "source and target (.jsonl)",
)
_PREFERENCES = (
  sources.is_preference,
  "preferences",
  "preference:FILE, with FILE of JSON records that have a prompt, chosen and "
  "rejected, or a prompt, a completion and a label",
)
# Objectives whose rows are examples, such as pairs, and not windows of ids:
# (function of a spec that tells whether a source has such examples, what they
# are called, which source to give instead).
ROWS = {
  **dict.fromkeys(("sequence_to_sequence", "grpo"), _PAIRS),
  "classification": (
    sources.is_labelled,
    "labels",
    "labelled:FILE, with FILE of two columns (.tsv) or of records with the "
    "fields text and label (.jsonl)",
  ),
  "chat": (
    sources.is_chat,
    "chats",
    "chat:FILE, with FILE of JSON records that have messages, conversations, "
    "or instruction and output",
  ),
  **dict.fromkeys(("dpo", "ipo", "kto", "orpo"), _PREFERENCES),
}
# Types that `prompting` may return whose prompts are answered, not continued.
ANSWERED = (SourceTokenizer, ChatTokenizer)
CAUSAL = Task(causal, "causal")


def build_task(config: Config, tokenizer: Callable[[], Tokenizer]) -> Task:
  """Returns the objective of a config.

  Args:
    tokenizer: returns the run's tokenizer; called only if it is needed.
  """
  word = config.data.objective
  make = OBJECTIVES[word](config, tokenizer)
  layout = find_layout(config, tokenizer)
  train = config.train
  return Task(make, word, layout, train.preference_beta, train.group_size)


def find_layout(config: Config, tokenizer: Callable[[], Tokenizer]) -> Any:
  """Returns the layout of documents in rows, None if rows are windows."""
  data = config.data
  if data.objective not in ROWS:
    return None
  how = config_lib.OBJECTIVES[data.objective]
  if how.has_labels:
    has_source = config_lib.has_source(config.model)
    marks = pair_ids(tokenizer()) if has_source else None
    return examples.Layout(data.seq_len, data.label, marks)
  if how.is_preference:
    is_single = data.objective == "kto"
    return preferences.Layout(data.seq_len, how.has_reference, is_single)
  if data.objective == "chat":
    return chats.Layout(data.seq_len, data.packing == "documents")
  return build_layout(config, tokenizer())


def prompting(
  config: Config, tokenizer: Tokenizer, template: Template | None = None
) -> Any:
  """Returns a tokenizer that encodes prompts in the form of the training data.

  If the run reads sources, a prompt is a source with its marks, and a target's
  end is known. After span corruption, a prompt asks for a masked span behind
  it. If the run reads chats, a prompt is a user message.

  Args:
    template: the chat template of a model that was tuned elsewhere, whose
      prompts are user messages; None for the run's own form.

  Raises:
    InputError: the run does not continue prompts, or the tokenizer lacks a mark
      of the template.
  """
  if template is None and config.data.objective == "chat":
    template = config.data.template
  if template is not None:
    word = config.data.objective
    is_preference = config_lib.OBJECTIVES[word].is_preference
    if word not in ("causal", "chat") and not is_preference:
      raise InputError(
        f"--template is {template}, and the run's data.objective is "
        f"{word}; only a causal model answers chats"
      )
    return ChatTokenizer(tokenizer, template)
  has_source = config_lib.has_source(config.model)
  is_paired = config.data.objective in ("sequence_to_sequence", "grpo")
  if not has_source and not is_paired:
    return tokenizer
  first = hidden = ()
  if config_lib.denoisers(config.data):
    marks = find_marks(tokenizer.vocab_size)
    first = (marks.modes["S"],) if config.data.objective == "ul2" else ()
    hidden = (int(marks.sentinels[0]),)
  return SourceTokenizer(tokenizer, has_source, first, hidden)


def check_sources(data: DataConfig) -> None:
  """Raises InputError if a source lacks what the objective needs, as pairs.

  Or if a stage of data.curriculum lacks a weight for a source. Only the specs
  of the sources are read, not their files.
  """
  count = len(sources.parse_mixture(data.source))
  for weights, _ in data.curriculum.parts:
    if len(weights) != count:
      raise InputError(
        f"data.curriculum is {data.curriculum} and data.source has {count} "
        "sources; give a weight for each in every stage"
      )
  if data.objective not in ROWS:
    return
  has, what, remedy = ROWS[data.objective]
  for mixture in filter(None, (data.source, data.valid_source)):
    for _, spec in sources.parse_mixture(mixture):
      if not has(spec):
        raise InputError(
          f"data.objective is {data.objective}, which needs {what}, and "
          f"{spec!r} has none; give {remedy}"
        )


def describe_vocabulary(tokenizer: Tokenizer, has_words: bool) -> Vocabulary:
  """Returns what objectives know of a tokenizer.

  Args:
    has_words: also find which tokens continue a word.
  """
  size, mask_id = tokenizer.vocab_size, tokenizer.mask_id
  continues_V = None
  if has_words:
    continues_V = np.array([tokenizer.continues_word(i) for i in range(size)])
  own = size if mask_id is None else mask_id
  return Vocabulary(size, tokenizer.separator_id, own, continues_V)


class Field(NamedTuple):
  """An array of a batch, (B, length)."""

  dtype: type
  length: int


def fields(config: Config) -> dict[str, Field]:
  """Returns {name: Field} of the arrays of a batch.

  All batches have tokens; targets, the id to predict at each token: the next
  one, or its own; and mask, 1 where a target counts in the loss. With packed
  documents there are segments, the document of each token, and positions
  within it. Then there are the objective's own: slots with prefixes
  (ops/visibility.py); config.SOURCE_FIELDS with an encoder; with labels or
  preferences what Rows.read or PreferenceRows.read returns.
  """
  S, T = config_lib.row_lengths(config)
  found = {name: Field(np.int32, T) for name in ("tokens", "targets")}
  found["mask"] = Field(np.float32, T)
  for name in config_lib.batch_fields(config):
    is_source = name.startswith("source")
    found[name] = Field(np.int32, S if is_source and S is not None else T)
  how = config_lib.OBJECTIVES[config.data.objective]
  if how.has_labels:
    found |= _label_fields(config)
  if how.is_sampled:
    found |= dict.fromkeys(("rewards", "advantages"), Field(np.float32, 1))
    found["old_log_probs"] = Field(np.float32, T)
    if config.train.kl_weight:
      found["reference_log_probs"] = Field(np.float32, T)
  if how.is_preference:
    found["labels"] = Field(np.float32, preferences.SIDES)
  if how.has_reference:
    found["reference"] = Field(np.float32, preferences.SIDES)
  return found


def _label_fields(config: Config) -> dict[str, Field]:
  """Returns the targets and mask of labels.

  Targets are ids of classes; or, if data.label is multi, 1 for each class that
  the text has; or a number. mask is 1 where there is a label: of a text, or of
  a word at its last token.
  """
  label, T = config.data.label, config_lib.row_lengths(config).target
  width = T if label == "word" else 1
  mask = Field(np.float32, width)
  if label == "multi":
    C = config_lib.num_classes(config.model)
    return {"targets": Field(np.float32, C), "mask": mask}
  dtype = np.float32 if label == "number" else np.int32
  return {"targets": Field(dtype, width), "mask": mask}
