"""Writes written.json: what PEFT computes with adapters that we wrote.

  python tests/deploy/hf/make_written.py DIR   (the project's Python)
  python tests/deploy/hf/make_written.py DIR   (one that has torch and peft)

The first call writes bases and adapters below DIR, the second reads them.
"""

import hashlib
import importlib.util
import json
import pathlib
import runpy
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
TENSORS = "adapter_model.safetensors"
# {case: (base, adapter.rank, adapter.kind)}
CASES = {
  "gpt2": ("gpt2", "attn=4,k=2,in=3", "lora"),
  "llama": ("llama", "[qvo]=4,mlp=2,gate=5", "lora"),
  "gpt2_dora": ("gpt2", "q=4,v=2,blocks/mlp/out=3", "dora"),
  "llama_dora": ("llama", "attn=3,gate=2", "dora"),
}


def write(folder: pathlib.Path, case: str, rank: str, kind: str = "lora"):
  """Writes the base and our adapters of a case; returns (model, arrays)."""
  import dataclasses
  import tempfile

  import jax

  sys.path[:0] = [str(HERE), str(HERE.parents[1])]
  from test_hf import letters, write_source

  from gpt_jax import tree
  from gpt_jax.config import AdapterConfig
  from gpt_jax.deploy.hf import adapters_out, importing
  from gpt_jax.runs import workdir

  folder.mkdir()
  source = write_source(folder / "base", case)
  with tempfile.TemporaryDirectory() as temporary:
    run, own = f"{temporary}/run", pathlib.Path(temporary)
    importing.import_model(source, run, letters(own))
    _, model, params, *_ = workdir.open_run(run, {}, lambda line: None)
  section = AdapterConfig(rank=rank, alpha=6.0, kind=kind, base="full")
  model = dataclasses.replace(model, adapter=section)
  shapes, _ = model.abstract_learned()
  names = {n: x.shape for n, x in tree.flatten_with_names(shapes).items()}
  drawn = runpy.run_path(str(HERE / "make_golden.py"))["draw"](names, 3)
  for name in names:
    if name.endswith("magnitude"):
      drawn[name] = drawn[name] + np.float32(1)
  structure = jax.tree.structure(shapes)
  learned = jax.tree.unflatten(structure, [drawn[name] for name in names])
  base = params if kind == "dora" else None
  adapters_out.export_adapters(model, learned, base, str(folder / "own"))
  return model, params, learned


def read(folder: pathlib.Path, case: str) -> dict:
  """Returns PEFT's logits of a case, and the hash of the file that it read."""
  import peft
  import torch
  import transformers

  made = runpy.run_path(str(HERE / "make_golden.py"))
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder / "base", attn_implementation="eager"
  )
  model = peft.PeftModel.from_pretrained(model, folder / "own").eval()
  ids = torch.from_numpy(made["tokens_of"](61))
  with torch.no_grad():
    logits = model(ids).logits[0, -4:].double().numpy()
  content = (folder / "own" / TENSORS).read_bytes()
  print(case, np.abs(logits).max())
  return {
    "sha256": hashlib.sha256(content).hexdigest(),
    "config": json.loads((folder / "own" / "adapter_config.json").read_text()),
    "logits": np.round(logits, 6).tolist(),
  }


def main() -> None:
  folder = pathlib.Path(sys.argv[1])
  if importlib.util.find_spec("peft") is None:
    folder.mkdir()
    for case in CASES:
      write(folder / case, *CASES[case])
    return
  found = {case: read(folder / case, case) for case in CASES}
  text = json.dumps(found, separators=(",", ":"))
  (HERE / "written.json").write_text(text + "\n")


if __name__ == "__main__":
  main()
