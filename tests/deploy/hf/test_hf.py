"""Models of the hub's layout: in, out, and in again."""

import dataclasses
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import tree
from gpt_jax.config import InputError
from gpt_jax.deploy.hf import __main__ as command
from gpt_jax.deploy.hf import (
  encoder_decoders,
  exporting,
  importing,
  stated,
  tensors,
)
from gpt_jax.machine import runtime
from gpt_jax.models import build_model
from gpt_jax.runs import workdir

pytestmark = pytest.mark.battery

HERE = pathlib.Path(__file__).parent
GOLDEN = json.loads((HERE / "golden.json").read_text())
make_golden = runpy.run_path(str(HERE / "make_golden.py"))
draw, tokens_of = make_golden["draw"], make_golden["tokens_of"]
types_of = make_golden["types_of"]
# Of the largest logit.
HALF_ERROR = 2e-2
# A Phi-3 is a Mistral whose matrices are joined, a RoBERTa a BERT whose
# positions begin later.
WRITTEN = {"phi3": "mistral", "roberta": "bert", "longrope": "llama"}


def write_source(folder: pathlib.Path, case: str, changes=()) -> str:
  """Writes a case as a folder of the hub's layout; returns its path."""
  golden = GOLDEN[case]
  folder.mkdir()
  config = golden["config"] | dict(changes)
  (folder / "config.json").write_text(json.dumps(config))
  write_tensors(folder, draw(golden["shapes"]))
  return str(folder)


def write_tensors(folder, arrays: dict, **options) -> None:
  planned = [
    tensors.Planned(name, a.dtype, a.shape, lambda a=a: a)
    for name, a in arrays.items()
  ]
  tensors.write_folder(str(folder), planned, **options)


def read_arrays(folder: str) -> dict[str, np.ndarray]:
  return {n: t.read() for n, t in tensors.open_folder(folder).items()}


def letters(folder: pathlib.Path) -> str:
  """Writes a tokenizer of 61 letters; returns its spec."""
  vocab = {chr(64 + i): i for i in range(61)}
  path = folder / "letters.json"
  library = exporting._letters(vocab, None, {"type": "Fuse"})
  path.write_text(json.dumps(library))
  return f"hf:{path}"


def bring_in(tmp_path, case: str, **changes) -> str:
  source = write_source(tmp_path / "source", case, changes)
  run = str(tmp_path / "run")
  importing.import_model(source, run, letters(tmp_path))
  return run


def inputs_of(case: str) -> tuple[np.ndarray, dict]:
  """Returns the ids that a golden case was computed of, and other arguments."""
  config, ids = GOLDEN[case]["config"], tokens_of(61).astype(np.int32)
  types, kw = types_of(config), {}
  if types is not None:
    kw["types_BT"] = types.astype(np.int32)
  if config.get("is_encoder_decoder"):
    kw["sources_BS"] = ids
    ids = make_golden["targets_of"](61).astype(np.int32)
  return ids, kw


@pytest.mark.parametrize("case", GOLDEN)
def test_an_imported_model_computes_what_transformers_does(case, tmp_path):
  _, model, params, _, mesh = workdir.open_run(bring_in(tmp_path, case))
  golden, (ids, kw) = GOLDEN[case], inputs_of(case)
  expected = np.array(golden["logits"])
  prompt, source = ids[:, :7], {}
  if "sources_BS" in kw:
    prompt, source = ids[:, :1], {"sources_BS": kw["sources_BS"][:, :7]}
  with jax.set_mesh(mesh):
    logits = jax.jit(model.apply)(params, ids, **kw)
    found = np.asarray(logits[0, -4:, :61])
    np.testing.assert_allclose(
      found, expected, rtol=0, atol=1e-4 * np.abs(expected).max()
    )
    if not model.can_generate:
      return
    prepared = model.prepare_for_decoding(params)
    cache = model.init_cache(1, 64)
    step = jax.jit(model.apply_cached)
    next_ids, start, written = jnp.asarray(prompt), 0, []
    for _ in range(make_golden["NUM_NEW"]):
      at = jnp.array([start], jnp.int32)
      logits, cache = step(prepared, next_ids, cache, at, **source)
      source = {}
      start += next_ids.shape[1]
      next_ids = logits[:, -1:, :61].argmax(-1).astype(jnp.int32)
      written.append(int(next_ids[0, 0]))
  assert written == golden["greedy"]


