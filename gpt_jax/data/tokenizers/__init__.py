"""Text to token ids and back: bytes, characters, byte-pair encodings.

A new kind is a word in `config.TOKENIZERS`, and an entry of BUILDERS where its
vocabulary is given, or a branch of `vocabulary.train_tokenizer` where it is
learned from the corpus.
"""

import dataclasses
import itertools

from gpt_jax import config as config_lib
from gpt_jax.config import Config
from gpt_jax.data.tokenizers import gpt2, hf, limits
from gpt_jax.data.tokenizers.plain import ByteTokenizer
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.data.tokenizers.stored import load as load
from gpt_jax.data.tokenizers.subword import LibraryTokenizer
from gpt_jax.exits import InputError

# {kind: function of (argument, spec) that returns the tokenizer}
BUILDERS = {
  "bytes": lambda argument, spec: ByteTokenizer(spec),
  "gpt2": gpt2.read,
  "hf": hf.read,
}
# {kind: function of the argument that returns the files of its vocabulary}
FILES = {"gpt2": gpt2.find_files, "hf": hf.find_files}

# Texts that normalizers, decoders or small vocabularies often change.
_PROBES = (
  *("Word", "déjà", "e\u0301", "ﬁve", "a  b", "a\tb", "a\n\nb", " a", "a "),
  *("x ,y", "do n't", "“a”", "a…", "a\xa0b", "Ⅳ", "國", "🙂"),
)


def is_trained(spec: str) -> bool:
  """Returns whether the vocabulary is learned from the corpus."""
  return config_lib.tokenizer_spec(spec)[0] not in BUILDERS


def find_vocab_size(spec: str) -> int | None:
  """Returns V as far as the spec alone tells, else None.

  For bpe:SIZE this is SIZE; a corpus with too few pairs gives less.
  """
  kind, argument = config_lib.tokenizer_spec(spec)
  if kind == "bpe":
    return int(argument)
  return {"bytes": 257, "gpt2": gpt2.VOCAB_SIZE}.get(kind)


def num_marks(config: Config) -> int:
  """Returns the number of ids that the objective adds after the tokenizer's.

  A model with an encoder has a start and an end of targets, whatever the
  objective.
  """
  own = config_lib.OBJECTIVES[config.data.objective].num_marks
  return max(own, 2 * config_lib.has_source(config.model))


def resolve_vocab(config: Config, size: int | None = None) -> Config:
  """Returns the config with model.vocab_size filled in, or checked.

  Args:
    size: the number of tokens of the prepared data's tokenizer and of marks of
      the objective; None, before data is prepared, infers it from their names.

  Raises:
    InputError: the size or the number of classes cannot be inferred, or
      model.vocab_size is too small.
  """
  model = config.model
  if config_lib.has_classes(model) and model.num_classes is None:
    raise InputError(
      "the classes of data.source are known only once data is prepared; give "
      "--config.model.num_classes=N"
    )
  asked, name = model.vocab_size, config.data.tokenizer
  if size is None:
    size = find_vocab_size(name)
    size = None if size is None else size + num_marks(config)
  if asked is not None:
    mark = " with those that data.objective adds" if num_marks(config) else ""
    if size is not None and asked < size:
      raise InputError(
        f"model.vocab_size is {asked} and the tokenizer {name!r} has {size} "
        f"tokens{mark}; raise it, or leave it None to take the tokenizer's"
      )
    return config
  if size is None:
    raise InputError(
      f"the vocabulary of data.tokenizer={name} is known only once data is "
      "prepared; give --config.model.vocab_size=N"
    )
  model = dataclasses.replace(model, vocab_size=size)
  return dataclasses.replace(config, model=model)


def identity(spec: str) -> str:
  """Returns a name of the vocabulary that is known before it is built.

  This is the spec, or the digest of the vocabulary's files. It is cheap to
  compute and needs no library.

  Raises:
    InputError: the spec is wrong or a file does not exist.
  """
  kind, argument = config_lib.tokenizer_spec(spec)
  if kind in FILES:
    return f"{kind}:{limits.hash_files(FILES[kind](argument))}"
  return spec


def build_tokenizer(spec: str) -> Tokenizer:
  """Returns the tokenizer of a spec that does not need the corpus.

  Raises:
    InputError: the vocabulary is missing, truncated or something else.
  """
  kind, argument = config_lib.tokenizer_spec(spec)
  if kind not in BUILDERS:
    raise InputError(f"data.tokenizer {spec!r} is made from a corpus")
  return BUILDERS[kind](argument, spec)


def remarks(tokenizer: Tokenizer) -> list[str]:
  """Returns warnings about a third-party tokenizer.

  It may have no separator, or decode ids to another text than was encoded.
  """
  if not isinstance(tokenizer, LibraryTokenizer):
    return []
  lines = []
  if tokenizer.separator_id is None:
    special = itertools.islice(tokenizer.special_tokens(), 8)
    found = ", ".join(map(repr, special)) or "none"
    lines.append(
      f"{tokenizer.name} has no end token that is known here (its special "
      f"tokens: {found}): documents follow each other without a separator"
    )
  for probe in _PROBES:
    try:
      back = tokenizer.decode(tokenizer.encode(probe))
    except InputError:
      continue
    if back != probe:
      lines.append(
        f"{tokenizer.name} changes text: {probe!r} comes back as {back!r}; "
        "losses and bits per byte are of the changed text, and compare with "
        "no other tokenizer's"
      )
      break
  return lines
