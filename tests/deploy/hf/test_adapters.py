"""PEFT's adapters: what PEFT computes, and refusals of one sentence."""

import json
import pathlib

import jax
import numpy as np
import pytest
from test_hf import GOLDEN, draw, letters, tokens_of, write_source

from gpt_jax.config import InputError
from gpt_jax.deploy.hf import adapters, importing, tensors
from gpt_jax.runs import workdir

HERE = pathlib.Path(__file__).parent
ADAPTERS = json.loads((HERE / "adapters.json").read_text())
QUERY = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


def write_adapter(folder: pathlib.Path, case: str, changes=(), shapes=()):
  """Writes a case as PEFT does; a shape of None leaves a tensor out."""
  golden = ADAPTERS[case]
  config = golden["config"] | dict(changes)
  wanted = golden["shapes"] | dict(shapes)
  arrays = draw({k: v for k, v in wanted.items() if v is not None}, 2)
  planned = [
    tensors.Planned(name, a.dtype, a.shape, lambda a=a: a)
    for name, a in arrays.items()
  ]
  tensors.write_folder(str(folder), planned)
  (folder / tensors.WHOLE).rename(folder / adapters.TENSORS)
  (folder / adapters.CONFIG).write_text(json.dumps(config))
  return str(folder)


def bring_in(tmp_path, case: str, **how) -> str:
  source = write_source(tmp_path / "source", case)
  (tmp_path / "own").mkdir()
  own = write_adapter(tmp_path / "own", case, **how)
  run = str(tmp_path / "run")
  importing.import_model(source, run, letters(tmp_path), adapter=own)
  return run


@pytest.mark.wide
@pytest.mark.parametrize("case", ADAPTERS)
def test_a_merged_adapter_computes_what_peft_does(case, tmp_path):
  _, model, params, _, mesh = workdir.open_run(bring_in(tmp_path, case))
  with jax.set_mesh(mesh):
    ids = tokens_of(61).astype(np.int32)
    found = np.asarray(jax.jit(model.apply)(params, ids)[0, -4:, :61])
  expected = np.array(ADAPTERS[case]["logits"])
  most = np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * most)
  base = np.array(GOLDEN[case]["logits"])
  assert np.abs(base - expected).max() > 0.1 * most  # control


REFUSED = {
  "DoRA": ({"use_dora": True}, {}, "use_dora True"),
  "a kind": ({"peft_type": "IA3"}, {}, "peft_type 'IA3'"),
  "biases": ({"bias": "all"}, {}, "bias 'all'"),
  "an expression": ({"rank_pattern": {"(a+)+b": 2}}, {}, "name of a module"),
  "a rank of 0": ({"r": 0}, {}, "above 0"),
  "a text": ({"lora_alpha": "8"}, {}, "above 0"),
  "a rank too large": ({"r": 10**8}, {}, "at most 32"),
  "another rank": ({"r": 5}, {}, "another base"),
  "another width": ({}, {QUERY + "A.weight": [4, 16]}, "another base"),
  "half of a pair": ({}, {QUERY + "B.weight": None}, "without"),
  "a strange name": (
    {},
    {"base_model.model.model.layers.0.self_attn.w_proj.lora_A.weight": [4, 32]},
    "did you mean model.layers.0.self_attn",
  ),
  "another base": (
    {},
    {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": [4, 32]},
    "adapts no matrix of this model",
  ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_one_sentence_and_nothing_is_written(
  case, tmp_path
):
  changes, shapes, clause = REFUSED[case]
  with pytest.raises(InputError, match=clause.replace("(", r"\(")) as raised:
    bring_in(tmp_path, "llama", changes=changes, shapes=shapes)
  assert "\n" not in str(raised.value)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("letter", "AB")
def test_an_adapter_that_is_not_finite_is_named(letter, tmp_path):
  source = write_source(tmp_path / "source", "llama")
  (tmp_path / "own").mkdir()
  own = write_adapter(tmp_path / "own", "llama")
  name = f"{QUERY}{letter}.weight"
  tensor = tensors.open_folder(own, adapters.TENSORS)[name]
  np.memmap(tensor.path, np.float32, "r+", offset=tensor.start)[0] = np.inf
  with pytest.raises(InputError) as raised:
    importing.import_model(
      source, str(tmp_path / "run"), letters(tmp_path), adapter=own
    )
  where = tmp_path / "own" / adapters.TENSORS
  assert str(raised.value).startswith(f"{where} holds infinity in {name};")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "text,clause",
  [
    ('{"r": 4, "r": 8}', "the key 'r' twice"),
    ("[]", "no JSON object"),
    ("[" * 100_000, "nested too deep"),
    ("", "adapter_config.json"),
  ],
)
def test_a_hostile_config_is_one_sentence(text, clause, tmp_path):
  source = write_source(tmp_path / "source", "llama")
  (tmp_path / "own").mkdir()
  own = write_adapter(tmp_path / "own", "llama")
  (tmp_path / "own" / adapters.CONFIG).write_text(text)
  with pytest.raises(InputError, match=clause) as raised:
    importing.import_model(
      source, str(tmp_path / "run"), letters(tmp_path), adapter=own
    )
  assert "\n" not in str(raised.value)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [adapters.CONFIG, adapters.TENSORS])
def test_a_folder_that_is_no_adapter_is_refused(name, tmp_path):
  source = write_source(tmp_path / "source", "llama")
  (tmp_path / "own").mkdir()
  own = write_adapter(tmp_path / "own", "llama")
  (tmp_path / "own" / name).unlink()
  with pytest.raises(InputError, match=name):
    importing.import_model(
      source, str(tmp_path / "run"), letters(tmp_path), adapter=own
    )
