"""bpe:SIZE: a byte-level byte-pair encoding that is learned from the corpus."""

import json
from collections.abc import Iterable

from gpt_jax import config
from gpt_jax.data.tokenizers import limits
from gpt_jax.data.tokenizers.protocol import SEPARATOR, Tokenizer
from gpt_jax.data.tokenizers.subword import LibraryTokenizer


def train_bpe(
  spec: str, pieces: Iterable[str], show_progress: bool = False
) -> Tokenizer:
  """Returns a BPE of at most SIZE tokens; the last one is the separator.

  Args:
    spec: "bpe:SIZE".
    pieces: the text; a text with too few pairs gives fewer tokens.
    show_progress: draw the library's progress bar.
  """
  from tokenizers import Tokenizer as Library
  from tokenizers import decoders, models, pre_tokenizers, trainers

  size = int(config.tokenizer_spec(spec)[1])
  inner = Library(models.BPE())
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=size - 1,
    min_frequency=2,
    show_progress=show_progress,
    initial_alphabet=sorted(limits.byte_characters()),
  )
  with limits.guard(f"the vocabulary of {spec} cannot be learned"):
    inner.train_from_iterator(pieces, trainer)
    inner.add_special_tokens([SEPARATOR])
    library = json.loads(inner.to_str())
  return LibraryTokenizer(library, spec, inner.token_to_id(SEPARATOR))
