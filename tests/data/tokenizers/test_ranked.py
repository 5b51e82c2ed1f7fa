"""tiktoken stands in for the tokenizers library only where ids are equal."""

import functools
import json
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.data import tokenizers
from gpt_jax.data.tokenizers import limits, ranked, subword
from gpt_jax.data.tokenizers.bpe import train_bpe
from gpt_jax.data.tokenizers.protocol import SEPARATOR
from gpt_jax.data.tokenizers.subword import LibraryTokenizer
from gpt_jax.exits import InputError

CORPUS = [
  "It's the end; they'll've said don't, I'd 've  gone.\n\n  x\t\t+ 12345",
  "naïve déjà vu, 国语の文字 и слова, 한국어 \u0661\u0662\u0663 Ⅷ ½ ²\r\n\r\n",
  "\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301 \xa0\u2003\u3000\x85x",
]
# One of every class that a rule could treat differently, and what joins them.
TRICKY = [
  *(
    "",
    " ",
    "\n",
    "\r\n",
    "a",
    " a",
    "  a",
    "\n a",
    "a \n b",
    "\t\n\x0b\x0c\r",
  ),
  *("'s", "'S", "x's't're've'm'll'd", "'sa", " 's", "''s", "\u2019s", "'\n"),
  *("a" * 999, "ab" * 600, "1" * 600, "!" * 600, "國" * 300, " " * 600),
  *(" " * 600 + "x", "\n" * 600 + "x", " \n" * 999, "\r\n" * 999 + "y"),
  *(
    "\x00\x01\x1b\x7f\x80\x9f",
    "\u200b\u200d\ufeff\u2028\u2029\u180e",
    "a\u00a0b",
  ),
  *(
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f3fd",
    "\U0001f1e6\U0001f1e7",
  ),
  *(
    "e\u0301o\u0308",
    "\u0915\u094d\u0937",
    "שלום",
    "ﷺ",
    "\ufffe\uffff\U0010ffff",
  ),
  *(SEPARATOR, f"a{SEPARATOR}b", f" {SEPARATOR}\n{SEPARATOR}", "<|endoftext"),
]


@pytest.fixture(scope="module")
def bpe():
  return train_bpe("bpe:700", CORPUS * 30)


@pytest.fixture(scope="module")
def gpt2():
  folder = os.environ.get("GPT_JAX_TEST_DATA")
  if not folder:
    pytest.skip("GPT_JAX_TEST_DATA is not set")
  return tokenizers.build_tokenizer(f"gpt2:{folder}/gpt2_bpe")


def find(library: dict):
  return ranked.find(limits.build(library, "x"))


def library_of(encoder) -> dict:
  return json.loads(encoder.to_json())["library"]


def assert_equal_ids(encoder, texts: list[str]):
  """Compares both encoders on texts, of which tiktoken refuses none."""
  fast = find_once(encoder).encode_batch(texts)
  for text, ids, wanted in zip(
    texts, fast, encoder._encode_by_library(texts), strict=True
  ):
    assert ids is not None and np.array_equal(ids, wanted), repr(text[:80])


@functools.cache
def find_once(encoder):
  return ranked.find(encoder._inner)


@pytest.mark.parametrize("name", ["bpe", "gpt2"])
def test_tricky_texts_have_the_ids_of_the_library(name, request):
  encoder = request.getfixturevalue(name)
  assert_equal_ids(encoder, TRICKY + CORPUS)
  joined = [a + b for a in TRICKY for b in TRICKY]
  assert_equal_ids(encoder, joined)


@pytest.mark.parametrize("name", ["bpe", "gpt2"])
def test_every_character_has_the_ids_of_the_library(name, request):
  # Each stands after a letter, a number, a mark and a space.
  kinds = [*range(0x3000), *range(0x3000, 0x110000, 199)]
  codes = [c for c in kinds if not 0xD800 <= c <= 0xDFFF]
  texts = [
    "".join(
      f"a{chr(c)}1{chr(c)}!{chr(c)} {chr(c)}\n" for c in codes[i : i + 99]
    )
    for i in range(0, len(codes), 99)
  ]
  assert_equal_ids(request.getfixturevalue(name), texts)


@settings(max_examples=300, deadline=None)
@given(
  st.lists(
    st.one_of(
      st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
      st.text("aehrlstdvm' \n\r\t.1国", max_size=12),
      st.sampled_from(TRICKY),
    ),
    max_size=8,
  ).map("".join)
)
def test_any_text_has_the_ids_of_the_library(bpe, text):
  assert_equal_ids(bpe, [text])


def test_real_text_has_the_ids_of_the_library(gpt2):
  folder = os.environ["GPT_JAX_TEST_DATA"]
  for name in ("wikitext2/valid.txt", "tang_poetry/poet.tang.0.json"):
    with open(os.path.join(folder, name), encoding="utf-8") as file:
      text = file.read()[:300_000]
    assert_equal_ids(gpt2, [text, text[:1000][::-1]])


