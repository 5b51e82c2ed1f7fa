"""Tokenizers of imported models: in, out, and the ids of their own library."""

import dataclasses
import json
import pathlib
import runpy
import types

import pytest
import tokenizers as library

from configs import base
from gpt_jax import config as config_lib
from gpt_jax.data import objectives, tokenizers
from gpt_jax.data.prepare import PreparedData
from gpt_jax.deploy.hf import exporting
from gpt_jax.inference import embedding

HERE = pathlib.Path(__file__).parent
WORDS = (
  *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "token", "##s", "##ken"),
  *("to", ",", ".", "2", "##0", "de", "##ja"),
)


def build(kind: str) -> library.Tokenizer:
  """Returns a tokenizer as BERT or T5 has it, small."""
  processors = library.processors
  if kind == "wordpiece":
    made = library.Tokenizer(
      library.models.WordPiece(
        {word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"
      )
    )
    made.normalizer = library.normalizers.BertNormalizer()
    made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    made.decoder = library.decoders.WordPiece()
    made.add_special_tokens(list(WORDS[:5]))
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made
  made = library.Tokenizer(
    library.models.Unigram(
      [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
      + [(c, -3.0 - i / 9) for i, c in enumerate("abcdetokns.,")]
      + [("▁token", -4.0), ("en", -3.5)],
      unk_id=2,
    )
  )
  made.pre_tokenizer = library.pre_tokenizers.Metaspace()
  made.decoder = library.decoders.Metaspace()
  made.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra_id_0>"])
  made.post_processor = processors.TemplateProcessing(
    "$A </s>", special_tokens=[("</s>", 1)]
  )
  return made


@pytest.mark.parametrize(
  "kind,end,named",
  [
    (
      "wordpiece",
      "[SEP]",
      dict(mask="[MASK]", cls="[CLS]", sep="[SEP]", pad="[PAD]", unk="[UNK]"),
    ),
    ("unigram", "</s>", dict(pad="<pad>", unk="<unk>", eos="</s>")),
  ],
)
def test_a_tokenizer_goes_in_and_out_with_its_ids(kind, end, named, tmp_path):
  theirs = build(kind)
  path = tmp_path / "tokenizer.json"
  theirs.save(str(path))
  ours = tokenizers.build_tokenizer(f"hf:{path}")
  assert ours.separator_id == theirs.token_to_id(end)
  written = exporting.describe_tokenizer(ours)
  again = library.Tokenizer.from_str(json.dumps(written))
  for text in ("a token, tokens.", "Déjà 200", " 國 to\tken  ", ""):
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text).tolist() == ids
    assert again.encode(text).ids == theirs.encode(text).ids
  roles = exporting.describe_roles(ours, written)
  assert (
    named.items()
    <= {
      role.removesuffix("_token"): word for role, word in roles.items()
    }.items()
  )


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_text_to_embed_is_cut_within_what_its_library_puts_around_it(
  kind, tmp_path
):
  theirs = build(kind)
  theirs.enable_truncation(99)  # which is not read
  theirs.save(str(tmp_path / "tokenizer.json"))
  ours = tokenizers.build_tokenizer(f"hf:{tmp_path / 'tokenizer.json'}")
  ours, texts = ours.with_start(), ["a token, tokens.", "", "a", "token " * 50]
  for limit in (4, 200):
    theirs.enable_truncation(limit)
    expected = [theirs.encode(text).ids for text in texts]
    found = embedding.encode(ours, texts, limit)
    assert [ids.tolist() for ids in found] == expected
  whole = theirs.encode(texts[-1], add_special_tokens=False).ids
  assert ours.encode(texts[-1]).tolist() == whole  # which is not cut
  plain = tokenizers.build_tokenizer("bytes")
  (ids,) = embedding.encode(plain, ["abc"], 3)
  assert ids.tolist() == [plain.separator_id, *b"ab"]


@pytest.mark.parametrize(
  "kind,start,end", [("unigram", 0, 1), ("wordpiece", 3, 3)]
)
def test_a_source_has_the_ids_that_its_library_puts_around_it(
  kind, start, end, tmp_path
):
  theirs = build(kind)
  path = tmp_path / "tokenizer.json"
  theirs.save(str(path))
  ours = tokenizers.build_tokenizer(f"hf:{path}").with_pairs(start, end)
  path.write_text(ours.to_json())
  ours = tokenizers.load(path)
  config = base.get_config()
  config.data.objective = "sequence_to_sequence"
  config.model.family = "encoder_decoder"
  asks = objectives.prompting(config_lib.freeze(config), ours)
  text = "a token, tokens."
  assert asks.encode(text).tolist() == theirs.encode(text).ids
  assert (*asks.target_start_ids, asks.separator_id) == (start, end)
  assert asks.vocab_size == ours.vocab_size  # and no marks after it
  ids = ours.encode(text).tolist()
  assert asks.decode([start, *ids, end]) == ours.decode(ids)
  frozen = config_lib.freeze(config)
  size = dataclasses.replace(frozen.model, vocab_size=ours.vocab_size)
  frozen = dataclasses.replace(frozen, model=size)
  prepared = types.SimpleNamespace(
    labels=None, tokenizer=ours, vocab_size=ours.vocab_size
  )
  assert PreparedData.resolve_vocab(prepared, frozen) == frozen
  layout = objectives.find_layout(config_lib.freeze(config), lambda: ours)
  assert (layout.start, layout.end) == (start, end)


def test_500_tricky_texts_have_the_ids_and_the_text_that_transformers_gives(
  test_data, tmp_path
):
  tricky = runpy.run_path(str(HERE / "make_tricky.py"))
  digests = json.loads((HERE / "tricky.json").read_text())
  stories = test_data / "stories260k" / "tokenizer.json"
  ours = tokenizers.build_tokenizer(f"hf:{stories}")
  path = tmp_path / "tokenizer.json"  # of an imported run, and exported
  path.write_text(ours.with_start().to_json())
  stored = tokenizers.load(path)
  path.write_text(json.dumps(exporting.describe_tokenizer(stored)))
  for each in (ours, stored, tokenizers.build_tokenizer(f"hf:{path}")):
    found = []
    for text in tricky["texts_of"]():
      ids = each.encode(text).tolist()
      found.append(tricky["digest_of"](ids, each.decode(ids)))
    assert found == digests
  assert len(set(digests)) > 490
