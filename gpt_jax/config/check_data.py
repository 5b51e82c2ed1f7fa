"""Refuses an objective that the data or the model does not support."""

from gpt_jax.config.derived import has_prefixes, has_score_bias, has_source
from gpt_jax.config.lengths import denoisers, most_spans, row_lengths
from gpt_jax.config.options import NUM_SENTINELS
from gpt_jax.config.schema import Config, DataConfig
from gpt_jax.exits import InputError


def check_data(c: Config) -> None:
  """Refuses values of section data that conflict with others or the model.

  Raises:
    InputError: the sentence names the keys.
  """
  _check_denoising(c.data)
  _check_pairs(c)
  _check_lengths(c)
  _check_prefixes(c)
  _check_curriculum(c)


def _check_curriculum(c: Config) -> None:
  """Refuses a stage that begins after the end of the run."""
  for _, step in c.data.curriculum.parts:
    if step >= c.train.num_steps:
      raise InputError(
        f"data.curriculum is {c.data.curriculum} and train.num_steps is "
        f"{c.train.num_steps:,}; the last stage must begin before the last step"
      )


def _check_denoising(d: DataConfig) -> None:
  """Refuses windows that cannot be corrupted."""
  mixture = denoisers(d)
  if not mixture:
    return
  asked = f"data.objective is {d.objective}"
  if d.packing == "documents":
    raise InputError(
      f"{asked}, which hides spans of whole sequences, and data.packing is "
      "documents; leave it stream"
    )
  if d.seq_len < 2:
    raise InputError(
      f"{asked}, which shows one part of a sequence and hides the other, and "
      f"data.seq_len is {d.seq_len}; it must be 2 or more"
    )
  spans = most_spans(d.seq_len, mixture)
  if spans > NUM_SENTINELS:
    raise InputError(
      f"{asked} and data.seq_len is {d.seq_len}, of which {spans} spans are "
      f"hidden, and there are {NUM_SENTINELS} marks for them; take shorter "
      "sequences or longer spans"
    )


def _check_pairs(c: Config) -> None:
  """Refuses a split that would cut pairs, and a source_len without sources."""
  d = c.data
  is_paired = d.objective in ("sequence_to_sequence", "grpo")
  if (is_paired or d.objective == "chat") and d.split == "tail":
    raise InputError(
      f"data.objective is {d.objective} and data.split is {d.split}, which "
      "holds out the ends of texts; whole "
      f"{'pairs' if is_paired else 'chats'} are held out: take document"
    )
  if d.source_len is None or (is_paired and has_source(c.model)):
    return
  why = f"data.objective is {d.objective}, without a source of its own length"
  if is_paired:
    why = (
      f"model.family is {c.model.family}, whose rows hold source and target "
      "together"
    )
  raise InputError(
    f"data.source_len is {d.source_len} and {why}; leave it None"
  )


def _check_lengths(c: Config) -> None:
  """Refuses rows that are longer than the model's positions."""
  d, most = c.data, c.model.max_len
  rows = row_lengths(c)
  for what, length in zip(("source", "row"), rows, strict=True):
    if length is not None and length > most:
      found = f"data.seq_len is {d.seq_len}"
      if length == d.source_len:
        found = f"data.source_len is {length}"
      elif length != d.seq_len:
        found += (
          f", of which data.objective {d.objective} makes a {what} of {length} "
          "tokens"
        )
      raise InputError(
        f"{found}, longer than model.max_len {most}; raise model.max_len or "
        "shorten the sequences"
      )


def _check_prefixes(c: Config) -> None:
  """Refuses prefixes that the model or the packing does not support."""
  if not has_prefixes(c):
    return
  asked = (
    f"data.objective is {c.data.objective}, whose prefixes are bidirectional,"
  )
  if c.data.packing == "documents":
    raise InputError(
      f"{asked} and data.packing is documents; a prefix belongs to a whole "
      "sequence: leave it stream"
    )
  if c.model.attention in ("splash", "cudnn", "flash"):
    raise InputError(
      f"{asked} and model.attention is {c.model.attention}, which has no "
      "prefixes; use auto, dense or blocks"
    )
  if has_score_bias(c.model) or c.model.sliding_window is not None:
    raise InputError(
      f"{asked} and the model has a sliding window or biases of scores, which "
      "depend on distance; it must have neither"
    )
