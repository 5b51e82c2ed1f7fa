"""What is timed is what runs, pairs are compared as pairs, and idle is idle."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import cli, config, flops, metric_names, objective, sharding
from gpt_jax.lab.bench import (
  data,
  duel,
  growth,
  memory,
  peers,
  samples,
  start,
  worker,
)
from gpt_jax.lab.bench import train as train_subject

DOOR = "lab.bench"
# A model of which a step takes milliseconds.
SMALL = {
  "model.num_layers": "1",
  "model.num_heads": "4",
  "model.model_dim": "32",
  "model.mlp_dim": "64",
  "model.max_len": "96",
  "data.seq_len": "32",
  "train.global_batch_size": "4",
}
FLAGS = [f"--config.{key}={value}" for key, value in SMALL.items()]
# What a machine that only times a step need not have.
ABSENT = (
  "orbax",
  "grain",
  "tensorflow_datasets",
  "array_record",
  "tokenizers",
  "tensorboardX",
  "zstandard",
  "torch",
  "transformers",
)
BLOCKER = """
import sys

class Blocker:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in BLOCKED:
      raise ModuleNotFoundError(f"no {name} here")

sys.meta_path.insert(0, Blocker())
"""
STEP = """
import importlib, json
from gpt_jax.lab.bench import decode, report, train, worker
answers = []
lines = [FIRST, {"do": "run", "count": 2}]
worker.serve(iter(map(json.dumps, lines)), answers.append)
print(len(answers[1]["seconds"]))
"""


def load(variant: str = "tiny", **overrides) -> config.Config:
  values = SMALL | {k.replace("__", "."): v for k, v in overrides.items()}
  return config.freeze(cli.load_config(f"configs/bench.py:{variant}", values))


@pytest.fixture
def one_device(monkeypatch):
  """Workers of a test see one device, as a user's do."""
  monkeypatch.delenv("XLA_FLAGS", raising=False)


@pytest.mark.parametrize(
  "words, sentence",
  [
    ([], "the first word must be what to time: train"),
    (["--repeats=3"], "the first word must be what to time"),
    (["trian"], "did you mean train?"),
    (["train", "--peer=tensorflow"], "there is no peer 'tensorflow'"),
    (["data", "--peer=torch"], "data has none"),
    (["decode", "--peer=torch"], "take --peer=transformers"),
    (["train", "--repeats=0"], "--repeats is 0; it must be 1 or more"),
    (["train", "--steps=-1"], "--steps is -1; it must be 1 or more"),
    (["decode", "--batch=1,x"], "joined by commas"),
    (["decode", "--batch=0"], "joined by commas"),
    (["train"], "model.vocab_size is None"),
    (["train", "--sets=3"], "unknown argument --sets"),
    (
      ["decode", "--config=configs/bench.py:tiny", "--tokens=1000"],
      "--tokens is 1000; it must be 32 to",
    ),
    (["data"], "data.tokenizer is 'bytes'"),
  ],
)
def test_a_mistake_is_one_sentence(call_verb, words, sentence):
  words = [*words]
  if words == ["data"]:
    words.append("--config.data.tokenizer=bytes")
  result = call_verb(DOOR, *words)
  assert result.returncode == 2, result.stdout
  assert sentence in result.stderr
  assert result.stderr.count("\n") == 1


def run_blocked(body: str, blocked=ABSENT):
  code = f"BLOCKED = {set(blocked)!r}\n{BLOCKER}\n{body}"
  return subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
  )


def test_a_step_is_timed_with_jax_flax_optax_and_ml_collections_alone(
  one_device,
):
  first = {
    "who": "gpt_jax",
    "subject": "train",
    "config": dataclasses.asdict(load()),
    "devices": None,
    "options": {},
  }
  result = run_blocked(STEP.replace("FIRST", repr(first)))
  assert result.stdout.strip() == "2", result.stderr
  # The control: what is blocked cannot be imported.
  result = run_blocked("import optax", [*ABSENT, "optax"])
  assert "ModuleNotFoundError: no optax here" in result.stderr


