"""Writes tricky.json: what transformers makes of 500 tricky texts.

  python tests/deploy/hf/make_tricky.py PATH/stories260k

Needs transformers. For each text the first digits of the SHA-256 of its ids and
of their text. No text spells a special token: ours reads none from text.
"""

import hashlib
import json
import pathlib
import random
import sys

HERE = pathlib.Path(__file__).parent
PIECES = {
  "spaces": [" ", "  ", "   " * 9, "\t", "\n", "\r\n", "\n\n\n", "\u00a0"]
  + ["\u2003", "\u3000", "\u200b", "\ufeff", "\u2028", "\u2581", "\u2581a "],
  "words": ["Once upon a time", "Lily", "don't", "I'M", "na\u00efve", "e\u0301"]
  + ["\ufb01ve", "\u00df", "Zw\u00f6lf", "aaaaaaaaaaaaaaaaaaaaaaaa", "x" * 99],
  "emoji": ["\U0001f642", "\U0001f468\u200d\U0001f469\u200d\U0001f467"]
  + ["\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f"],
  "cjk": ["\u6f22\u5b57", "\u3072\u3089\u304c\u306a", "\ud55c\uad6d\uc5b4"]
  + ["\u3002\u300c\u300d", "\U00020000", "\uff21\uff11"],
  "right to left": [
    "\u05e9\u05dc\u05d5\u05dd",
    "\u0645\u0631\u062d\u0628\u0627",
  ]
  + ["\u0627\u0644\u0644\u0651\u0647", "\u200fabc\u200e", "\u202e123\u202c"],
  "code": [
    "def f(x):\n    return x**2",
    "a[i]+=b->c;",
    "<br/>",
    "0x7fFF",
    "::=>",
  ]
  + ['{"k": [1, 2e-3]}', "\\n\\t\\\\", "$x_{i}^2$", "https://a.b/c?d=e#f"],
  "numbers": [
    "1234567890",
    "3.14",
    "-1e-9",
    "\u00bd",
    "\u2167",
    "\u0661\u0662",
  ],
  "controls": [chr(i) for i in (0, 1, 7, 8, 11, 12, 27, 127, 0x85, 0x9F)],
  "rare": ["\u0e01\u0e33", "\u0928\u092e\u0938\u094d\u0924\u0947", "\ufffd"]
  + ["\U0010ffff", "\ue000", "a\u0300\u0301\u0302", "\u1100\u1161"],
}


def texts_of(seed: int = 0) -> list[str]:
  """Returns the texts; those of other seeds have the same pieces."""
  draw, found = random.Random(seed), [""]
  kinds = list(PIECES.values())
  while len(found) < 500:
    pieces = [
      draw.choice(draw.choice(kinds)) for _ in range(draw.randint(1, 8))
    ]
    text = draw.choice(["", " ", "\n"]).join(pieces)
    found += [text] if text not in found else []
  return found


def digest_of(ids: list[int], text: str) -> str:
  """Returns what is stored of a text's ids and of their text."""
  return hashlib.sha256(json.dumps([ids, text]).encode()).hexdigest()[:8]


def main() -> None:
  import transformers

  # Not AutoTokenizer: for a Llama it makes rules of its own in place of the
  # file's, which treat a space that begins a text otherwise.
  path = str(pathlib.Path(sys.argv[1]) / "tokenizer.json")
  found = transformers.PreTrainedTokenizerFast(tokenizer_file=path)
  digests = []
  for text in texts_of():
    ids = found.encode(text, add_special_tokens=False)
    back = found.decode(ids, clean_up_tokenization_spaces=False)
    digests.append(digest_of(ids, back))
  (HERE / "tricky.json").write_text(json.dumps(digests) + "\n")
  print(len(set(texts_of())), "texts")


if __name__ == "__main__":
  main()
