"""A run, compressed: what is stored, read, and refused."""

import dataclasses
import json
import math
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import tree
from gpt_jax.config import InputError
from gpt_jax.data.tokenizers import build_tokenizer
from gpt_jax.deploy.compress import __main__ as command
from gpt_jax.deploy.compress import (
  calibrate,
  factors,
  layerwise,
  methods,
  pruning,
  rounding,
)
from gpt_jax.deploy.hf.folders import write_run
from gpt_jax.models import build_model, stack
from gpt_jax.ops.factored import Factored
from gpt_jax.ops.quantized import Quantized
from gpt_jax.runs import workdir
from gpt_jax.training import step

T = 16


@pytest.fixture(scope="module")
def small():
  """(config, model, params, rows) of a gated decoder of two layers."""
  values = base.get_config()
  values.data.tokenizer = "bytes"
  values.data.seq_len = values.model.max_len = T
  # Logits of padding are -1e30, beside which no error is seen.
  values.model.vocab_size, values.model.vocab_multiple = 257, 1
  values.model.num_layers = 2
  values.model.num_heads, values.model.model_dim = 2, 32
  values.model.mlp_dim, values.model.mlp = 32, "swiglu"
  values.model.norm, values.model.position = "rmsnorm", "rope"
  values.model.init_std = 0.2
  values.train.global_batch_size = 8
  values.mesh.data = 1
  config = config_lib.freeze(values)
  model = build_model(config.model)
  params = jax.jit(
    lambda key: tree.map_with_names(
      lambda name, leaf: (
        jnp.ones(leaf.shape) + 0.5 * jax.random.normal(key, leaf.shape)
        if "norm" in name
        else 0.2
        * jax.random.normal(tree.key_for(key, name), leaf.shape, leaf.dtype)
      ),
      model.abstract_params()[0],
    )
  )(jax.random.key(0))
  rows = np.random.default_rng(0).integers(0, 255, (32, T))
  return config, model, params, rows


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
  config, _, params, _ = small
  place = tmp_path_factory.mktemp("compress")
  tokenizer = build_tokenizer("bytes")
  (place / "run").mkdir()
  write_run(str(place / "run"), config, lambda: params, tokenizer, "none")
  text = "".join(f"line {i}: {i * i} and {i % 7}\n" for i in range(80))
  (place / "text.txt").write_text(text)
  return place


def away(a, b) -> float:
  return float(jnp.abs(a - b).max() / jnp.abs(b).max())


def test_calibration_sees_what_each_matrix_reads(small):
  _, model, params, rows = small
  own = calibrate.apart(model)
  work = stack.unstack_layers(params, model.stacks)
  grams = calibrate.find_grams(own, work, rows)
  assert grams.keys() == calibrate.list_matrices(own, work).keys()
  seen = {}

  def look(next_fun, args, kwargs, context):
    if context.method_name == "__call__":
      seen["/".join(context.module.path)] = args[0]
    return next_fun(*args, **kwargs)

  with nn.intercept_methods(look):
    own.apply(work, jnp.asarray(rows))
  for name, reader in (("mlp", "in"), ("mlp", "gate"), ("attn", "k")):
    x_LD = np.asarray(seen[f"blocks_1/{name}"], np.float64).reshape(-1, 32)
    found = grams[f"blocks_1/{name}/{reader}"]
    np.testing.assert_allclose(found, x_LD.T @ x_LD, rtol=1e-3, atol=1e-3)


def test_a_layer_is_fitted_to_what_the_changed_ones_before_it_give(small):
  _, model, params, rows = small
  own = calibrate.apart(model)
  work = stack.unstack_layers(params, model.stacks)
  names, seen = list(calibrate.list_matrices(own, work)), []

  def fit(w, role, gram_DD):
    seen.append(gram_DD)
    return w, 0 * w

  same = layerwise.refit(model, params, rows, fit)
  jax.tree.map(np.testing.assert_array_equal, same, params)
  silent = work
  for name in (n for n in names if n.startswith("blocks_0/")):
    silent = layerwise.put_leaf(silent, name, 0 * layerwise.leaf_of(work, name))
  before, after = (calibrate.find_grams(own, p, rows) for p in (work, silent))
  at = names.index("blocks_1/mlp/in")
  np.testing.assert_allclose(seen[at], after[names[at]], rtol=1e-4, atol=1e-4)
  assert away(before[names[at]], after[names[at]]) > 0.1


@pytest.mark.parametrize("word", ["gptq", "awq", "int4"])
def test_a_model_in_int4_is_stored_as_integers(small, word):
  config, model, params, rows = small
  made = methods.apply(methods.parse(word), config, model, params, rows)
  q = made.params["blocks"]["attn"]["q"]
  assert isinstance(q, Quantized) and q.num_bits == 4
  assert made.params["embed"]["tokens"].num_bits == 8
  shapes, _ = dataclasses.replace(model, weights="int4").abstract_rounded()
  assert tree.describe_shapes(made.params) == tree.describe_shapes(shapes)