@pytest.mark.parametrize(
  "flags, count",
  [(["--repeats=3", "--steps=2"], 3), (["--steps=2"], 25), (["--steps=1"], 5)],
)
def test_train_prints_and_writes_what_it_measured(
  tmp_path, run_verb, flags, count
):
  result = run_verb(
    "gpt_jax.lab.bench",
    "train",
    "--config=configs/bench.py:tiny",
    *FLAGS,
    *flags,
    f"--out={tmp_path}",
    check=0,
  )
  found = json.loads((tmp_path / "bench.json").read_text())
  rows = {row["name"]: row for row in found["rows"]}
  speed, mfu = rows["tokens/s"], rows["MFU"]
  assert len(speed["values"]) == count
  assert speed["min"] <= speed["median"] <= speed["max"]
  work = flops.train_flops_per_token(load().model, 32)
  used = speed["median"] * work / found["rates"]["flops"]
  assert mfu["median"] == pytest.approx(100 * used)
  assert found["machine"]["versions"]["jax"] in result.stdout
  assert found["mesh"] == "one device" and "(least to most)" in result.stdout
  assert [p.name for p in tmp_path.iterdir()] == ["bench.json"]


def test_decode_times_prefill_apart_from_the_loop(tmp_path, run_verb):
  run_verb(
    "gpt_jax.lab.bench",
    "decode",
    "--config=configs/bench.py:tiny",
    *FLAGS,
    "--repeats=2",
    "--batch=2",
    "--tokens=40",
    f"--out={tmp_path}",
    check=0,
  )
  found = json.loads((tmp_path / "bench.json").read_text())
  rows = {row["name"]: row for row in found["rows"]}
  assert rows["B=2: prefill"]["median"] > 0
  each = [2e3 / ms for ms in rows["B=2: a token"]["values"]]
  assert rows["B=2: tokens/s"]["values"] == pytest.approx(each)
  # Learned positions are looked up; the tied embedding is read, as scores.
  m = load().model
  count = sum(flops.count_parameters(m).values()) - m.max_len * m.model_dim
  assert found["weight_bytes"] == 4 * count


def test_a_waiting_worker_takes_no_processor_time(one_device):
  with worker.Worker("gpt_jax", "train", load()) as one:
    one.ask(do="run", count=2)
    time.sleep(0.75)
    idle = one.ask(do="run", count=1)["idle"]
    with pytest.raises(worker.Failed, match="no_such"):
      one.ask(do="no_such")
  assert idle["seconds"] >= 0.7
  assert idle["processor_seconds"] < duel.MAX_IDLE_SHARE * idle["seconds"]


def make_duel(busy: float):
  """Returns a Duel of workers that answer without doing anything."""
  asked = []

  def ask(who, count):
    asked.append(who)
    idle = {"seconds": 1.0, "processor_seconds": busy}
    if who == "torch compile" and len(asked) > 4:
      raise worker.Failed("no compiler")
    return {"idle": idle}

  one = lambda who: types.SimpleNamespace(ask=lambda **k: ask(who, **k))
  both = duel.Duel.__new__(duel.Duel)
  names = ("torch eager", "torch compile")
  both.ours, both.rivals = one("gpt_jax"), {name: one(name) for name in names}
  both.failed, both.idle_share = {}, 0.0
  return both, asked


def test_workers_take_turns_and_one_that_spins_is_noticed():
  both, asked = make_duel(busy=0.01)
  plan = dict.fromkeys(["gpt_jax", *both.rivals], {"count": 1})
  both.round(plan)
  assert asked == ["gpt_jax", "torch eager", "torch compile"]
  assert both.idle_share <= duel.MAX_IDLE_SHARE
  both.round(plan)
  assert both.failed == {"torch compile": "no compiler"}
  assert list(both.rivals) == ["torch eager"]
  both, _ = make_duel(busy=0.9)
  both.round(plan)
  assert both.idle_share > duel.MAX_IDLE_SHARE