@pytest.mark.parametrize("case", GOLDEN)
def test_a_model_in_bfloat16_computes_nearly_the_same(case, tmp_path):
  source = pathlib.Path(write_source(tmp_path / "source", case))
  arrays = make_golden["draw_half"](case, GOLDEN[case]["shapes"])
  write_tensors(source, {n: a.astype(jnp.bfloat16) for n, a in arrays.items()})
  run, expected = str(tmp_path / "run"), np.array(GOLDEN[case]["half"])
  importing.import_model(str(source), run, letters(tmp_path))
  _, model, params, _, mesh = workdir.open_run(run)
  assert model.config.compute_dtype == "bfloat16"
  ids, kw = inputs_of(case)
  with jax.set_mesh(mesh):
    logits = jax.jit(model.apply)(params, ids, **kw)[0, -4:, :61]
  np.testing.assert_allclose(
    logits, expected, rtol=0, atol=HALF_ERROR * np.abs(expected).max()
  )


@pytest.mark.parametrize("case", GOLDEN)
def test_what_is_exported_are_the_same_tensors_and_config(case, tmp_path):
  run = bring_in(tmp_path, case)
  _, model, params, tokenizer, _ = workdir.open_run(run)
  out = tmp_path / "out"
  word = exporting.export_model(model, params, tokenizer, str(out), 20_000)
  stored = GOLDEN[case]["config"]["model_type"]
  assert word == WRITTEN.get(case, WRITTEN.get(stored, stored))
  assert len(list(out.glob("*.safetensors"))) > 1
  config = json.loads((out / "config.json").read_text())
  is_paired = config.get("is_encoder_decoder", False)
  assert config["pad_token_id"] == (0 if is_paired else None)
  given = draw(GOLDEN[case]["shapes"])
  made = read_arrays(str(out))
  if word == stored:
    assert given.keys() == made.keys()
  for name in given.keys() & made.keys():
    # Scales that are stored less one lose their last bit once.
    atol = 1.2e-7 if case.startswith("gemma") and "norm" in name else 0
    theirs = given[name]
    own = made[name]
    if case in ("roberta_bare", "bart") and "position" in name:
      theirs = theirs[2:]  # rows of padding, which a BERT does not have
      own = own[2:] if case == "bart" else own
    np.testing.assert_allclose(theirs, own, 0, atol, err_msg=name)
  sizes = stated.sizes_of(array.shape for array in given.values())
  read = lambda path: stated.read_model(
    json.loads((path / "config.json").read_text()), sizes, str(path)
  )
  default = {"num_kv_heads": 4, "head_dim": 8}
  one, other = read(tmp_path / "source"), read(out)
  assert default | one == default | other
  importing.import_model(str(out), str(tmp_path / "again"))
  _, _, again, _, _ = workdir.open_run(str(tmp_path / "again"))
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_bias_of_logits_has_both_names_where_tables_are_not_tied(tmp_path):
  run = bring_in(tmp_path, "bert")
  _, model, params, tokenizer, _ = workdir.open_run(run)
  config = dataclasses.replace(model.config, tied_embeddings=False)
  untied = params | {"unembed": params["embed"]["tokens"] + 1}
  name, twin = "cls.predictions.bias", "cls.predictions.decoder.bias"
  for own, values in ((model, params), (build_model(config), untied)):
    out = str(tmp_path / f"out_{own.config.tied_embeddings}")
    exporting.export_model(own, values, tokenizer, out)
    arrays = read_arrays(out)
    assert arrays[name].any()
    assert (twin in arrays) != own.config.tied_embeddings
  np.testing.assert_array_equal(arrays[name], arrays[twin])


