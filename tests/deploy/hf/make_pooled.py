"""Writes pooled.json: small poolers and classifiers, by transformers.

  python tests/deploy/hf/make_pooled.py

Needs torch and transformers. Weights are drawn as make_golden.py draws them.
"""

import json
import pathlib
import runpy

import numpy as np

HERE = pathlib.Path(__file__).parent
make_golden = runpy.run_path(str(HERE / "make_golden.py"))
BERT, ROBERTA = make_golden["BERT"], make_golden["ROBERTA"]
NAMES = {"id2label": {0: "bad", 1: "good", 2: "fair"}}
CASES = {
  "bert_bare": ("BertModel", BERT),
  "bert": ("BertForPreTraining", BERT),
  "roberta_bare": ("RobertaModel", ROBERTA),
  "bert_classes": ("BertForSequenceClassification", BERT | NAMES),
  "roberta_classes": ("RobertaForSequenceClassification", ROBERTA | NAMES),
  "bert_number": ("BertForSequenceClassification", BERT | {"num_labels": 1}),
}


def main() -> None:
  import tempfile

  import safetensors.torch
  import torch
  import transformers

  found = {}
  for case, (name, options) in CASES.items():
    word = case.partition("_")[0]
    config = transformers.AutoConfig.for_model(word, **options)
    config._attn_implementation = "eager"
    auto = getattr(transformers, name)
    with tempfile.TemporaryDirectory() as folder:
      auto(config).save_pretrained(folder)
      weights = pathlib.Path(folder) / "model.safetensors"
      shapes = {
        key: list(tensor.shape)
        for key, tensor in safetensors.torch.load_file(weights).items()
      }
      drawn = make_golden["draw"](shapes).items()
      new = {key: torch.from_numpy(array) for key, array in drawn}
      safetensors.torch.save_file(new, weights, {"format": "pt"})
      model = auto.from_pretrained(folder, attn_implementation="eager").eval()
      written = json.loads((pathlib.Path(folder) / "config.json").read_text())
    ids = torch.from_numpy(make_golden["tokens_of"](61))
    given, types = {}, make_golden["types_of"](written)
    if types is not None:
      given["token_type_ids"] = torch.from_numpy(types)
    if word == "roberta":  # whose positions skip the token of padding
      given["position_ids"] = 2 + torch.arange(ids.shape[1])[None]
    trunk = getattr(model, word, model)
    with torch.no_grad():
      out = (model if "Sequence" in name else trunk)(ids, **given)
    scores = out.logits if "Sequence" in name else out.pooler_output
    values = np.round(scores[0].double().numpy(), 6).tolist()
    found[case] = {"config": written, "shapes": shapes, "values": values}
    print(case, values[:4], sorted(shapes)[-6:])
  text = json.dumps(found, separators=(",", ":")) + "\n"
  (HERE / "pooled.json").write_text(text)


if __name__ == "__main__":
  main()
