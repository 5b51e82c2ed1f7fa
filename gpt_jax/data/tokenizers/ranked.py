"""GPT-2's BPE by tiktoken: the same ids as the tokenizers library, faster.

tiktoken merges the two parts whose joined bytes have the lowest rank, whichever
parts they are; the library merges the pair that comes first in its list. The
two agree on every text if, for each token, merging its bytes by all lower ranks
ends in the pair of its merge: a token is then always made from these two parts,
since no merge has crossed its borders. `find` checks this, the other rules, and
that both put characters into the same classes (their versions of Unicode may
differ).
"""

import json
from concurrent import futures

import numpy as np

from gpt_jax.data.grouping import group_texts
from gpt_jax.data.tokenizers import limits
from gpt_jax.data.tokenizers.protocol import SEPARATOR
from gpt_jax.exits import InputError

# GPT-2's regular expression. The group needs no backtracking, so a faster
# automaton matches it. The order of its alternatives does not matter, except
# that a contraction comes before the punctuation that it begins with.
PATTERN = (
  r"(?: ?\p{L}+|'(?:[sdmt]|ll|ve|re)| ?\p{N}+| ?[^\s\p{L}\p{N}]+)"
  r"|\s+(?!\S)|\s+"
)
_CLASSES = (r"\p{L}+", r"\p{N}+", r"\s+")
# Texts are given to threads in groups of at least this many characters.
_GROUP_CHARS = 1 << 16
# Checking merges takes a few steps for each pair of bytes of a token. GPT-2's
# tokens have 2.5 million such pairs; other vocabularies may have more.
_MAX_PAIRS = 1 << 25


class RankedEncoder:
  """Encodes texts on all cores.

  Args:
    encoding: a tiktoken.Encoding.
    ids: the id of each rank, uint32.
  """

  def __init__(self, encoding, ids: np.ndarray):
    self._encoding = encoding
    self._ids = ids

  def encode_batch(self, texts: list[str]) -> list[np.ndarray | None]:
    """Returns the ids of each text, or None for a text that tiktoken refuses.

    tiktoken refuses half a surrogate pair, and a million spaces in a row.
    """
    with futures.ThreadPoolExecutor() as pool:
      groups = list(group_texts(texts, _GROUP_CHARS))
      found = pool.map(self._encode_group, groups)
      return [ids for group in found for ids in group]

  def _encode_group(self, texts: list[str]) -> list[np.ndarray | None]:
    return [self._encode(text) for text in texts]

  def _encode(self, text: str) -> np.ndarray | None:
    try:
      with limits.guard("tiktoken"):
        ranks = self._encoding.encode_to_numpy(text, disallowed_special=())
    except InputError:
      return None
    return self._ids[ranks]


def find(inner) -> RankedEncoder | None:
  """Returns an encoder that gives the same ids as a tokenizer of the library.

  Args:
    inner: the tokenizer that `limits.build` returned.

  Returns:
    The encoder, or None if tiktoken might give other ids.
  """
  import tiktoken

  library = json.loads(inner.to_str())
  if not _has_plain_rules(library):
    return None
  pairs = _pairs_as_bytes(library["model"]["merges"])
  if pairs is None:
    return None
  tokens = [bytes([b]) for b in range(256)] + [a + b for a, b in pairs]
  ranks = {token: rank for rank, token in enumerate(tokens)}
  if not _are_found_by_rank(pairs, ranks):
    return None
  chars, vocab = limits.byte_characters(), library["model"]["vocab"]
  ids = [vocab.get("".join(chars[b] for b in token)) for token in tokens]
  if None in ids or not _know_the_same_characters(tiktoken):
    return None
  encoding = _make_encoding(tiktoken, PATTERN, ranks)
  return RankedEncoder(encoding, np.array(ids, np.uint32))


def merge_below(token: bytes, rank: int, ranks: dict[bytes, int]) -> list:
  """Returns the parts of a token after all merges of a lower rank."""
  parts = [token[i : i + 1] for i in range(len(token))]
  joined = [ranks.get(token[i : i + 2], rank) for i in range(len(token) - 1)]
  while len(parts) > 2:
    lowest = min(joined)
    if lowest >= rank:
      break
    i = joined.index(lowest)
    parts[i : i + 2] = [parts[i] + parts[i + 1]]
    del joined[i]
    if i > 0:
      joined[i - 1] = ranks.get(parts[i - 1] + parts[i], rank)
    if i < len(joined):
      joined[i] = ranks.get(parts[i] + parts[i + 1], rank)
  return parts


def _has_plain_rules(library: dict) -> bool:
  """Returns whether text is split into words, then bytes, as in GPT-2."""
  model, after = library["model"], library["post_processor"]
  return (
    limits.has_gpt2_rules(library)
    and (after is None or after["type"] == "ByteLevel")
    and all(token["special"] for token in library["added_tokens"])
    and model["type"] == "BPE"
    and not any(
      model[rule]
      for rule in (
        *("dropout", "continuing_subword_prefix", "end_of_word_suffix"),
        "ignore_merges",
      )
    )
  )


def _pairs_as_bytes(merges: list) -> list[tuple[bytes, bytes]] | None:
  """Returns the merges as bytes; None if one holds other characters.

  Also None if the tokens are so long that checking them would take minutes.
  """
  byte_of = {c: byte for byte, c in enumerate(limits.byte_characters())}
  if sum((len(a) + len(b)) ** 2 for a, b in merges) > _MAX_PAIRS:
    return None
  try:
    return [
      (bytes([byte_of[c] for c in a]), bytes([byte_of[c] for c in b]))
      for a, b in merges
    ]
  except KeyError:
    return None


def _are_found_by_rank(pairs: list, ranks: dict[bytes, int]) -> bool:
  return all(
    merge_below(a + b, rank, ranks) == [a, b]
    for rank, (a, b) in enumerate(pairs, 256)
  )


def _know_the_same_characters(tiktoken) -> bool:
  """Returns whether both libraries find the same letters, numbers and spaces.

  tiktoken extracts each class from all characters, the other library removes
  it: together they must give every character once.
  """
  from tokenizers import Regex, normalizers

  codes = np.arange(0x110000, dtype="<u4")
  codes = codes[(codes < 0xD800) | (codes > 0xDFFF)]
  text = codes.tobytes().decode("utf-32-le")
  one_byte = {bytes([b]): b for b in range(256)}
  for pattern in _CLASSES:
    encoding = _make_encoding(tiktoken, pattern, one_byte)
    kept = encoding.encode_to_numpy(text, disallowed_special=())
    kept = kept.astype(np.uint8).tobytes().decode()
    others = normalizers.Replace(Regex(pattern), "").normalize_str(text)
    counts = np.zeros(0x110000, np.uint8)
    counts[_codes(kept)] = 1
    counts[_codes(others)] += 1
    if (counts[codes] != 1).any():
      return False
  return True


def _codes(text: str) -> np.ndarray:
  return np.frombuffer(text.encode("utf-32-le"), "<u4")


def _make_encoding(tiktoken, pattern: str, ranks: dict[bytes, int]):
  # With no special token at all, tiktoken would look for the empty text and
  # find it at every character.
  special = {SEPARATOR: len(ranks)}
  return tiktoken.Encoding(
    "ranked", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
  )