def test_gptq_and_scaling_leave_less_error_than_rounding(small):
  config, model, params, rows = small
  exact = model.apply(params, jnp.asarray(rows))
  errors = {}
  for word in ("int4", "gptq", "awq"):
    made = methods.apply(methods.parse(word), config, model, params, rows)
    whole = model.restore_matrices(made.params)
    errors[word] = float(
      jnp.square(model.apply(whole, jnp.asarray(rows)) - exact).mean()
    )
  assert errors["gptq"] < 0.8 * errors["int4"], errors
  assert errors["awq"] < errors["int4"], errors


def test_scales_of_inputs_change_no_output(small, monkeypatch):
  _, model, params, rows = small
  # Nothing is rounded, so that only the scales are left.
  own = dataclasses.replace(model, weights="int4")
  monkeypatch.setattr(rounding, "POWERS", np.array([0.7]))
  monkeypatch.setattr(
    type(model), "round_matrices", lambda self, params: params
  )
  scaled = rounding.round_scaled(own, params, rows)
  tokens = jnp.asarray(rows)
  assert away(model.apply(scaled, tokens), model.apply(params, tokens)) < 1e-4
  for name in ("attn/q", "attn/v", "mlp/in", "mlp/out", "norm_attn/scale"):
    part, leaf = name.split("/")
    new, old = (p["blocks"][part][leaf] for p in (scaled, params))
    assert away(new, old) > 0.01, name


