"""Writes kinds.json: small tokenizers of each kind, read by transformers.

  python tests/deploy/hf/make_kinds.py

Needs transformers, sentencepiece and protobuf. The tokenizers are trained on
the project's own pages and on tricky texts, each with the rules of the models
that it is named after. Beside each stand the digests of make_tricky.py: what
transformers makes of 500 tricky texts.
"""

import base64
import io
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
VOCAB = 600
# Of Llama 3 (Dubey et al. 2024), as tiktoken has it.
SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Qwen takes each digit alone.
ALONE = SPLIT.replace("{1,3}", "")
# DeepSeek-V2's, one after the other; its letters are listed in the file.
STAGES = r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"\s+$", "[\u4e00-\u9fa5]+"
BYTES = [f"<0x{i:02X}>" for i in range(256)]
# What GPT-NeoX has one token for: two spaces and more.
RUNS = [" " * count for count in range(2, 25)]
# A few of the rules of the table by which T5 and Marian normalize.
RULES = {
  "\ufb01": "fi",
  "\u2167": "VIII",
  "\u00bd": "1/2",
  "\uff21": "A",
  "\uff11": "1",
  "e\u0301": "\u00e9",
  "\u200b": "",
  **dict.fromkeys("\u00a0\u2003\u3000\t\n", " "),
}


def byte_level(*first, normalizer=None) -> tuple[tokenizers.Tokenizer, object]:
  """Returns byte pairs of words; first: what splits a text, GPT-2's if none.

  A step that is no pre-tokenizer is a regular expression.
  """
  made = tokenizers.Tokenizer(models.BPE())
  made.normalizer = normalizer
  is_gpt2 = not any(isinstance(step, str) for step in first)
  words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=is_gpt2)
  split = lambda step: (
    pre_tokenizers.Split(Regex(step), "isolated")
    if isinstance(step, str)
    else step
  )
  steps = [*map(split, first), words]
  made.pre_tokenizer = (
    pre_tokenizers.Sequence(steps) if len(steps) > 1 else words
  )
  made.decoder = decoders.ByteLevel()
  return made, trainers.BpeTrainer(
    vocab_size=VOCAB,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    special_tokens=["<|endoftext|>"],
    show_progress=False,
  )


def neox() -> tuple[tokenizers.Tokenizer, object]:
  made, trainer = byte_level(normalizer=normalizers.NFC())
  runs = [tokenizers.AddedToken(run, normalized=True) for run in RUNS]
  made.add_tokens(runs)
  return made, trainer


def wordpiece(lowercase: bool) -> tuple[tokenizers.Tokenizer, object]:
  made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
  made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
  made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  made.decoder = decoders.WordPiece()
  return made, trainers.WordPieceTrainer(
    vocab_size=VOCAB,
    special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    show_progress=False,
  )


def charsmap() -> str:
  """Returns the table of RULES as sentencepiece compiles it, in base64."""
  import sentencepiece
  from sentencepiece import sentencepiece_model_pb2

  codes = lambda text: " ".join(f"{ord(char):04X}" for char in text)
  made = io.BytesIO()
  with tempfile.NamedTemporaryFile("w", suffix=".tsv") as table:
    table.write("".join(f"{codes(a)}\t{codes(b)}\n" for a, b in RULES.items()))
    table.flush()
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(pages()),
      model_writer=made,
      vocab_size=200,
      normalization_rule_tsv=table.name,
      minloglevel=2,
    )
  read = sentencepiece_model_pb2.ModelProto.FromString(made.getvalue())
  return base64.b64encode(read.normalizer_spec.precompiled_charsmap).decode()


def unigram() -> tuple[tokenizers.Tokenizer, object]:
  made = tokenizers.Tokenizer(models.Unigram())
  table = base64.b64decode(charsmap())
  made.normalizer = normalizers.Sequence(
    [normalizers.Precompiled(table), normalizers.Replace(Regex(" {2,}"), " ")]
  )
  made.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.WhitespaceSplit(),
      pre_tokenizers.Metaspace(prepend_scheme="always"),
    ]
  )
  made.decoder = decoders.Metaspace(prepend_scheme="always")
  return made, trainers.UnigramTrainer(
    vocab_size=VOCAB,
    special_tokens=["<pad>", "</s>", "<unk>"],
    unk_token="<unk>",
    show_progress=False,
  )


def byte_fallback(form: str) -> tuple[tokenizers.Tokenizer, object]:
  made = tokenizers.Tokenizer(
    models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
  )
  space, mark = normalizers.Replace(" ", "\u2581"), "\u2581"
  steps = [decoders.Replace(mark, " "), decoders.ByteFallback()]
  steps.append(decoders.Fuse())
  if form == "gemma":
    made.normalizer = space
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  elif form == "mistral":
    made.pre_tokenizer = pre_tokenizers.Metaspace(
      prepend_scheme="first", split=False
    )
  else:
    made.normalizer = normalizers.Sequence([normalizers.Prepend(mark), space])
  if form != "gemma":
    steps.append(decoders.Strip(" ", 1, 0))
  made.decoder = decoders.Sequence(steps)
  return made, trainers.BpeTrainer(
    vocab_size=VOCAB + len(BYTES),
    special_tokens=["<unk>", "<s>", "</s>", *BYTES],
    max_token_length=12,
    show_progress=False,
  )


# {the first model of a kind: its tokenizer}; with the same rules have
# gpt2: RoBERTa, BART; llama3: OLMo 2, Phi-4; qwen2: Qwen2.5 and 3;
# neox: Pythia, ModernBERT; bert: all-MiniLM; t5: Marian; gemma: Gemma 2 and 3;
# llama2: TinyLlama, Phi-3, Mixtral.
KINDS = {
  "gpt2": byte_level,
  "llama3": lambda: byte_level(SPLIT),
  "qwen2": lambda: byte_level(ALONE, normalizer=normalizers.NFC()),
  "neox": neox,
  "deepseek": lambda: byte_level(
    *STAGES, pre_tokenizers.Digits(individual_digits=True)
  ),
  "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
  "bert": lambda: wordpiece(True),
  "bert_cased": lambda: wordpiece(False),
  "t5": unigram,
  "llama2": lambda: byte_fallback("llama2"),
  "mistral": lambda: byte_fallback("mistral"),
  "gemma": lambda: byte_fallback("gemma"),
}

# What is put around a text that is not read on from.
AROUND = {
  **dict.fromkeys(("bert", "bert_cased"), "[CLS] $A [SEP]"),
  "t5": "$A </s>",
  **dict.fromkeys(("llama2", "mistral"), "<s> $A"),
}


def pages() -> list[str]:
  """Returns what a tokenizer is trained on.

  Texts like those that it is tested by make tokens at which rules differ.
  """
  found = sorted((HERE.parents[2] / "docs").glob("*.md"))
  lines = [line for page in found for line in page.read_text().split("\n\n")]
  tricky = runpy.run_path(str(HERE / "make_tricky.py"))
  return lines + [
    text for seed in range(1, 5) for text in tricky["texts_of"](seed)
  ]


def build(kind: str) -> tokenizers.Tokenizer:
  made, trainer = KINDS[kind]()
  made.train_from_iterator(pages(), trainer)
  if kind in AROUND:
    marks = [word for word in AROUND[kind].split() if word != "$A"]
    made.post_processor = processors.TemplateProcessing(
      AROUND[kind],
      special_tokens=[(word, made.token_to_id(word)) for word in marks],
    )
  if BYTES[0] not in made.get_vocab():
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
