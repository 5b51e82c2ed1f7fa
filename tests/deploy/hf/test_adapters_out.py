"""Adapters that we wrote: PEFT reads them, and computes what we do."""

import hashlib
import json
import pathlib
import runpy

import jax
import numpy as np
import pytest
from test_hf import GOLDEN, letters, tokens_of

from gpt_jax import tree
from gpt_jax.config import InputError
from gpt_jax.deploy.hf import architectures, importing, layout, tensors
from gpt_jax.models import adapters
from gpt_jax.runs import workdir

HERE = pathlib.Path(__file__).parent
WRITTEN = json.loads((HERE / "written.json").read_text())
made = runpy.run_path(str(HERE / "make_written.py"))


@pytest.mark.battery
@pytest.mark.parametrize("case", WRITTEN)
def test_peft_computes_what_our_adapters_do(case, tmp_path):
  model, params, learned = made["write"](tmp_path / "all", *made["CASES"][case])
  own, golden = tmp_path / "all" / "own", WRITTEN[case]
  content = (own / made["TENSORS"]).read_bytes()
  # PEFT read this very file.
  assert hashlib.sha256(content).hexdigest() == golden["sha256"]
  assert (
    json.loads((own / "adapter_config.json").read_text()) == golden["config"]
  )
  ids = tokens_of(61).astype(np.int32)
  attached = model.attach(learned, params)
  found = np.asarray(jax.jit(model.apply)(attached, ids)[0, -4:, :61])
  expected = np.array(golden["logits"])
  most = np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * most)
  base = np.array(GOLDEN[made["CASES"][case][0]]["logits"])
  assert np.abs(base - expected).max() > 0.1 * most  # control

  if golden["config"]["use_dora"]:
    return  # which we do not read

  # Read back, they are merged into the same parameters.
  source, run = str(tmp_path / "all" / "base"), str(tmp_path / "run")
  importing.import_model(source, run, letters(tmp_path), adapter=str(own))
  back = tree.flatten_with_names(workdir.open_run(run)[2])
  for name, x in tree.flatten_with_names(adapters.merge(attached)).items():
    np.testing.assert_allclose(back[name], x, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.wide
@pytest.mark.parametrize(
  "case, rank, kind",
  [("gpt_neox", "attn=2,out=3", "dora"), ("deepseek_v2", "attn=2", "lora")],
)
def test_outputs_are_in_the_order_of_the_hubs_tensors(
  case, rank, kind, tmp_path
):
  # GPT-NeoX has queries, keys and values head by head, DeepSeek-V2 turned dims
  # in pairs of neighbours.
  folder = tmp_path / "all"
  model, params, learned = made["write"](folder, case, rank, kind)
  flat = tree.flatten_with_names(model.abstract_params()[0])
  shapes = {name: leaf.shape for name, leaf in flat.items()}
  found = architectures.ARCHITECTURES[case]
  whole = tree.flatten_with_names(adapters.merge(model.attach(learned, params)))
  base = tensors.open_folder(str(folder / "base"))
  own = tensors.open_folder(str(folder / "own"), made["TENSORS"])
  config = json.loads((folder / "own" / "adapter_config.json").read_text())
  count = 0
  for entry in layout.list_entries(found, model.config, shapes):
    name = entry.name.removesuffix(".weight")
    read = lambda key, n=name: own[f"base_model.model.{n}.lora_{key}"].read()
    if f"base_model.model.{name}.lora_A.weight" not in own:
      continue
    rank = config["rank_pattern"].get(name, config["r"])
    scale = config["alpha_pattern"].get(name, config["lora_alpha"]) / rank
    delta = scale * read("B.weight") @ read("A.weight")
    wanted = base[entry.name].read() + delta
    if kind == "dora":
      size = np.linalg.norm(wanted, axis=1)
      wanted *= (read("magnitude_vector") / size)[:, None]
    parts = [np.asarray(whole[p.path])[p.at] for p in entry.parts]
    given = entry.give(parts)
    np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-5, err_msg=name)
    count += 1
  assert count == len(own) // (3 if kind == "dora" else 2) > 3
  if kind == "lora":  # and back
    source, run = str(folder / "base"), str(tmp_path / "run")
    adapter = str(folder / "own")
    importing.import_model(source, run, letters(tmp_path), adapter=adapter)
    back = tree.flatten_with_names(workdir.open_run(run)[2])
    for name, x in whole.items():
      np.testing.assert_allclose(back[name], x, rtol=0, atol=1e-6, err_msg=name)


def test_a_part_without_an_adapter_is_left_alone(tmp_path):
  case = tmp_path / "all"
  made["write"](case, "gpt2", "v=2")
  opened = tensors.open_folder(str(case / "own"), made["TENSORS"])
  b = next(t.read() for n, t in opened.items() if "h.1.attn.c_attn.lora_B" in n)
  assert b.shape == (96, 2)
  assert not b[:64].any() and b[64:].all()


@pytest.mark.wide
def test_adapters_of_experts_are_refused(tmp_path):
  with pytest.raises(InputError, match="of experts, which PEFT does not load"):
    made["write"](tmp_path / "all", "qwen3_moe", "moe=2")
  assert not (tmp_path / "all" / "own").exists()