@pytest.mark.wide
def test_a_compressed_run_is_read_as_it_was_written(folder, call_verb):
  """Its integers are used as they stand, and restored for all else."""
  out, text = folder / "gptq", folder / "text.txt"
  words = [f"--workdir={folder / 'run'}", f"--calibrate={text}"]
  done = call_verb(
    "deploy.compress.__main__", *words, f"--out={out}", "--method=gptq"
  )
  assert done.returncode == 0, done.stderr
  open_run = lambda where, weights: workdir.open_run(
    str(where), None, print, weights
  )
  _, full, whole, _, mesh = open_run(out, "full")
  _, model, small_params, _, _ = open_run(out, "int4")
  q = small_params["blocks"]["attn"]["q"]
  assert isinstance(q, Quantized)
  restored = model.restore_matrices(small_params)
  assert tree.describe_shapes(whole) == tree.describe_shapes(restored)
  for a, b in zip(
    jax.tree.leaves(restored), jax.tree.leaves(whole), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  assert away(whole["blocks"]["attn"]["q"], full_q(folder)) > 0.02
  tokens = jnp.asarray(np.arange(12)[None])
  with jax.set_mesh(mesh):
    exact = full.apply(whole, tokens)
    prepared = model.prepare_for_decoding(small_params)
    cache = model.init_cache(1, T)
    got, _ = model.apply_cached(prepared, tokens, cache, jnp.zeros(1, int))
    _, again, rounded, _, _ = open_run(out, "int8")
    again.prepare_for_decoding(rounded)
  assert prepared["blocks_0"]["attn"]["qkv"].num_bits == 4
  assert away(got, exact) < 2e-3
  # Of what is stored, which is checked against these shapes when it is read;
  # the files' sizes depend on how writes met.
  assert stored_bytes(out) < 0.6 * stored_bytes(folder / "run")


def stored_bytes(folder) -> int:
  (path,) = folder.glob("checkpoints/*/meta/metadata")
  count = 0
  for shape in json.loads(path.read_text())["shapes"].values():
    dtype, sizes = shape.rstrip("]").split("[")
    items = math.prod(map(int, filter(None, sizes.split(","))))
    count += items * np.dtype(dtype).itemsize
  return count


def full_q(folder):
  params = workdir.open_run(str(folder / "run"), None, print)[2]
  return params["blocks"]["attn"]["q"]


@pytest.mark.wide
def test_a_pruned_run_recovers_with_its_zeros(folder, small, call_verb):
  out, text = folder / "sparse", folder / "text.txt"
  for place, method in ((out, "magnitude:2of4"), (folder / "int8", "int8")):
    done = call_verb(
      "deploy.compress.__main__",
      f"--workdir={folder / 'run'}",
      f"--out={place}",
      f"--method={method}",
    )
    assert done.returncode == 0, done.stderr
  flat = config_lib.flatten(small[0])
  keys = [
    f"--config.{key}={value}"
    for key, value in flat.items()
    if key.startswith("model.") and value is not None
  ]
  words = [*keys, f"--config.train.init_from={out}"]
  words += ["--config.train.keep_zeros=True", "--config.train.num_steps=2"]
  words += [f"--config.data.source=text:{text}", "--config.data.seq_len=16"]
  words += ["--config.data.tokenizer=bytes"]
  words += [f"--config.data.dir={folder / 'prepared'}"]
  words += ["--config.train.global_batch_size=8", "--config=configs/base.py"]
  words += ["--config.optim.warmup_steps=1", "--config.eval.every_steps=0"]
  done = call_verb("train", *words, f"--workdir={folder / 'again'}")
  assert done.returncode == 0, done.stderr
  words += [f"--config.train.init_from={folder / 'int8'}"]
  done = call_verb("train", *words, f"--workdir={folder / 'refused'}")
  assert done.returncode == 2 and "its matrices as int8" in done.stderr
  before, after = (
    workdir.open_run(str(place), None, print)[2]["blocks"]["mlp"]["in"]
    for place in (out, folder / "again")
  )
  np.testing.assert_array_equal(before == 0, after == 0)
  assert away(after, before) > 1e-4


@pytest.mark.wide
def test_several_methods_are_compared_in_a_table(folder, call_verb):
  out, text = folder / "table", folder / "text.txt"
  done = call_verb(
    "deploy.compress.__main__",
    f"--workdir={folder / 'run'}",
    f"--out={out}",
    "--method=int8,wanda:2of4",
    f"--calibrate={text}",
    f"--data={text}",
  )
  assert done.returncode == 0, done.stderr
  rows = json.loads((out / "table.json").read_text())
  assert [row["method"] for row in rows] == ["full", "int8", "wanda:2of4"]
  full, int8, pruned = rows
  assert 0.25 < int8["bytes"] / full["bytes"] < 0.35
  assert abs(int8["loss"] / full["loss"] - 1) < 1e-2
  assert int8["loss"] != full["loss"] != pruned["loss"]
  assert "<circle" in (out / "table.svg").read_text()
  assert (out / "table.md").read_text().count("\n") == 5
  # What evaluate says of a folder is what the table says.
  said = call_verb(
    "evaluate", f"--workdir={out / 'int8'}", f"--data={text}", "--json"
  )
  assert abs(json.loads(said.stdout)["loss"] - int8["loss"]) < 1e-4


def test_the_layer_that_goes_is_the_one_that_is_missed_least(small):
  config, model, params, rows = small
  # The second layer adds nothing, so that it is not missed at all.
  silent = tree.map_with_names(
    lambda name, w: w.at[1].set(0) if name.endswith(("/o", "/out")) else w,
    params,
  )
  method = methods.parse("layers:1")
  made = methods.apply(method, config, model, silent, rows)
  assert made.config.model.num_layers == 1
  tokens = jnp.asarray(rows)
  left = build_model(made.config.model).apply(made.params, tokens)
  assert away(left, model.apply(silent, tokens)) < 1e-5
  with pytest.raises(InputError, match="has 2 layers; leave one"):
    methods.apply(methods.parse("layers:2"), config, model, params, rows)


def test_factors_are_nearest_on_the_text_and_all_of_them_the_matrix(small):
  rng = np.random.default_rng(0)
  w_FD = rng.normal(size=(6, 8)).astype(np.float32)
  x_DN = rng.normal(size=(8, 8)) @ rng.normal(size=(8, 50))
  gram_DD = x_DN @ x_DN.T
  away = lambda a, b: np.square((w_FD - (a @ b).T) @ x_DN).sum()
  a, b = factors.decompose(w_FD, gram_DD, 6)
  np.testing.assert_allclose(a @ b, w_FD.T, atol=1e-3)
  best = away(*factors.decompose(w_FD, gram_DD, 3))
  U, s, V = np.linalg.svd(w_FD.T, full_matrices=False)
  assert best < away(U[:, :3] * s[:3], V[:3])  # the nearest without the text
  # Eckart and Young: the least error is that of the singular values cut off.
  least = np.square(np.linalg.svd(w_FD @ x_DN)[1][3:]).sum()
  assert best == pytest.approx(least, rel=0.05)


@pytest.mark.wide
def test_a_run_of_factors_is_read_generated_and_exported(
  folder, small, call_verb
):
  out, text = folder / "factors", folder / "text.txt"
  done = call_verb(
    "deploy.compress.__main__",
    f"--workdir={folder / 'run'}",
    f"--out={out}",
    "--method=rank:50",
    f"--calibrate={text}",
  )
  assert done.returncode == 0, done.stderr
  _, model, params, _, mesh = workdir.open_run(str(out), None, print)
  q = params["blocks"]["attn"]["q"]
  assert isinstance(q, Factored) and q.a.shape == (2, 32, 8)
  whole = model.restore_matrices(params)
  count = lambda p: tree.count_elements(p["blocks"]["attn"])
  assert count(params) == count(whole) / 2
  assert away(whole["blocks"]["attn"]["q"], full_q(folder)) > 0.02
  tokens = jnp.asarray(np.arange(12)[None])
  with jax.set_mesh(mesh):
    exact = model.apply(whole, tokens)
    assert away(model.apply(params, tokens), exact) < 1e-4
    prepared = model.prepare_for_decoding(params)
    cache = model.init_cache(1, T)
    got, _ = model.apply_cached(prepared, tokens, cache, jnp.zeros(1, int))
    assert away(got, exact) < 1e-4
  done = call_verb(
    "deploy.hf.__main__", "export", f"--workdir={out}", f"--out={folder / 'hf'}"
  )
  assert done.returncode == 0, done.stderr


def test_zeros_stay_zero_where_a_pruned_run_is_trained(small):
  _, model, params, _ = small
  pruned = pruning.prune(model, params, None, None)
  moved = jax.tree.map(lambda p: p + 1, pruned)
  kept = step.build_settle(model, True)(moved, pruned, None)
  plain = step.build_settle(model, False)(moved, pruned, None)
  assert jax.tree.leaves(plain)[0] is jax.tree.leaves(moved)[0]
  for name, leaf in tree.flatten_with_names(kept).items():
    old = tree.flatten_with_names(pruned)[name]
    is_matrix = name.startswith("blocks/") and "norm" not in name
    want = jnp.where(old == 0, 0, old + 1) if is_matrix else old + 1
    np.testing.assert_array_equal(leaf, want, err_msg=name)


@pytest.mark.parametrize("reads_text", [False, True])
def test_two_of_every_four_weights_stay(small, reads_text):
  _, model, params, rows = small
  pruned = pruning.prune(model, params, None, rows if reads_text else None)
  own = calibrate.apart(model)
  work = stack.unstack_layers(pruned, model.stacks)
  for name, role in calibrate.list_matrices(own, work).items():
    w_FD = calibrate.by_rows(layerwise.leaf_of(work, name), role)
    counts = (w_FD.reshape(len(w_FD), -1, 4) != 0).sum(-1)
    assert (counts == 2).all(), name


def test_the_weights_that_go_are_those_of_the_least_score(small):
  score_FD = np.random.default_rng(0).uniform(0.1, 1, (6, 10))
  whole = pruning.choose(score_FD, 0.3)
  assert whole.sum() == 42
  assert score_FD[whole].min() > score_FD[~whole].max()
  four = pruning.choose(score_FD, None)
  assert (four[:, :8].reshape(6, 2, 4).sum(-1) == 2).all()
  assert (four[:, 8:].sum(1) == 2).all()


def test_a_wrong_method_is_a_sentence(folder, call_verb):
  run, text = f"--workdir={folder / 'run'}", folder / "text.txt"
  for words, said in {
    ("--method=gtpq",): "did you mean gptq",
    ("--method=int8:4",): "has no number",
    ("--method=wanda:100", f"--calibrate={text}"): "1 to 99",
    ("--method=layers", f"--calibrate={text}"): "layers:COUNT, 1 to 99",
    ("--method=gptq",): "give --calibrate=FILE",
    ("--method=int8", f"--calibrate={text}"): "does nothing",
    ("--method=int8,int4",): "give --data=FILE",
    ("--method=int8,int8", f"--data={text}"): "twice",
    ("--method=int8", "--seed=-1"): "0 or more",
  }.items():
    done = call_verb(
      "deploy.compress.__main__", run, f"--out={folder / 'bad'}", *words
    )
    assert done.returncode == 2 and said in done.stderr, (words, done.stderr)
    assert done.stderr.count("\n") == 1
    assert not (folder / "bad").exists()


def test_what_is_not_compressed_is_named(small):
  config, model, _, _ = small
  of = lambda **changes: dataclasses.replace(
    config, model=dataclasses.replace(config.model, **changes)
  )
  scores = types.SimpleNamespace(can_generate=False)
  prefixes = dataclasses.replace(config.data, objective="prefix_lm")
  for given, said in (
    (of(family="encoder"), "is an encoder; give another run"),
    (of(family="encoder_decoder"), "is an encoder-decoder"),
    (of(num_experts=4), "is one with experts"),
    (dataclasses.replace(config, data=prefixes), "trained with prefixes"),
  ):
    with pytest.raises(InputError, match=f"the run in there is .*{said[3:]}"):
      command._check_form(given, model, "there")
  with pytest.raises(InputError, match="a decoder that scores classes"):
    command._check_form(config, scores, "there")
  command._check_form(config, model, "there")


def test_too_short_a_text_is_refused():
  tokens = types.SimpleNamespace(num_ids=5)
  with pytest.raises(InputError, match="5 tokens and a row is 16"):
    calibrate.draw_rows(tokens, 2, 16, 0)