def test_a_peer_waits_in_the_way_that_is_faster(monkeypatch):
  closed = []

  class Fake:
    built = {"platform": "cpu"}

    def __init__(self, *_, variables):
      self.is_passive = bool(variables)

    def ask(self, **_):
      time.sleep(0.02 if self.is_passive == is_slow["passive"] else 0.001)

    def close(self):
      closed.append(self.is_passive)

  monkeypatch.setattr(duel.worker, "Worker", Fake)
  is_slow = {}
  for is_slow["passive"], wanted in ((True, "spin"), (False, "sleep")):
    word, one = duel.build_faster("torch eager", "train", None, {}, {})
    assert (word, one.is_passive) == (wanted, wanted == "sleep")
  assert closed == [True, False]


def test_a_ratio_is_of_pairs_and_not_of_medians():
  # The machine slows down sixfold; ours is twice as fast all along.
  ours, theirs = [1.0, 2.0, 6.0], [2.0, 4.0, 12.0]
  pairs = samples.Pairs("x", "ms", ours, {"a": theirs, "b": [9.0] * 3}, {})
  assert pairs.ratios("a") == [2.0, 2.0, 2.0]
  assert pairs.best == "a"
  assert pairs.to_json()["peers"]["a"]["median_ratio"] == 2.0
  row = samples.Row("x", "ms", [3.0, 1.0, 2.0], predicted=4.0)
  assert (row.median, row.ratio) == (2.0, 0.5)


def test_what_a_worker_cannot_build_is_told_to_who_asked(one_device):
  broken = load(model__attention="splash")
  with pytest.raises(config.InputError, match="splash"):
    worker.Worker("gpt_jax", "train", broken)


def test_a_worker_that_is_killed_is_told_of():
  one = worker.Worker.__new__(worker.Worker)
  pipe = subprocess.PIPE
  one.who, one.log = "torch eager", tempfile.TemporaryFile()
  one.process = subprocess.Popen(
    ["sleep", "60"], stdin=pipe, stdout=pipe, text=True
  )
  one.commands, one.answers = one.process.stdin, one.process.stdout
  one.process.kill()
  with one, pytest.raises(worker.Failed, match="eager was killed; is there"):
    one.ask(do="run", count=1)


def test_an_absent_peer_is_one_sentence(monkeypatch, call_verb):
  found = importlib.util.find_spec
  absent = ("torch", "transformers")
  hide = lambda name, *a: None if name in absent else found(name, *a)
  monkeypatch.setattr(peers.importlib.util, "find_spec", hide)
  result = call_verb(
    DOOR, "train", "--config=configs/bench.py:tiny", "--peer=torch"
  )
  assert result.returncode == 2
  assert "pip install -e '.[peers]'" in result.stderr
  assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
  "peer, changes",
  [
    ("torch", {"model__norm": "rmsnorm"}),
    ("torch", {"optim__optimizer": "lion"}),
    ("torch", {"model__num_kv_heads": "1"}),
    ("transformers", {"model__bias": "false"}),
  ],
)
def test_a_peer_without_such_a_model_says_which_key(monkeypatch, peer, changes):
  monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: name)
  fine = {"model__bias": "true"}
  peers.check(load(**fine), peer, "train")
  key = next(iter(changes)).replace("__", ".")
  with pytest.raises(config.InputError, match=f"no model with {key}"):
    peers.check(load(**(fine | changes)), peer, "train")


def count_torch(module) -> int:
  return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("bias", ["true", "false"])
def test_torch_computes_our_loss_from_our_parameters(bias):
  torch = pytest.importorskip("torch", reason="extra peers is not installed")
  import jax
  import numpy as np

  from gpt_jax.lab.bench import ours
  from gpt_jax.models import build_model
  from gpt_jax.training import state

  c = load(model__bias=bias, model__init_std="0.2")
  model = build_model(c.model)
  params = state.init_params(model, 0)
  module = peers.build_torch(c)
  assert count_torch(module) == sum(flops.count_parameters(c.model).values())
  copy_into(module, params, torch)
  batch = next(ours.random_batches(c, 4))
  sums = jax.jit(objective.make_loss(model, 1))(params, batch)
  ids = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in batch.items()}
  found = module(ids["tokens"].long(), ids["targets"].long())
  assert found.item() == pytest.approx(
    float(sums[metric_names.LOSS] / sums[metric_names.NUM_TARGETS]), rel=1e-5
  )


