"""Files of strangers: a sentence each, and nothing made by their numbers."""

import itertools
import json
import os
import pathlib
import runpy

import pytest

from gpt_jax.config import InputError
from gpt_jax.deploy.hf import __main__ as command
from gpt_jax.deploy.hf import (
  architectures,
  exporting,
  importing,
  stated,
  tensors,
)
from gpt_jax.machine import runtime

pytestmark = pytest.mark.battery

HERE = pathlib.Path(__file__).parent
make_golden = runpy.run_path(str(HERE / "make_golden.py"))
GOLDEN = json.loads((HERE / "golden.json").read_text())
POOLED = json.loads((HERE / "pooled.json").read_text())
# {architecture: a golden case}
CASES = {
  word: golden
  for golden in (*GOLDEN.values(), *POOLED.values())
  for word, found in architectures.ARCHITECTURES.items()
  if found is stated.find(golden["config"], "")
}
# As text of JSON, which may hold what Python would not write.
VALUES = (
  *("-1", "0", "2.5", "true", '"12"', "null", "NaN", "1e400", "[]", "{}"),
  *("90000", "1000000000", "1000000000000", "1" + "0" * 30),
)
# Keys of rope that are read by code, not by a table.
ROPE = ("rope_theta", "rope_scaling", "rope_parameters")


class Reached(Exception):
  """The import would make the model now."""


def write(folder: pathlib.Path, word: str) -> pathlib.Path:
  folder.mkdir()
  golden = CASES[word]
  arrays = make_golden["draw"](golden["shapes"])
  planned = [
    tensors.Planned(name, a.dtype, a.shape, lambda a=a: a)
    for name, a in arrays.items()
  ]
  tensors.write_folder(str(folder), planned)
  (folder / "config.json").write_text(json.dumps(golden["config"]))
  vocab = {chr(64 + i): i for i in range(61)}
  library = exporting._letters(vocab, None, {"type": "Fuse"})
  (folder / "tokenizer.json").write_text(json.dumps(library))
  return folder


def list_keys(word: str) -> dict[str, str | None]:
  """Returns {key of theirs: field of ours}."""
  found = architectures.ARCHITECTURES[word]
  keys = {
    name: key.ours
    for key in found.keys
    for name in (key.theirs, key.alias)
    if name is not None
  }
  others = [*found.wanted, "model_type", *(ROPE if found.has_rope else ())]
  if found.fixed.get("family") == "encoder_decoder":
    others += ["decoder_start_token_id", "eos_token_id"]
  if found.rope_frac is not None:
    others += ["rotary_pct", "rotary_emb_base"]
    others.remove("rope_theta")  # which its class does not read
  if found.pattern is not None:
    others += ["layer_types", found.pattern.key, found.pattern.theta]
    others += ["query_pre_attn_scalar"] * found.pattern.scalar
    if found.pattern.is_first:  # whose class has another name for it
      others[others.index("rope_theta")] = "global_rope_theta"
  if found.has_dense:
    others += ["qk_nope_head_dim", "first_k_dense_replace"]
  return keys | dict.fromkeys(filter(None, others))


@pytest.mark.parametrize("word", architectures.ARCHITECTURES)
def test_a_number_is_bounded_before_anything_is_made(
  word, tmp_path, monkeypatch
):
  assert word in CASES, "add a golden case"
  source = write(tmp_path / "source", word)
  seen = []

  def stop(model, _):
    seen.append(model)
    raise Reached

  monkeypatch.setattr(importing, "build_model", stop)
  config = CASES[word]["config"]
  kinds = {"rope_scaling", "rope_parameters", "layer_types", "mlp_only_layers"}
  for (key, ours), value in itertools.product(list_keys(word).items(), VALUES):
    # The newer form of a key would hide the older.
    found = architectures.ARCHITECTURES[word].keys
    hidden = {key} | {each.theirs for each in found if each.alias == key}
    is_rope = any(part in key for part in ("rope_", "rotary_"))
    hidden |= {"rope_parameters"} if is_rope else set()
    period = "layer_types" if key.endswith(("_pattern", "_layers")) else key
    hidden |= (
      {period}
      if word in ("modernbert", "modernbert_bare", "gemma3_text")
      else set()
    )
    stated_ = {k: v for k, v in config.items() if k not in hidden}
    text = json.dumps(stated_)[:-1] + f', "{key}": {value}}}'
    (source / "config.json").write_text(text)
    label = f"{key}: {value}"
    try:
      importing.import_model(str(source), str(tmp_path / "run"))
    except InputError as error:
      assert "\n" not in str(error) and len(str(error)) < 600, label
      assert "config.json" in str(error) or "tokens" in str(error), error
    except Reached:
      assert value not in ("NaN", "1e400", '"12"', "[]") or key in kinds, label
      assert value != "1" + "0" * 30, label
      if ours in (*stated.COUNTS, *stated.WIDTHS):
        assert value == "null", label
  assert seen  # the control: numbers that are fine go on
  assert {path.name for path in tmp_path.iterdir()} == {"source"}


def _pipe(path: pathlib.Path) -> None:
  os.mkfifo(path)