def test_a_long_batch_goes_to_tiktoken_and_what_it_refuses_to_the_library(
  bpe, monkeypatch
):
  encoder = LibraryTokenizer(library_of(bpe), "x", bpe.separator_id)
  text = "".join(CORPUS)
  encoder.encode_batch([text])
  assert encoder._ranked is None
  # It is looked for after several batches of so many, and not for prompts.
  monkeypatch.setattr(subword, "PIECE_LEN", len(text))
  monkeypatch.setattr(subword, "RANKED_CHARS", 3 * len(text))
  encoder._num_chars = 0
  for _ in range(9):
    encoder.encode_batch([text[1:]])
  for is_sought in (False, False, True):
    assert not encoder._is_ranked_sought
    encoder.encode_batch([text])
    assert encoder._is_ranked_sought == is_sought
  # tiktoken's limit on spaces in a row is a million.
  texts = [text, " " * 1_100_000 + "x", text[::-1]]
  found = encoder.encode_batch(texts)
  assert encoder._ranked.encode_batch(texts)[1] is None
  wanted = bpe._encode_by_library(texts)
  assert all(map(np.array_equal, found, wanted))
  assert all(ids.dtype == np.uint32 and ids.flags.writeable for ids in found)
  with pytest.raises(InputError, match="half of a surrogate pair"):
    encoder.encode_batch([text, "a\ud800"])
  again = pickle.loads(pickle.dumps(encoder))
  assert np.array_equal(again.encode(text), wanted[0])


def with_merges(library: dict, pairs: list[str]) -> dict:
  """Returns the library with merges of single letters alone, in this order."""
  chars = limits.byte_characters()
  vocab = {c: i for i, c in enumerate(chars)}
  merges = [pair.split() for pair in pairs]
  for a, b in merges:
    vocab.setdefault(a + b, len(vocab))
  return library | {
    "added_tokens": [],
    "model": library["model"] | {"vocab": vocab, "merges": merges},
  }


def test_ids_that_are_no_ranks_are_mapped(bpe):
  library = with_merges(library_of(bpe), ["a b", "b c", "ab c", "c d"])
  vocab = library["model"]["vocab"]
  mixed = dict(zip(vocab, reversed(vocab.values()), strict=True))
  library["model"]["vocab"] = mixed
  encoder = LibraryTokenizer(library, "x", None)
  assert_equal_ids(encoder, ["abcd bcd cdab", "abc" * 9, "国"])
  assert encoder.encode("abc").tolist() == [mixed["abc"]]


def test_merges_that_ranks_cannot_express_stay_with_the_library(bpe):
  library = library_of(bpe)
  assert find(with_merges(library, ["b c", "a b", "a bc"])) is not None
  # "abc" is made of "ab" and "c", which never meet: "bc" is joined first.
  unreachable = with_merges(library, ["b c", "a b", "ab c"])
  assert find(unreachable) is None
  # Ranks would find the token that the merges do not.
  inner = limits.build(unreachable, "x")
  found = inner.encode("abc", add_special_tokens=False).tokens
  assert found == ["a", "bc"]
  # Two pairs make one token.
  assert find(with_merges(library, ["a b", "b c", "ab c", "a bc"])) is None
  # A merge before the merge of its part.
  assert find(with_merges(library, ["ab c", "a b"])) is None


OTHER_RULES = {
  "normalizer": {"type": "NFC"},
  "pre_tokenizer": {
    "type": "ByteLevel",
    "add_prefix_space": True,
    "trim_offsets": True,
    "use_regex": True,
  },
  "post_processor": {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2,
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {},
  },
  "model.ignore_merges": True,
  "model.continuing_subword_prefix": "x",
  "model.end_of_word_suffix": "x",
  "added_tokens.special": False,
}


@pytest.mark.parametrize("rule", OTHER_RULES)
def test_other_rules_stay_with_the_library(bpe, rule):
  library = json.loads(bpe._inner.to_str())
  assert ranked._has_plain_rules(library) and find(library) is not None
  part, _, key = rule.partition(".")
  where = {"": library, "model": library["model"]}.get(part if key else "")
  if part == "added_tokens":
    where = library["added_tokens"][0]
  where[key or part] = OTHER_RULES[rule]
  # Not built: the library itself aborts on a prefix that merges do not have.
  assert not ranked._has_plain_rules(library)


def test_a_byte_without_a_token_stays_with_the_library(bpe):
  library = library_of(bpe)
  # Of a character that is in no text, so in no merge.
  library["model"]["vocab"].pop(limits.byte_characters()[0xFF])
  assert find(library) is None


def test_tokens_that_take_long_to_check_stay_with_the_library(bpe, monkeypatch):
  monkeypatch.setattr(ranked, "_MAX_PAIRS", 100)
  assert ranked.find(bpe._inner) is None


def test_libraries_of_other_unicode_versions_stay_apart(bpe, monkeypatch):
  monkeypatch.setattr(ranked, "_CLASSES", (r"[\p{L}\x{378}]+",))
  assert ranked.find(bpe._inner) is not None
  from tokenizers import normalizers

  class Older:
    def __init__(self, pattern, content):
      self.normalize_str = lambda text: text.replace("a", "", 1)

  monkeypatch.setattr(normalizers, "Replace", Older)
  assert ranked.find(bpe._inner) is None