def copy_into(module, params, torch) -> None:
  """Copies our parameters of one layer into the torch model."""
  import numpy as np

  from gpt_jax import tree

  named = tree.flatten_with_names(params)
  D = named["embed/tokens"].shape[1]
  flat = lambda name, *shape: np.asarray(named[name]).reshape(shape)
  layer = module.layers[0]
  wanted = {
    module.tokens.weight: flat("embed/tokens", -1, D),
    module.positions.weight: flat("embed/positions", -1, D),
    module.final_norm.weight: flat("final_norm/scale", D),
    layer.attn_norm.weight: flat("blocks/norm_attn/scale", D),
    layer.mlp_norm.weight: flat("blocks/norm_mlp/scale", D),
    layer.attn_in.weight: np.concatenate(
      [flat(f"blocks/attn/{n}", D, D).T for n in "qkv"]
    ),
    layer.attn_out.weight: flat("blocks/attn/o", D, D).T,
    layer.mlp_in.weight: flat("blocks/mlp/in", D, -1).T,
    layer.mlp_out.weight: flat("blocks/mlp/out", -1, D).T,
  }
  with torch.no_grad():
    for tensor, values in wanted.items():
      tensor.copy_(torch.from_numpy(np.array(values)))
    for name, tensor in module.named_parameters():
      if name.endswith("bias"):
        tensor.zero_()


def test_transformers_has_our_sizes():
  pytest.importorskip("transformers", reason="extra peers is not installed")
  for variant in ("tiny", "15m"):
    bias = "true" if variant == "tiny" else "false"
    changes = {"model__bias": bias, "model__num_kv_heads": "4"}
    c = load(variant, **changes)
    model = peers.build_transformers(c)
    assert count_torch(model) == sum(flops.count_parameters(c.model).values())


def test_torch_trains_beside_ours(tmp_path, run_verb):
  pytest.importorskip("torch", reason="extra peers is not installed")
  run_verb(
    "gpt_jax.lab.bench",
    "train",
    "--config=configs/bench.py:tiny",
    *FLAGS,
    "--repeats=2",
    "--steps=2",
    "--peer=torch",
    f"--out={tmp_path}",
    check=0,
    timeout=300,
  )
  found = json.loads((tmp_path / "bench.json").read_text())
  (pair,) = found["pairs"]
  assert set(pair["peers"]) | set(pair["failed"]) == set(peers.NAMES["torch"])
  assert "torch eager" in pair["peers"]


def test_imports_are_summed_by_package():
  text = (
    "import time: self [us] | cumulative | imported package\n"
    "import time:      1000 |       1000 |   jax._src.a\n"
    "import time:      2000 |       3000 | jax\n"
    "import time:       500 |        500 | numpy\n"
  )
  assert start.sum_imports(text) == {"jax": 0.003, "numpy": 0.0005}


def test_preparation_and_the_library_alone_make_the_same_tokens(tmp_path):
  text = tmp_path / "a.txt"
  text.write_text("The quick brown fox, <|endoftext|> and 12 dogs.\n" * 400)
  c = load(
    data__source=f"text:{text}", data__split="tail", data__tokenizer="bpe:300"
  )
  prepared = data.prepare(c, str(tmp_path / "first"))
  spec = data.fixed_spec(c, prepared, str(tmp_path))
  rows = data.time_preparation(c, spec, prepared, str(tmp_path), 1)
  names = [row.name for row in rows]
  assert names[:2] == ["preparation, tokens/s", "tokenizers alone, tokens/s"]
  encode = data.alone_tokenizers(prepared)
  texts = data.read_texts(c, prepared.tokenizer)
  sets = [prepared.train[0][1], prepared.valid["valid"]]
  count = sum(s.num_tokens for s in sets)
  # A text cut in two where it is held back may have other tokens there.
  assert abs(encode(texts) - count) <= 2
  assert encode(texts[:1] + ["more"]) != encode(texts)