def _index(names: dict | int) -> str:
  return json.dumps({"weight_map": names})


def _text(text: str):
  return lambda path: path.write_text(text)


def _bytes(data: bytes):
  return lambda path: path.write_bytes(data)


def _link(target: str):
  return lambda path: path.symlink_to(target)


def _named(name: str):
  """Writes a tensor of a name beside those of the model."""

  def write(path: pathlib.Path) -> None:
    arrays = make_golden["draw"](CASES["llama"]["shapes"] | {name: [1]})
    planned = [
      tensors.Planned(name, a.dtype, a.shape, lambda a=a: a)
      for name, a in arrays.items()
    ]
    tensors.write_file(str(path), planned)

  return write


MANY = {f"a{i}": "model.safetensors" for i in range(100_000)}
DIMS = json.dumps({"a": dict(dtype="F32", shape=[9] * 99, data_offsets=[0, 4])})
TYPE = json.dumps({"a": dict(dtype=["F32"], shape=[1], data_offsets=[0, 4])})
head = lambda text: len(text).to_bytes(8, "little") + text.encode() + b"0000"
FILES = {
  ("config.json", "a named pipe"): _pipe,
  ("config.json", "a device"): _link("/dev/zero"),
  ("config.json", "a link that leads nowhere"): _link("nowhere"),
  ("config.json", "nested too deep"): _text("[" * 100_000),
  ("config.json", "the key 'a' twice"): _text('{"a": 1, "a": 2}'),
  ("model.safetensors", "has 0"): _bytes(b""),
  ("model.safetensors", "a header of"): _bytes(bytes(range(256))),
  ("model.safetensors", "a named pipe"): _pipe,
  ("model.safetensors", "a folder"): pathlib.Path.mkdir,
  ("model.safetensors", "describe its tensor 'a'"): _bytes(head(DIMS)),
  ("model.safetensors", "describe its tensor 'a' "): _bytes(head(TYPE)),
  ("model.safetensors.index.json", "lacks it"): _text(_index(MANY)),
  ("model.safetensors.index.json", "has no weight_map"): _text(_index(7)),
  ("model.safetensors.index.json", "too deep"): _text("[" * 100_000),
  ("model.safetensors.index.json", "twice"): _text('{"a": 1, "a": 2}'),
  ("model.safetensors.index.json", "lies outside"): _text(
    _index({"a": "../source/model.safetensors"})
  ),
  ("model.safetensors.index.json", "file can be called"): _text(
    _index({"a": "b\0c"})
  ),
  ("model.safetensors.index.json", "file can be called; it"): _text(
    '{"weight_map": {"a": "\\ud800"}}'
  ),
  ("model.safetensors.index.json", "called; it must be"): _text(
    _index({"a": "b" * 5000})
  ),
  ("model.safetensors.index.json", "is in model.safetensors"): _text(
    _index({"a" * 5000: "model.safetensors"})
  ),
  ("model.safetensors", "is cut off, or no file"): _bytes(b"12345"),
  ("model.safetensors", "of 9,223,372,036,854,775,808 bytes"): _bytes(
    (1 << 63).to_bytes(8, "little") + b"{}"
  ),
  ("model.safetensors", "which LlamaForCausalLM does not"): _named("x" * 5000),
  ("tokenizer.json", "too deep"): _text("[" * 100_000),
  ("tokenizer.json", "a named pipe"): _pipe,
  ("tokenizer.json", "a device"): _link("/dev/zero"),
  ("tokenizer.json", "tokenizer.json"): _text("{}"),
  ("tokenizer.json", "tokenizer.json "): _bytes(b"\0\xff"),
}


@pytest.mark.parametrize("name,clause", FILES)
def test_a_hostile_file_is_one_sentence(name, clause, tmp_path):
  source = write(tmp_path / "source", "llama")
  path = source / name
  path.unlink(missing_ok=True)
  FILES[name, clause](path)
  with pytest.raises(InputError) as caught:
    importing.import_model(str(source), str(tmp_path / "run"))
  assert clause.strip() in str(caught.value), caught.value
  assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
  assert {path.name for path in tmp_path.iterdir()} == {"source"}


@pytest.mark.parametrize(
  "argv,sentence",
  [
    (["import", "--from=/dev/zero"], "/dev/zero/config.json cannot be read"),
    (["import", "--from="], "--from is empty"),
    (["import", "--from=s3://a/b"], "must be a path of this machine"),
    (["import", "--from=a", "--adapter="], "--adapter is empty"),
    (
      ["import", "--from=a", "--adapter=s3://a"],
      "must be a path of this machine",
    ),
    (["imports", "--from=a"], "did you mean import"),
    (["export", "--out=a", "--from=b"], "--from"),
  ],
)
def test_a_command_that_cannot_be_done_is_one_sentence(
  argv, sentence, tmp_path, monkeypatch
):
  monkeypatch.setattr(runtime, "start", lambda devices: None)
  run = tmp_path / "run"
  with pytest.raises(InputError) as caught:
    command.main([*argv, f"--workdir={run}"])
  assert sentence in str(caught.value) and "\n" not in str(caught.value)
  assert not run.exists()
