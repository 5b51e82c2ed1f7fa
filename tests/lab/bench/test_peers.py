"""Peers have our sizes and losses, take turns, and are compared as pairs."""

import importlib.util
import json
import time
import types

import jax
import numpy as np
import pytest
from workload import DOOR, FLAGS, load

from gpt_jax import config, flops, metric_names, objective
from gpt_jax.lab.bench import duel, peers, samples, worker


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
  pairs = samples.Pairs("x", ours, {"a": theirs, "b": [9.0] * 3}, {})
  assert pairs.to_json()["unit"] == "ms"
  assert pairs.ratios("a") == [2.0, 2.0, 2.0]
  assert pairs.best == "a"
  assert pairs.to_json()["peers"]["a"]["median_ratio"] == 2.0
  row = samples.Row("x", "ms", [3.0, 1.0, 2.0], predicted=4.0)
  assert (row.median, row.ratio) == (2.0, 0.5)


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
