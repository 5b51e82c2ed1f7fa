"""Tokenizer files of others: bounded, never a panic, and told what they do."""

import base64
import copy
import json
import os
import time

import pytest

from gpt_jax import config
from gpt_jax.data import tokenizers
from gpt_jax.data.tokenizers import limits, stored
from gpt_jax.data.tokenizers.bpe import train_bpe
from gpt_jax.data.tokenizers.plain import ByteTokenizer
from gpt_jax.data.tokenizers.subword import LibraryTokenizer
from gpt_jax.exits import InputError

HTML = "<p>old <s>price</s> new</p>\n"


def added(word: str, i: int, special: bool = True) -> dict:
  return {
    "id": i,
    "content": word,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": special,
  }


@pytest.fixture(scope="module")
def html():
  """A tokenizer.json in whose vocabulary </s> is an ordinary token."""
  encoder = train_bpe("bpe:272", [HTML * 50])
  content = json.loads(encoder.to_json())["library"]
  content["added_tokens"] = []
  vocab = content["model"]["vocab"]
  if "</s>" not in vocab:
    vocab["</s>"] = len(vocab)
  return content


@pytest.fixture
def build(html, tmp_path):
  """Builds the hf: tokenizer of that file with values changed."""

  def make(**changes):
    content = copy.deepcopy(html)
    content["model"] |= changes.pop("model", {})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | changes))
    return tokenizers.build_tokenizer(f"hf:{tmp_path}")

  return make


def test_a_separator_is_a_special_token_and_never_text(build, html):
  assert build().separator_id is None
  assert build().decode(build().encode(HTML)) == HTML
  size = len(html["model"]["vocab"])
  for word in (
    *limits.SEPARATORS,
    *("<|bos|>", "[SEP]", "<｜end▁of▁sentence｜>", "<|im_end|>", "[EOS]"),
    *("<EOS_TOKEN>", "<|eot_id|>", "<s>"),
  ):
    assert build(added_tokens=[added(word, size)]).separator_id is not None
    ordinary = build(added_tokens=[added(word, size, special=False)])
    assert ordinary.separator_id is None
  for word in ("<unk>", "[MASK]", "<|user_start|>"):
    assert build(added_tokens=[added(word, size)]).separator_id is None
  # An end token comes before a begin token, wherever it stands.
  # A wrong id in the file is the library's to mend: the word decides.
  wrong = build(added_tokens=[added("<eos>", 10**9)])
  assert wrong.separator_id == size < wrong.vocab_size
  both = build(added_tokens=[added("<s>", size), added("<｜eos｜>", size + 1)])
  assert both.separator_id == size + 1


def test_what_a_tokenizer_does_to_text_is_told(build, html):
  special = [added("<eos>", len(html["model"]["vocab"]))]
  assert tokenizers.remarks(build(added_tokens=special)) == []
  (line,) = tokenizers.remarks(build())
  assert "no end token" in line and "special tokens: none" in line
  for normalizer, words in (
    ({"type": "Lowercase"}, "'Word' comes back as 'word'"),
    ({"type": "NFKC"}, "'e\u0301' comes back as 'é'"),
    ({"type": "NFD"}, "'déjà' comes back as 'de"),
    ({"type": "NFC"}, "'e\u0301' comes back as 'é'"),
    (
      {"type": "Strip", "strip_left": True, "strip_right": False},
      "' a' comes back as 'a'",
    ),
    (
      {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
      "'a  b' comes back as 'a b'",
    ),
  ):
    told = tokenizers.remarks(
      build(added_tokens=special, normalizer=normalizer)
    )
    assert len(told) == 1 and words in told[0], normalizer


def replace(pattern, content):
  return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps):
  return {"type": "Sequence", "normalizers": list(steps)}


LONG = "x" * 10**6
MAP = (8).to_bytes(4, "little") + bytes(8)
ASKS_TOO_MUCH = {
  "a long replacement": dict(normalizer=replace({"String": "e"}, LONG)),
  "one of many characters": dict(
    normalizer=replace({"String": "e"}, "x" * 200)
  ),
  "doubled again and again": dict(
    normalizer=sequence(*[replace({"String": "e"}, "ee")] * 30)
  ),
  "doubled in a ring": dict(
    normalizer=sequence(
      *[replace({"Regex": "e"}, "ff"), replace({"String": "f"}, "ee")] * 9
    )
  ),
  "prepended": dict(normalizer={"type": "Prepend", "prepend": LONG}),
  "a table with a long text": dict(
    normalizer={
      "type": "Precompiled",
      "precompiled_charsmap": base64.b64encode(
        MAP + b"y" * 10**5 + b"\0"
      ).decode(),
    }
  ),
  "a decoder": dict(
    decoder={"type": "Sequence", "decoders": [replace({"String": "e"}, LONG)]}
  ),
  "dropout": dict(model={"dropout": 0.5}),
  "a large id": dict(model={"vocab": {"a": 0, "zz": 10**9}, "merges": []}),
  "a prefix": dict(model={"continuing_subword_prefix": LONG}),
}


