"""gpt2:PATH: GPT-2's published vocabulary (Radford et al. 2019).

It is read from encoder.json and vocab.bpe, from the same files under their
other names vocab.json and merges.txt, or from the ranks of a .tiktoken file.
"""

import base64
import os

from gpt_jax import files
from gpt_jax.data.tokenizers import limits, ranked
from gpt_jax.data.tokenizers.protocol import SEPARATOR, Tokenizer
from gpt_jax.data.tokenizers.subword import LibraryTokenizer
from gpt_jax.exits import InputError
from gpt_jax.machine import cache

VOCAB_SIZE = 50257
# The most bytes of a token in a .tiktoken file; GPT-2's longest has 128.
_MAX_TOKEN_BYTES = 1024


def find_files(path: str) -> list[str]:
  """Returns the files at PATH: [vocabulary, merges], or [a .tiktoken file].

  Raises:
    InputError: PATH does not exist or does not hold a GPT-2 vocabulary.
  """
  path = files.user_path("data.tokenizer", path, may_be_address=True)
  path = cache.local_folder(path)
  if not os.path.lexists(path):
    raise InputError(
      f"{path} of data.tokenizer does not exist; gpt2:PATH names the folder of "
      "encoder.json and vocab.bpe, or a .tiktoken file"
    )
  if not os.path.isdir(path):
    return [path]
  pairs = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
  for names in pairs:
    found = [os.path.join(path, name) for name in names]
    if all(os.path.lexists(f) for f in found):
      return found
  try:
    ranks = sorted(f for f in os.listdir(path) if f.endswith(".tiktoken"))
  except OSError as error:
    raise InputError(
      f"{path} of data.tokenizer cannot be read: {error.strerror}"
    ) from None
  if len(ranks) == 1:
    return [os.path.join(path, ranks[0])]
  raise InputError(
    f"{path} of data.tokenizer holds no GPT-2 vocabulary; it must hold "
    "encoder.json and vocab.bpe, vocab.json and merges.txt, or one .tiktoken"
  )


def read(path: str, spec: str) -> Tokenizer:
  """Returns the tokenizer of gpt2:PATH.

  Raises:
    InputError: the files are missing, damaged or of another vocabulary.
  """
  found = find_files(path)
  if len(found) == 1:
    vocab, merges = _read_ranks(found[0])
  else:
    vocab, merges = _read_merges(*found)
  vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))
  if list(vocab.values()) != list(range(VOCAB_SIZE)):
    raise InputError(
      f"{found[0]} holds {len(vocab)} tokens; the GPT-2 vocabulary has "
      f"{VOCAB_SIZE}, numbered from 0 without gaps"
    )
  if list(vocab)[-1] != SEPARATOR or len(merges) != VOCAB_SIZE - 257:
    raise InputError(
      f"{found[-1]} gives {len(merges)} merges and {list(vocab)[-1]!r} as the "
      f"last token; GPT-2 has {VOCAB_SIZE - 257} and {SEPARATOR!r}"
    )
  library = _make_library(vocab, merges)
  return LibraryTokenizer(library, spec, vocab[SEPARATOR])


def _make_library(vocab: dict[str, int], merges: list) -> dict:
  """Returns the content of a tokenizer.json with GPT-2's rules."""
  level = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
  }
  separator = {
    "id": vocab[SEPARATOR],
    "content": SEPARATOR,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
  }
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [separator],
    "normalizer": None,
    "pre_tokenizer": level,
    "post_processor": None,
    "decoder": level,
    "model": {
      "type": "BPE",
      "dropout": None,
      "unk_token": None,
      "continuing_subword_prefix": None,
      "end_of_word_suffix": None,
      "fuse_unk": False,
      "byte_fallback": False,
      "ignore_merges": False,
      "vocab": vocab,
      "merges": [list(pair) for pair in merges],
    },
  }


def _read_merges(vocab_file: str, merges_file: str):
  """Returns ({token: id}, [(left, right)]) of encoder.json and vocab.bpe."""
  try:
    vocab = files.parse_json(limits.read_bytes(vocab_file))
    is_valid = all(type(i) is int for i in vocab.values())
  except (ValueError, AttributeError):
    is_valid = False
  if not is_valid:
    raise InputError(
      f"{vocab_file} is not a vocabulary; it must be one JSON object of "
      "{token: id}"
    )
  merges = []
  text = limits.read_bytes(merges_file).decode("utf-8", errors="replace")
  for number, line in enumerate(text.split("\n"), 1):
    if not line.strip() or (number == 1 and line.startswith("#version")):
      continue
    pair = line.split()
    if len(pair) != 2 or pair[0] + pair[1] not in vocab:
      raise InputError(
        f"{merges_file}, line {number} is {line[:40]!r}; each line must be two "
        "tokens that join to one of the vocabulary"
      )
    merges.append(pair)
  return vocab, merges


def _read_ranks(path: str):
  """Returns ({token: id}, [(left, right)]) of a .tiktoken file.

  Each line is a token in base64 and its rank. The file does not list merges:
  the last merge of a token joins the two parts that are left once its bytes
  have been merged by all lower ranks.
  """
  ranks = _parse_ranks(path)
  chars = limits.byte_characters()
  shown = {t: "".join(chars[b] for b in t) for t in ranks}
  merges = []
  for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
    if len(token) == 1:
      continue
    parts = ranked.merge_below(token, rank, ranks)
    if len(parts) != 2 or not all(part in ranks for part in parts):
      raise InputError(
        f"{path}: token {token!r} of rank {rank} joins no two tokens of lower "
        "rank; this is not a byte-pair vocabulary"
      )
    merges.append([shown[parts[0]], shown[parts[1]]])
  vocab = {shown[t]: rank for t, rank in ranks.items()}
  vocab[SEPARATOR] = len(ranks)
  return vocab, merges


def _parse_ranks(path: str) -> dict[bytes, int]:
  ranks = {}
  for number, line in enumerate(limits.read_bytes(path).splitlines(), 1):
    try:
      token, rank = line.split()
      token = base64.b64decode(token, validate=True)
      if len(token) > _MAX_TOKEN_BYTES:
        raise ValueError
      ranks[token] = int(rank)
    except ValueError:
      raise InputError(
        f"{path}, line {number} is {line[:40]!r}; each line must be a base64 "
        "token and its rank"
      ) from None
  if len(ranks) != VOCAB_SIZE - 1:
    raise InputError(
      f"{path} holds {len(ranks)} ranks; that of GPT-2 has {VOCAB_SIZE - 1}"
    )
  return ranks