def test_only_one_axis_grows_at_a_time():
  base = load("growth", model__max_len="32")
  for axis in growth.AXES:
    value, grown = growth.grow(base, axis, 2)
    old, new = config.flatten(base), config.flatten(grown)
    changed = {key for key in old if old[key] != new[key]}
    wanted = {
      "width": {"model.model_dim", "model.num_heads", "model.mlp_dim"},
      "layers": {"model.num_layers"},
      "length": {"data.seq_len", "model.max_len"},
      "batch": {"train.global_batch_size"},
      "vocabulary": {"model.vocab_size"},
    }[axis]
    assert changed == wanted
    assert value in [new[key] for key in wanted]
  assert growth.grow(base, "batch", 1)[1] == base
  work, _ = growth.predict(base, "cpu")
  double, _ = growth.predict(growth.grow(base, "batch", 2)[1], "cpu")
  longer, _ = growth.predict(growth.grow(base, "length", 2)[1], "cpu")
  assert double == 2 * work < longer  # attention grows with the square


@pytest.mark.slow
def test_growth_is_measured_and_drawn_beside_the_ledger(
  tmp_path, call_verb, monkeypatch
):
  monkeypatch.setitem(growth.AXES, "batch", (1, 8))
  small = SMALL | {"train.global_batch_size": "8"}
  flags = [f"--config.{key}={value}" for key, value in small.items()]
  result = call_verb(
    "lab.bench.growth",
    *flags,
    "--axes=batch",
    "--repeats=2",
    f"--out={tmp_path}",
  )
  assert result.returncode == 0, result.stderr
  found = json.loads((tmp_path / "growth.json").read_text())
  first, last = found["points"]
  assert last["flops"] == 8 * first["flops"]
  assert last["temporary_bytes"] > first["temporary_bytes"]
  svg = (tmp_path / "growth-batch.svg").read_text()
  assert svg.count("<polyline") == 4 and "time, ledger" in svg
  result = call_verb("lab.bench.growth", "--axes=depth")
  assert result.returncode == 2 and "did you mean width" in result.stderr


def test_a_vocabulary_that_only_text_would_tell_is_refused():
  train_subject.check_vocab(load())
  with pytest.raises(config.InputError, match="set --config.model.vocab_size"):
    train_subject.check_vocab(load(model__vocab_size="None"))


LONG = dict(
  model__vocab_size="2048",
  model__max_len="2048",
  data__seq_len="2048",
  train__global_batch_size="1",
)


@pytest.mark.parametrize("name", ["attention", "loss"])
def test_in_parts_is_the_same_in_less_memory(name):
  frozen = load("long", **LONG)
  make = getattr(memory, f"make_{name}")
  mesh = sharding.make_mesh(
    dataclasses.replace(frozen.mesh, data=1), jax.devices()[:1]
  )
  naive, parts = (
    memory.compile_piece(*make(frozen, "cpu", is_naive), mesh)
    for is_naive in (True, False)
  )
  largest = {"attention": 4 * 4 * 2048**2, "loss": 4 * 2048 * 2048}[name]
  size = lambda one: one.memory_analysis().temp_size_in_bytes
  assert size(naive) >= largest
  assert size(naive) > 3 * size(parts)
  rng = np.random.default_rng(0)
  arrays = []
  for a in naive.in_avals[0]:
    values = rng.normal(size=a.shape)
    arrays.append(
      jnp.asarray(np.abs(values) if a.dtype.kind == "i" else values, a.dtype)
    )
  pairs = zip(
    *(jax.tree.leaves(f(*arrays)) for f in (naive, parts)), strict=True
  )
  for a, b in pairs:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_memory_in_parts_is_measured_and_told(tmp_path, run_verb):
  keys = SMALL | {k.replace("__", "."): v for k, v in LONG.items()}
  flags = [f"--config.{key}={value}" for key, value in keys.items()]
  told = run_verb(
    f"gpt_jax.{DOOR}",
    "memory",
    "--config=configs/bench.py:long",
    *flags,
    "--repeats=1",
    f"--out={tmp_path}",
    check=0,
  )
  assert "cross-entropy, temporaries" in told.stdout
  rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
  found = {row["name"]: row["ratio"] for row in rows}
  assert found["attention, temporaries"] < 0.5


def test_memory_without_parts_is_refused(call_verb):
  result = call_verb(DOOR, "memory", "--config=configs/bench.py:gpt2")
  assert result.returncode == 2
  assert "train.num_loss_chunks is 1" in result.stderr