@pytest.mark.wide
def test_sides_have_their_tables_where_these_are_not_tied(tmp_path):
  run = bring_in(tmp_path, "bart")
  _, model, params, tokenizer, _ = workdir.open_run(run)
  config = dataclasses.replace(model.config, tied_embeddings=False)
  untied = params | {"unembed": params["embed"]["tokens"] + 1}
  out = str(tmp_path / "out")
  exporting.export_model(build_model(config), untied, tokenizer, out)
  # Copies, as the file that they are mapped from is written over.
  arrays = {n: np.array(a) for n, a in read_arrays(out).items()}
  names = [
    f"model.{side}.embed_tokens.weight" for side in encoder_decoders.SIDES
  ]
  for name in names:
    np.testing.assert_array_equal(arrays[name], arrays["model.shared.weight"])
  importing.import_model(out, str(tmp_path / "again"))
  for name in names:
    changed = arrays | {name: arrays[name] + 1}
    write_tensors(out, changed)
    with pytest.raises(InputError, match=f"{name}, which differs from model"):
      importing.import_model(out, str(tmp_path / "other"))


def test_scaled_global_layers_leave_the_local_ones_alone(tmp_path):
  scaled = dict(rope_type="linear", factor=4.0, rope_theta=1e4)
  local = dict(rope_type="default", rope_theta=500.0)
  both = dict(full_attention=scaled, sliding_attention=local)
  run = bring_in(tmp_path, "modernbert", rope_parameters=both)
  _, model, params, tokenizer, _ = workdir.open_run(run)
  assert model.config.local_rope_theta == 500.0
  exporting.export_model(model, params, tokenizer, str(tmp_path / "out"))
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  # transformers turns local layers by a rope_scaling too.
  assert config["rope_scaling"] is None
  assert config["rope_parameters"] == both


def test_a_changed_config_computes_something_else(tmp_path):
  # The control of the golden logits: each key of the config counts.
  run = bring_in(tmp_path, "mistral", sliding_window=4)
  _, model, params, _, mesh = workdir.open_run(run)
  with jax.set_mesh(mesh):
    logits = model.apply(params, tokens_of(61).astype(np.int32))[0, -4:, :61]
  expected = np.array(GOLDEN["mistral"]["logits"])
  assert np.abs(logits - expected).max() > 1e-2


