"""Writes adapters.json: models with LoRA adapters, computed by PEFT.

  python tests/deploy/hf/make_adapters.py   (needs torch, transformers, peft)

Bases are those of golden.json, and adapters are drawn as they are.
"""

import json
import pathlib
import runpy
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).parent
CASES = {
  "gpt2": dict(
    r=4,
    lora_alpha=8,
    target_modules=["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"],
    fan_in_fan_out=True,
    rank_pattern={"c_fc": 2},
  ),
  "llama": dict(
    r=4,
    lora_alpha=6,
    target_modules=["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
    alpha_pattern={"layers.1.self_attn.q_proj": 3},
    use_rslora=True,
  ),
}


def main() -> None:
  import peft
  import safetensors.torch
  import torch
  import transformers

  golden = json.loads((HERE / "golden.json").read_text())
  made = runpy.run_path(str(HERE / "make_golden.py"))
  found = {}
  for case, options in CASES.items():
    with tempfile.TemporaryDirectory() as folder:
      base, own = pathlib.Path(folder) / "base", pathlib.Path(folder) / "own"
      base.mkdir()
      (base / "config.json").write_text(json.dumps(golden[case]["config"]))
      arrays = made["draw"](golden[case]["shapes"])
      save = lambda path, arrays: safetensors.torch.save_file(
        {k: torch.from_numpy(v) for k, v in arrays.items()},
        path,
        {"format": "pt"},
      )
      save(base / "model.safetensors", arrays)
      load = lambda base=base: (
        transformers.AutoModelForCausalLM.from_pretrained(
          base, attn_implementation="eager"
        )
      )
      config = peft.LoraConfig(**options)
      peft.get_peft_model(load(), config).save_pretrained(own)
      path = own / "adapter_model.safetensors"
      shapes = {
        k: list(v.shape) for k, v in safetensors.torch.load_file(path).items()
      }
      save(path, made["draw"](shapes, 2))
      model = peft.PeftModel.from_pretrained(load(), own).eval()
      ids = torch.from_numpy(made["tokens_of"](61))
      with torch.no_grad():
        logits = model(ids).logits[0, -4:].double().numpy()
      written = json.loads((own / "adapter_config.json").read_text())
    written["target_modules"] = sorted(written["target_modules"])
    found[case] = {
      "config": written | {"base_model_name_or_path": None},
      "shapes": shapes,
      "logits": np.round(logits, 6).tolist(),
    }
    print(case, np.abs(logits).max())
  text = json.dumps(found, separators=(",", ":"))
  (HERE / "adapters.json").write_text(text + "\n")


if __name__ == "__main__":
  main()
