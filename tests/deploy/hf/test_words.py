"""Tokenizers of imported models: in, out, and the ids of their own library."""

import json

import pytest
import tokenizers as library

from gpt_jax.data import tokenizers
from gpt_jax.deploy.hf import exporting

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
