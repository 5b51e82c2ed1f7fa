"""Vocabularies that are learned from the corpus: chars and bpe:SIZE."""

import sys
from collections.abc import Callable, Iterator

import numpy as np

from gpt_jax import config
from gpt_jax.data import tokenizers
from gpt_jax.data.progress import Progress, count_bytes
from gpt_jax.data.splitting import Part
from gpt_jax.data.tokenizers.bpe import train_bpe
from gpt_jax.data.tokenizers.plain import CharTokenizer
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.exits import InputError
from gpt_jax.machine import runtime

# The most bytes of text that a BPE is learned from.
SAMPLE_BYTES = 64 << 20
# Characters of a piece of that sample.
_SAMPLE_CHARS = 1 << 17


def train_tokenizer(
  spec: str, parts: list[Part], say: Callable[[str], None]
) -> tuple[Tokenizer, dict]:
  """Returns (tokenizer, notes for the manifest) learned from text.

  Args:
    spec: "chars" or "bpe:SIZE".
    parts: the text; each part is divided into splits if it is not yet.
    say: receives lines of progress.

  Raises:
    InputError: there is no text, or a source cannot be read.
  """
  kind, _ = config.tokenizer_spec(spec)
  opened = [part.source for part in parts]
  with Progress("reading", opened, say) as progress:
    for part in parts:
      part.survey(progress.add)
  with Progress("learning the vocabulary", opened, say) as progress:
    pieces = _all_pieces(parts, progress.add)
    if kind == "chars":
      # From all splits, so that no held-out character is unknown (as nanoGPT).
      characters = _find_characters(piece for _, piece in pieces)
      _require_text(parts, characters)
      return CharTokenizer(characters, spec), {}
    kept, notes = sample(piece for split, piece in pieces if split == "train")
  _require_text(parts, kept)
  encoder = train_bpe(spec, kept, runtime.is_terminal(sys.stderr))
  wanted = tokenizers.find_vocab_size(spec)
  if wanted is not None and encoder.vocab_size < wanted:
    say(f"the text has pairs for {encoder.vocab_size} of {wanted} tokens only")
  return encoder, notes


def sample(pieces: Iterator[str]) -> tuple[list[str], dict]:
  """Returns (at most SAMPLE_BYTES of text, evenly spread; notes on it).

  The length of the stream is not known in advance: whenever the sample is too
  large, every other piece is dropped, and the step to the next piece doubles.
  """
  kept, size, stride, total = [], 0, 1, 0
  cut = (
    piece[i : i + _SAMPLE_CHARS]
    for piece in pieces
    for i in range(0, len(piece), _SAMPLE_CHARS)
  )
  for i, text in enumerate(cut):
    num_bytes = count_bytes(text)
    total += num_bytes
    if i % stride == 0:
      kept.append(text)
      size += num_bytes
    while size > SAMPLE_BYTES and len(kept) > 1:
      kept = kept[::2]
      stride *= 2
      size = sum(map(count_bytes, kept))
  return kept, {
    "trained_on_bytes": size,
    "of_bytes": total,
    "every_nth_piece": stride,
  }


def _find_characters(pieces: Iterator[str]) -> list[str]:
  is_used = np.zeros(sys.maxunicode + 1, bool)
  for piece in pieces:
    is_used[np.frombuffer(piece.encode("utf-32-le"), "<u4")] = True
  return [chr(code) for code in np.flatnonzero(is_used)]


def _all_pieces(parts: list[Part], add) -> Iterator[tuple[str, str]]:
  """Yields (split, piece) of all text, and calls `add` with each piece."""
  for part in parts:
    for _, tagged in part.pieces():
      for split, piece in tagged:
        yield split, piece
        add(piece)


def _require_text(parts: list[Part], found) -> None:
  if not found:
    specs = ", ".join(part.source.spec for part in parts)
    raise InputError(f"the corpus {specs} is empty: no document holds any text")
