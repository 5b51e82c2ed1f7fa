"""Writes sentences.json: what transformers makes of sentences.

  python tests/inference/make_sentences.py PATH/all-MiniLM-L6-v2

Needs torch and transformers. The vectors are those of sentence-transformers:
the mean over the tokens, at most 256, of length one.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
SENTENCES = [
  "This is an example sentence.",
  "Each sentence is converted",
  "The weather in Zürich was lovely, wasn't it? 12.5 °C!",
  "漢字 and emoji 🙂 in one line",
  "def f(x): return x ** 2",
  " ".join(f"word{i}" for i in range(300)),
]


def main() -> None:
  import torch
  import transformers

  folder = pathlib.Path(sys.argv[1])
  path = str(folder / "tokenizer.json")
  words = transformers.PreTrainedTokenizerFast(tokenizer_file=path)
  model = transformers.AutoModel.from_pretrained(folder).float().eval()
  vectors = []
  for text in SENTENCES:
    ids = words(text, truncation=True, max_length=256, padding=False).input_ids
    with torch.no_grad():
      states = model(torch.tensor([ids])).last_hidden_state[0]
    vector = torch.nn.functional.normalize(states.double().mean(0), dim=0)
    vectors.append([round(x, 7) for x in vector.tolist()])
  text = json.dumps(vectors, separators=(",", ":")) + "\n"
  (HERE / "sentences.json").write_text(text)


if __name__ == "__main__":
  main()