@pytest.mark.parametrize("case", ASKS_TOO_MUCH)
def test_what_a_file_asks_for_is_bounded(build, case):
  start = time.perf_counter()
  with pytest.raises(InputError, match=r"tokenizer|hf:.* cannot be used"):
    build(**ASKS_TOO_MUCH[case])
  assert time.perf_counter() - start < 2


def test_real_normalizers_are_within_the_bounds(build):
  moses = [replace({"String": c}, "...") for c in "…‥⋯。、！？；：（）"]
  build(normalizer=sequence({"type": "NFKC"}, *moses))
  build(normalizer=sequence(replace({"Regex": " {2,}"}, "▁"), *moses))


PANICS = {
  "a catastrophic split": dict(
    pre_tokenizer={
      "type": "Split",
      "pattern": {"Regex": "(a+)+$"},
      "behavior": "Isolated",
      "invert": False,
    }
  ),
  "a catastrophic replacement": dict(
    normalizer=replace({"Regex": "(a|aa)+$"}, "b")
  ),
  "a table of zeros": dict(
    normalizer={
      "type": "Precompiled",
      "precompiled_charsmap": base64.b64encode(bytes(64)).decode(),
    }
  ),
}


@pytest.mark.parametrize("case", PANICS)
def test_a_panic_of_the_library_is_a_sentence(build, case):
  start = time.perf_counter()
  with pytest.raises(InputError, match="cannot encode the text|cannot be used"):
    build(**PANICS[case]).encode("a" * 60 + "b")
  assert time.perf_counter() - start < 5


def test_a_guard_lets_what_ends_the_process_through():
  for error in (KeyboardInterrupt, SystemExit):
    with pytest.raises(error), limits.guard("x"):
      raise error


@pytest.mark.parametrize("read", ["load", "hf:", "gpt2:"])
@pytest.mark.parametrize("what", ["pipe", "zero", "deep", "digits", "dangling"])
def test_no_file_in_place_of_a_tokenizer_hangs_or_fills_memory(
  tmp_path, read, what
):
  path = tmp_path / "tokenizer.json"
  if what == "pipe":
    os.mkfifo(path)
  elif what == "deep":
    path.write_text("[" * 200_000)
  elif what == "digits":
    path.write_text('{"model": {}, "added_tokens": [' + "9" * 9999 + "]}")
  else:
    path.symlink_to("/dev/zero" if what == "zero" else tmp_path / "nowhere")
  with pytest.raises(InputError) as refused:
    if read == "load":
      tokenizers.load(path)
    else:
      tokenizers.build_tokenizer(read + str(path))
  assert str(path) in str(refused.value)


def test_a_home_folder_is_expanded(build, tmp_path, monkeypatch):
  build()
  monkeypatch.setenv("HOME", str(tmp_path))
  assert tokenizers.build_tokenizer("hf:~/tokenizer.json").vocab_size > 256
  assert tokenizers.identity("hf:~") == tokenizers.identity(f"hf:{tmp_path}")
  with pytest.raises(InputError, match="~nobody-here"):
    tokenizers.build_tokenizer("gpt2:~nobody-here/x")
  with pytest.raises(InputError, match="memory://none does not exist"):
    tokenizers.build_tokenizer("hf:memory://none")


WRONG_CONTENT = (
  {"name": 7},
  {"kind": "words"},
  {"separator_id": 10**9},
  {"separator_id": -1},
  {"separator_id": True},
  {"separator_id": "0"},
  {"library": []},
  {"library": {}},
  {"kind": "chars", "characters": ""},
  {"kind": "chars", "characters": ["a"]},
  {"gpt_jax_tokenizer": None},
)


@pytest.mark.parametrize("change", WRONG_CONTENT, ids=str)
def test_a_damaged_tokenizer_of_a_run_is_a_sentence(build, change):
  content = json.loads(build().to_json())
  stored.from_json(json.dumps(content))
  with pytest.raises(InputError):
    stored.from_json(json.dumps(content | change))


def test_the_fingerprint_tells_all_that_changes_ids_or_text(build):
  plain = build()
  changed = [
    build(normalizer={"type": "Lowercase"}),
    build(decoder=None),
    build(model={"byte_fallback": True}),
    build(pre_tokenizer=None),
    LibraryTokenizer(plain._library, plain.name, 5),
  ]
  prints = {encoder.fingerprint() for encoder in [plain, *changed]}
  assert len(prints) == 6
  # Cuts follow from the rules, not from a name that the print leaves out.
  for name in ("bpe:272", "hf:x"):
    other = LibraryTokenizer(plain._library, name, None)
    assert other._cuts == plain._cuts
    assert other.fingerprint() == plain.fingerprint()


def test_a_byte_that_is_no_utf8_is_named_as_such(build):
  for encoder in (ByteTokenizer(), build()):
    with pytest.raises(InputError, match="byte 0xe9 at position 3, which is"):
      encoder.encode(os.fsdecode(b"caf\xe9"))
    with pytest.raises(InputError, match="half of a surrogate pair"):
      encoder.encode("caf\ud800")


@pytest.mark.parametrize("spec", ["bpe:²", "bpe:" + "9" * 5000, "bpe:-300"])
def test_sizes_that_are_no_numbers_are_refused(spec):
  with pytest.raises(InputError, match="whole number from 257"):
    config.tokenizer_spec(spec)