@pytest.mark.parametrize("axes", [dict(fsdp=4, tensor=2), dict(fsdp=8)])
def test_an_import_onto_devices_is_the_same(axes, tmp_path, monkeypatch):
  run = bring_in(tmp_path, "mixtral")
  _, _, params, _, _ = workdir.open_run(run)
  overrides = {f"mesh.{axis}": str(n) for axis, n in axes.items()}
  overrides = {f"mesh.{a}": "1" for a in ("data", "expert")} | overrides
  load = importing.cli.load_config
  monkeypatch.setattr(
    importing.cli, "load_config", lambda path, _: load(path, overrides)
  )
  other = str(tmp_path / "other")
  importing.import_model(str(tmp_path / "source"), other, letters(tmp_path))
  _, _, spread, _, mesh = workdir.open_run(other, overrides)
  assert mesh.size == 8
  for a, b in zip(
    jax.tree.leaves(params), jax.tree.leaves(spread), strict=True
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", ["longrope", "llama"])
def test_positions_that_an_import_leaves_out_are_said(
  case, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(runtime, "start", lambda devices: None)
  source = write_source(tmp_path / "source", case)
  words = [f"--workdir={tmp_path / 'run'}", f"--tokenizer={letters(tmp_path)}"]
  assert command.main(["import", f"--from={source}", *words]) == 0
  said = capsys.readouterr().out
  assert ("positions: in a longer text" in said) == (case == "longrope")
  assert ("It has 48 positions" in said) == (case == "longrope")


def test_a_folder_that_is_there_stays(tmp_path):
  source = write_source(tmp_path / "source", "llama")
  run = tmp_path / "run"
  run.mkdir()
  (run / "mine").write_text("")
  with pytest.raises(InputError, match="which exists"):
    importing.import_model(source, str(run), letters(tmp_path))
  assert [path.name for path in run.iterdir()] == ["mine"]


@pytest.mark.parametrize(
  "case,pattern",
  [
    ("mixtral", "dense+2*moe"),
    ("deepseek_v2", "2*moe+dense"),
    ("llama", "3*global"),
  ],
)
def test_layers_that_no_architecture_has_are_refused(case, pattern, tmp_path):
  _, model, _, _, _ = workdir.open_run(bring_in(tmp_path, case))
  defaults = config_lib.freeze(base.get_config()).model
  assert stated.choose(model.config, defaults) == case
  other = dataclasses.replace(model.config, layer_pattern=pattern)
  with pytest.raises(InputError, match="has no .*model.layer_pattern"):
    stated.choose(other, defaults)


def test_a_model_that_no_architecture_has_is_refused(tmp_path, call_verb):
  run = bring_in(tmp_path, "llama")
  _, model, params, tokenizer, _ = workdir.open_run(run)
  other = dataclasses.replace(
    model, config=dataclasses.replace(model.config, logit_softcap=3.0)
  )
  with pytest.raises(InputError, match="model.logit_softcap 3.0"):
    exporting.export_model(other, params, tokenizer, str(tmp_path / "out"))
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spec", ["bytes", "chars"])
def test_tokenizers_of_ours_are_written_for_the_library(spec):
  import tokenizers as library

  from gpt_jax.data.tokenizers.plain import ByteTokenizer, CharTokenizer

  text = "Zwölf Boxkämpfer\n\tjagen 12 'Viktor' \u6f22\u5b57 🙂 quer"
  ours = ByteTokenizer() if spec == "bytes" else CharTokenizer(text)
  described = exporting.describe_tokenizer(ours)
  theirs = library.Tokenizer.from_str(json.dumps(described))
  assert theirs.encode(text).ids == ours.encode(text).tolist()
  assert theirs.decode(ours.encode(text).tolist()) == text


def published(stories: pathlib.Path) -> str:
  text = (stories / "SOURCE.txt").read_text()
  start = text.index("\nOnce upon a time") + 1
  return text[start : text.index("\n\nPublished validation loss")]


@pytest.mark.wide
def test_a_real_model_writes_its_published_text(test_data, call_verb, tmp_path):
  stories, story = test_data / "stories260k", str(tmp_path / "run")
  importing.import_model(str(stories), story)
  expected = published(stories)
  greedy = ["--prompt=", "--temperature=0", "--num_tokens=300"]
  done = call_verb("generate", f"--workdir={story}", *greedy)
  assert done.stdout.startswith(expected), done
  done = call_verb("generate", f"--workdir={story}", *greedy, "--devices=8")
  assert done.stdout.startswith(expected)
  done = call_verb(
    "generate", f"--workdir={story}", *greedy, "--prompt=Lily likes"
  )
  assert f"{expected}" in done.stdout and "Lily likes" in done.stdout
  done = call_verb("generate", f"--workdir={story}", *greedy, "--weights=int8")
  # Rounded, a model of this size soon chooses another word.
  assert done.stdout.startswith(expected[:170])
  _, model, params, tokenizer, _ = workdir.open_run(story)
  out, again = str(tmp_path / "out"), str(tmp_path / "again")
  exporting.export_model(model, params, tokenizer, out)
  assert read_arrays(out).keys() == read_arrays(str(stories)).keys()
  importing.import_model(out, again)
  done = call_verb("generate", f"--workdir={again}", *greedy)
  assert done.stdout.startswith(expected)
  flat = tree.flatten_with_names(params)
  assert sum(leaf.size for leaf in flat.values()) == 260_032
