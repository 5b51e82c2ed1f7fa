"""Writes kinds.json: small tokenizers of each kind, read by transformers.

  python tests/deploy/hf/make_kinds.py

Needs transformers. The tokenizers are trained on the project's own pages, in
the forms of GPT-2, Llama 3, BERT, T5 and Llama 2. Beside each stand the digests
of make_tricky.py: what transformers makes of 500 tricky texts.
"""

import json
import pathlib
import runpy
import tempfile

import tokenizers
from tokenizers import (
  Regex,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

HERE = pathlib.Path(__file__).parent
VOCAB = 420
# Of Llama 3 (Dubey et al. 2024), as tiktoken has it.
SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def byte_level(first) -> tuple[tokenizers.Tokenizer, object]:
  made = tokenizers.Tokenizer(models.BPE())
  words = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=first is None
  )
  made.pre_tokenizer = words
  if first is not None:
    split = pre_tokenizers.Split(first, "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, words])
  made.decoder = decoders.ByteLevel()
  return made, trainers.BpeTrainer(
    vocab_size=VOCAB,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    special_tokens=["<|endoftext|>"],
    show_progress=False,
  )


def wordpiece() -> tuple[tokenizers.Tokenizer, object]:
  made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
  made.normalizer = normalizers.BertNormalizer(lowercase=True)
  made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  made.decoder = decoders.WordPiece()
  return made, trainers.WordPieceTrainer(
    vocab_size=VOCAB,
    special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    show_progress=False,
  )


def unigram() -> tuple[tokenizers.Tokenizer, object]:
  made = tokenizers.Tokenizer(models.Unigram())
  made.normalizer = normalizers.Sequence(
    [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
  )
  made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
  made.decoder = decoders.Metaspace(prepend_scheme="always")
  return made, trainers.UnigramTrainer(
    vocab_size=VOCAB,
    special_tokens=["<pad>", "</s>", "<unk>"],
    unk_token="<unk>",
    show_progress=False,
  )


def byte_fallback() -> tuple[tokenizers.Tokenizer, object]:
  made = tokenizers.Tokenizer(
    models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
  )
  made.normalizer = normalizers.Sequence(
    [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
  )
  made.decoder = decoders.Sequence(
    [
      decoders.Replace("\u2581", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  return made, trainers.BpeTrainer(
    vocab_size=VOCAB + len(BYTES),
    special_tokens=["<unk>", "<s>", "</s>", *BYTES],
    max_token_length=12,
    show_progress=False,
  )


KINDS = {
  "gpt2": lambda: byte_level(None),
  "llama3": lambda: byte_level(Regex(SPLIT)),
  "bert": wordpiece,
  "t5": unigram,
  "llama2": byte_fallback,
}

# What is put around a text that is not read on from.
AROUND = {"bert": "[CLS] $A [SEP]", "t5": "$A </s>", "llama2": "<s> $A"}


def pages() -> list[str]:
  """Returns the lines that a tokenizer is trained on."""
  found = sorted((HERE.parents[2] / "docs").glob("*.md"))
  return [line for page in found for line in page.read_text().splitlines()]


def build(kind: str) -> tokenizers.Tokenizer:
  made, trainer = KINDS[kind]()
  made.train_from_iterator(pages(), trainer)
  if kind in AROUND:
    marks = [word for word in AROUND[kind].split() if word != "$A"]
    made.post_processor = processors.TemplateProcessing(
      AROUND[kind],
      special_tokens=[(word, made.token_to_id(word)) for word in marks],
    )
  if kind != "llama2":
    return made
  # Bytes are tokens, and no special ones: a text may well be made of them.
  read = json.loads(made.to_str())
  read["added_tokens"] = [
    token for token in read["added_tokens"] if token["content"] not in BYTES
  ]
  return tokenizers.Tokenizer.from_str(json.dumps(read))


def main() -> None:
  import transformers

  tricky = runpy.run_path(str(HERE / "make_tricky.py"))
  written = {}
  for kind in KINDS:
    made = build(kind)
    with tempfile.TemporaryDirectory() as folder:
      path = f"{folder}/tokenizer.json"
      made.save(path)
      found = transformers.PreTrainedTokenizerFast(tokenizer_file=path)
    digests = []
    for text in tricky["texts_of"]():
      ids = found.encode(text, add_special_tokens=False)
      back = found.decode(ids, clean_up_tokenization_spaces=False)
      digests.append(tricky["digest_of"](ids, back))
    written[kind] = {"tokenizer": json.loads(made.to_str()), "digests": digests}
    print(kind, made.get_vocab_size(), len(set(digests)))
  text = json.dumps(written, separators=(",", ":"), ensure_ascii=True)
  (HERE / "kinds.json").write_text(text + "\n")


if __name__ == "__main__":
  main()
