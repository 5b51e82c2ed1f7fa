"""500 tricky texts in tokenizers of each kind, as transformers has them."""

import json
import pathlib
import runpy

import pytest

from gpt_jax.data import tokenizers
from gpt_jax.data.tokenizers import subword
from gpt_jax.deploy.hf import exporting

HERE = pathlib.Path(__file__).parent
KINDS = json.loads((HERE / "kinds.json").read_text())
tricky = runpy.run_path(str(HERE / "make_tricky.py"))
TEXTS = tricky["texts_of"]()
RULES = "normalizer", "pre_tokenizer"


def write(folder, kind: str) -> pathlib.Path:
  path = folder / "tokenizer.json"
  path.write_text(json.dumps(KINDS[kind]["tokenizer"]))
  return path


@pytest.mark.parametrize("kind", KINDS)
def test_tricky_texts_have_the_ids_and_the_text_that_transformers_gives(
  kind, tmp_path
):
  path = write(tmp_path, kind)
  ours = tokenizers.build_tokenizer(f"hf:{path}")
  path.write_text(ours.with_start().to_json())  # of an imported run
  stored = tokenizers.load(path)
  path.write_text(json.dumps(exporting.describe_tokenizer(stored)))
  digests = KINDS[kind]["digests"]
  for each in (ours, stored, tokenizers.build_tokenizer(f"hf:{path}")):
    for text, digest in zip(TEXTS, digests, strict=True):
      ids = each.encode(text).tolist()
      assert tricky["digest_of"](ids, each.decode(ids)) == digest, text
  assert len(set(digests)) > 300


@pytest.mark.parametrize("kind", ["llama2", "mistral", "gemma", "t5", "gpt2"])
def test_a_text_is_what_its_tokens_add_one_by_one(kind, tmp_path):
  ours = tokenizers.build_tokenizer(f"hf:{write(tmp_path, kind)}")
  texts = "one two, three", "naïve 國 \N{PILE OF POO}", "a [b] {c: 1}"
  for text in texts:
    ids = ours.encode(text).tolist()
    spelled = b"".join(map(ours.spell, ids)).decode("utf-8")
    assert spelled.removeprefix(" ") == ours.decode(ids).removeprefix(" ")
    assert spelled.count(" ") >= text.count(" ")


@pytest.mark.parametrize("kind", KINDS)
def test_the_rules_of_another_kind_give_other_ids(kind, tmp_path):
  own = KINDS[kind]["tokenizer"]
  rules = lambda library: {part: library[part] for part in RULES}
  others = [rules(KINDS[other]["tokenizer"]) for other in KINDS]
  others = [other for other in others if other != rules(own)]
  assert len(others) == len(KINDS) - 1
  for other in others:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(own | other))
    wrong = tokenizers.build_tokenizer(f"hf:{path}")
    assert any(
      tricky["digest_of"](ids := wrong.encode(text).tolist(), wrong.decode(ids))
      != digest
      for text, digest in zip(TEXTS, KINDS[kind]["digests"], strict=True)
    ), other


@pytest.mark.parametrize("kind,is_ranked", [(k, k == "gpt2") for k in KINDS])
def test_a_corpus_gets_the_same_ids(kind, is_ranked, tmp_path, monkeypatch):
  monkeypatch.setattr(subword, "RANKED_CHARS", 1)
  ours = tokenizers.build_tokenizer(f"hf:{write(tmp_path, kind)}")
  found = ours.encode_batch(TEXTS)
  assert (ours._ranked is not None) == is_ranked
  pairs = zip(TEXTS, found, KINDS[kind]["digests"], strict=True)
  for text, ids, digest in pairs:
    assert tricky["digest_of"](ids.tolist(), ours.decode(ids)) == digest, text


@pytest.mark.parametrize("kind", KINDS)
def test_the_digests_are_those_of_transformers_where_it_is_installed(
  kind, tmp_path
):
  transformers = pytest.importorskip(
    "transformers", reason="extra peers is not installed"
  )
  path = write(tmp_path, kind)
  written = exporting.describe_tokenizer(
    tokenizers.build_tokenizer(f"hf:{path}")
  )
  path.write_text(json.dumps(written))
  found = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
  for text, digest in zip(TEXTS, KINDS[kind]["digests"], strict=True):
    ids = found.encode(text, add_special_tokens=False)
    back = found.decode(ids, clean_up_tokenization_spaces=False)
    assert tricky["digest_of"](ids, back) == digest, text
