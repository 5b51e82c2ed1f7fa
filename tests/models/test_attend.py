"""Every attention kernel is the naive one, wherever it runs."""

import dataclasses
import importlib.util

import forms
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import InputError
from gpt_jax.lab.plan import attention as lab
from gpt_jax.models import attend, build_model
from gpt_jax.ops import blockwise
from gpt_jax.ops.visibility import Rule, TokenPositions

pytestmark = pytest.mark.battery

# Errors are absolute, of entries of order one in float32.
FORWARD, BACKWARD = 5e-6, 2e-5
CASES = [
  ("dense", "all"),
  ("blocks", "plain"),
  ("blocks", "window"),
  ("blocks", "soft-cap"),
  ("blocks", "segments"),
  ("blocks", "all"),
  ("blocks, 8 devices", "all"),
  ("blocks, keys gathered", "all"),
  ("blocks, ring", "plain"),
  ("blocks, ring", "all"),
  ("splash", "grouped"),
  ("splash", "all"),
  ("splash, 8 devices", "all"),
  ("splash, keys gathered", "all"),
  ("splash, ring", "segments"),
  ("splash, ring", "all"),
  ("dense", "both ways, all"),
  ("blocks", "both ways"),
  ("blocks", "both ways, all"),
  ("blocks, 8 devices", "both ways, window"),
  ("blocks, keys gathered", "both ways, all"),
  ("blocks, ring", "both ways"),
  ("blocks, ring", "both ways, all"),
  ("splash", "both ways"),
  ("splash", "both ways, all"),
  ("splash, 8 devices", "both ways, window"),
  ("splash, keys gathered", "both ways, all"),
  ("splash, ring", "both ways"),
  ("splash, ring", "both ways, all"),
  ("flash", "plain"),
  ("flash", "segments"),
  ("flash", "all"),
  ("flash", "both ways, all"),
  ("flash, 8 devices", "all"),
  ("flash, 8 devices", "both ways"),
  ("blocks", lab.NARROW),
  ("blocks, 8 devices", lab.NARROW),
  ("blocks, keys gathered", lab.NARROW),
  ("blocks, ring", lab.NARROW),
  ("flash", lab.NARROW),
  ("splash", lab.NARROW),
  ("splash, ring", lab.NARROW),
]


@pytest.mark.parametrize("kernel, feature", CASES)
def test_kernels_agree_with_the_naive_one_and_leak_nothing(kernel, feature):
  result = lab.compare(kernel, feature)
  assert result.forward < FORWARD
  assert result.backward < BACKWARD
  assert result.leak == 0.0


slow = pytest.mark.slow


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu, the TPU compiler, is not installed",
)
@pytest.mark.parametrize(
  "kernel",
  [
    "splash",
    pytest.param("splash, keys gathered", marks=slow),
    pytest.param("splash, ring", marks=slow),
  ],
)
def test_kernels_compile_for_tpus(kernel, monkeypatch):
  for key, value in {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
  }.items():
    monkeypatch.setenv(key, value)
  lab.compile_for_tpu(kernel, "all")


def test_the_comparison_sees_another_window_and_a_leak(monkeypatch):
  narrower = lambda rule: rule._replace(window=rule.window - 1)
  wrong = lambda *a: naive(*a[:4], narrower(a[4]), *a[5:])
  naive = lab.naive
  monkeypatch.setattr(lab, "naive", wrong)
  assert lab.compare("blocks", "all").forward > 1e-3
  monkeypatch.setattr(lab, "naive", naive)
  see_all = lambda rule, rows, keys, segments: jnp.ones(
    (1, rows.stop - rows.start, keys.stop - keys.start), bool
  )
  monkeypatch.setattr(blockwise, "_strip_mask", see_all)
  assert lab.compare("blocks", "all").leak > 1e-3


@pytest.mark.battery
@pytest.mark.parametrize("length", [100, 1, 63, 700])
def test_blocks_serve_every_length(length):
  q, k, v, dy, _ = lab.make_inputs(2, length, False)
  wanted = lab.naive(q, k, v, dy, Rule(window=50), None)
  at = TokenPositions(jnp.arange(length)[None], None)
  scaled = lambda f: lambda q, *a: f(q * q.shape[-1] ** -0.5, *a)
  rule = Rule(window=50)
  for f in (
    lambda q, k, v: blockwise.strips(q, k, v, None, rule),
    lambda q, k, v: blockwise.tiles(q, k, v, at, at, rule),
  ):
    y, back = jax.vjp(scaled(f), q, k, v)
    for a, b in zip((y, *back(jnp.asarray(dy))), wanted, strict=True):
      np.testing.assert_allclose(a, b, atol=BACKWARD)


def test_tiles_serve_any_order_of_tokens():
  q, k, v, dy, segments = lab.make_inputs(4, 600, True)
  wanted = lab.naive(q, k, v, dy, Rule(softcap=3.0), segments)
  order = np.random.default_rng(1).permutation(600)
  at = TokenPositions(jnp.asarray(order)[None], jnp.asarray(segments[:, order]))
  f = lambda q, k, v: blockwise.tiles(q / 8, k, v, at, at, Rule(softcap=3.0))
  y, back = jax.vjp(f, q[:, :, :, order], k[:, :, order], v[:, :, order])
  grads = back(jnp.asarray(dy[:, :, :, order]))
  np.testing.assert_allclose(y, wanted[0][:, :, :, order], atol=FORWARD)
  for a, b in zip(grads, wanted[1:], strict=True):
    np.testing.assert_allclose(a, np.take(b, order, -2), atol=BACKWARD)


def largest_array(f, *arrays) -> int:
  """Returns the elements of the largest array that f makes, by its jaxpr."""

  def sizes(jaxpr):
    for eqn in jaxpr.eqns:
      yield from (v.aval.size for v in eqn.outvars if hasattr(v.aval, "size"))
      for inner in jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
      ):
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns"):
          yield from sizes(inner)

  return max(sizes(jax.make_jaxpr(f)(*arrays).jaxpr))


def model_of(**changes):
  model = config_lib.freeze(base.get_config()).model
  small = dict(
    num_layers=1, model_dim=64, num_heads=2, mlp_dim=64, vocab_size=64
  )
  return dataclasses.replace(model, **{**small, **changes})


def test_no_array_grows_with_the_square_of_the_length():
  def largest(attention, length):
    model = build_model(
      model_of(attention=attention, max_len=length, position="rope")
    )
    params, _ = model.abstract_params()
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    loss = lambda p, t: model.apply(p, t).sum()
    return largest_array(jax.grad(loss), params, tokens)

  assert largest("blocks", 16384) <= 16384 * 3 * 64  # q, k and v together
  assert largest("dense", 4096) >= 4096**2  # the control


@pytest.mark.wide
def test_a_ring_holds_no_more_when_it_and_the_row_are_longer():
  def held(parts, how):
    axes = dict.fromkeys(sharding.AXES, 1) | {"seq": parts}
    mesh = sharding.make_mesh(
      config_lib.MeshConfig(**axes, rules="standard"), jax.devices()[:parts]
    )
    length = 512 * parts
    model = build_model(
      model_of(
        attention="blocks", seq_attention=how, max_len=length, position="rope"
      )
    )
    order = jnp.asarray(sharding.zigzag(length, parts))[None]
    loss = lambda p, t: jnp.square(model.apply(p, t, order_1T=order)).sum()
    place = sharding.batch_sharding(mesh, "standard")
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=place)
    with jax.set_mesh(mesh):
      step = jax.jit(jax.grad(loss))
      compiled = step.lower(model.abstract_params()[0], tokens).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert held(8, "ring") < 1.05 * held(2, "ring")
  assert held(8, "gather") > 1.05 * held(2, "gather")  # the control


def test_auto_takes_the_kernel_of_the_platform():
  choose = lambda platform, length=256, is_cached=False, **changes: (
    attend.choose(model_of(**changes), platform, length, is_cached)
  )
  assert choose("cpu") == "blocks"
  assert choose("cpu", 16) == "dense"
  assert choose("tpu") == "splash"
  assert choose("gpu", compute_dtype="bfloat16") == "cudnn"
  assert choose("gpu") == "dense"  # no kernel has float32
  half = dict(compute_dtype="bfloat16")
  assert choose("gpu", attn_softcap=5.0, **half) == "flash"
  assert choose("gpu", head_dim=20, **half) == "flash"
  assert choose("gpu", head_dim=512, **half) == "dense"
  latent = dict(position="rope", kv_lora_rank=16, qk_rope_head_dim=8, **half)
  assert choose("gpu", v_head_dim=16, **latent) == "cudnn"
  assert choose("gpu", head_dim=192, v_head_dim=128, **latent) == "flash"
  assert choose("gpu", v_head_dim=64, **latent) == "dense"  # wider than keys
  assert choose("tpu", is_cached=True) == "dense"
  assert choose("tpu", position="alibi") == "dense"
  assert choose("cpu", attention="dense") == "dense"


def test_packed_documents_get_a_kernel_that_keeps_them_apart():
  choose = lambda platform, **changes: attend.choose(
    model_of(compute_dtype="bfloat16", **changes), platform, 256, is_packed=True
  )
  assert choose("gpu") == "flash"
  assert (choose("tpu"), choose("cpu")) == ("splash", "blocks")
  with pytest.raises(InputError, match="cudnn, which needs an array of T x T"):
    choose("gpu", attention="cudnn")


REFUSED = {
  "splash.*alibi": dict(attention="splash", position="alibi"),
  "blocks.*alibi": dict(attention="blocks", position="alibi"),
  "blocks.*dropout": dict(attention="blocks", dropout_rate=0.1),
  "cudnn.*soft-cap": dict(
    attention="cudnn", attn_softcap=5.0, compute_dtype="bfloat16"
  ),
  "cudnn.*bfloat16": dict(attention="cudnn"),
  "cudnn.*head width": dict(
    attention="cudnn", head_dim=20, compute_dtype="bfloat16"
  ),
  "flash.*bfloat16": dict(attention="flash"),
  "flash.*head width of at most 256": dict(
    attention="flash", head_dim=512, compute_dtype="bfloat16"
  ),
  "cudnn.*values no wider than keys, and they are 128 and 64": dict(
    attention="cudnn",
    compute_dtype="bfloat16",
    position="rope",
    kv_lora_rank=16,
    qk_rope_head_dim=16,
    v_head_dim=128,
  ),
}


def test_packed_documents_and_a_kernel_that_cannot_are_refused():
  config = base.get_config()
  config.model.update(attention="cudnn", compute_dtype="bfloat16")
  config_lib.freeze(config)
  config.data.packing = "documents"
  sentence = "cudnn, which needs an array of T x T.*documents.*; use auto or"
  with pytest.raises(InputError, match=sentence):
    config_lib.freeze(config)


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_kernel_that_cannot_serve_is_refused_by_the_config(sentence):
  config = base.get_config()
  config.model.update(REFUSED[sentence])
  with pytest.raises(InputError, match=sentence):
    config_lib.freeze(config)


@pytest.mark.parametrize(
  "changes",
  [dict(position="alibi"), dict(dropout_rate=0.1), dict(attention="dense")],
)
def test_a_ring_that_cannot_be_is_refused(changes):
  config = base.get_config()
  config.model.update(seq_attention="ring", **changes)
  config_lib.freeze(config)  # seq is 1: no ring
  config.mesh.update(data=1, seq=2)
  with pytest.raises(InputError, match="ring"):
    config_lib.freeze(config)


def test_kernels_of_other_platforms_are_refused_when_the_model_is_built():
  with pytest.raises(InputError, match="splash, a TPU kernel.*is a cpu"):
    build_model(model_of(attention="splash"), platform="cpu")
  with pytest.raises(InputError, match="cudnn, a GPU kernel.*is a tpu"):
    build_model(model_of(attention="cudnn"), platform="tpu")
  with pytest.raises(InputError, match="flash, a GPU kernel.*is a cpu"):
    build_model(model_of(attention="flash"), platform="cpu")


def test_a_part_of_a_row_too_short_for_splash_is_refused():
  lanes = TokenPositions(jnp.arange(64)[None], None)
  x = jnp.zeros((1, 1, 64, 8))
  from gpt_jax.ops import splash

  with pytest.raises(InputError, match="64 tokens.*multiple of 256"):
    splash.part(x[:, :, None], x, x, lanes, lanes, Rule(), True)


def test_interpreted_splash_trains_a_model_as_dense_does():
  def grads(attention, platform):
    model = build_model(
      model_of(attention=attention, num_kv_heads=1), platform=platform
    )
    shapes, _ = model.abstract_params()
    rng = np.random.default_rng(0)
    fill = lambda s: jnp.asarray(rng.normal(0, 0.1, s.shape), s.dtype)
    params = jax.tree.map(fill, shapes)
    tokens = jnp.asarray(rng.integers(0, 64, (2, 150)), jnp.int32)
    loss = lambda p: jnp.square(model.apply(p, tokens)).mean()
    return jax.jit(jax.grad(loss))(params)

  a, b = grads("splash", attend.INTERPRETED), grads("dense", "cpu")
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


@pytest.fixture
def cudnn_is_there(monkeypatch):
  """Lets a program for cuDNN be lowered where there is no GPU."""
  from jax._src.cudnn import fused_attention_stablehlo as library

  for name, value in (
    ("check_cudnn_version", 91100),
    ("check_compute_capability", True),
    ("is_cuda_compute_capability_equal", False),
  ):
    monkeypatch.setattr(library, name, lambda *_, value=value: value)


def test_cudnn_is_called_with_what_it_can_do(cudnn_is_there):
  """As far as it goes without a GPU: to the custom call."""
  config = model_of(
    attention="cudnn",
    compute_dtype="bfloat16",
    num_kv_heads=1,
    sliding_window=64,
  )
  model = build_model(config, platform="gpu")
  params, _ = model.abstract_params()
  ids = jax.ShapeDtypeStruct((2, 128), jnp.int32)
  loss = lambda p, t: model.apply(p, t).sum()
  traced = jax.jit(jax.grad(loss)).trace(params, ids)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "__cudnn$fmha" in text and "Backward" in text


def test_packed_documents_on_a_gpu_have_no_array_of_t_x_t(cudnn_is_there):
  T = 4096
  config = model_of(compute_dtype="bfloat16", max_len=T, position="rope")
  model = build_model(config, platform="gpu")
  params, _ = model.abstract_params()
  ids = jax.ShapeDtypeStruct((1, T), jnp.int32)
  loss = lambda p, t, s: model.apply(p, t, None, s).sum()
  assert largest_array(jax.grad(loss), params, ids, ids) <= T * 3 * 64

  def biased(x_BTNH, segments_BT):  # the control: cuDNN, as it could be called
    mask = segments_BT[:, None, :, None] == segments_BT[:, None, None]
    return jax.nn.dot_product_attention(
      *[x_BTNH] * 3, mask=mask, is_causal=True, implementation="cudnn"
    )

  x_BTNH = jax.ShapeDtypeStruct((1, T, 2, 32), jnp.bfloat16)
  assert largest_array(biased, x_BTNH, ids) >= T * T


@pytest.mark.parametrize("form", ["gpt2", "alibi", "softcaps", "latent"])
def test_a_cache_read_as_far_as_it_is_filled_is_the_whole_cache(form):
  model, params = forms.make(form)
  prepared = model.prepare_for_decoding(params)
  tokens_BT = forms.tokens_of(rows=3)[:, :9]
  start_B = jnp.array([130, 0, 127])
  own = jax.tree.map(
    lambda x: jnp.asarray(
      np.random.default_rng(1).normal(size=x.shape).astype(x.dtype)
    ),
    model.init_cache(3, 3 * attend.SLOTS),
  )
  read = jax.jit(
    lambda filled: model.apply_cached(
      prepared, tokens_BT, own, start_B, filled=filled
    )[0]
  )
  whole = jax.jit(lambda: model.apply_cached(prepared, tokens_BT, own, start_B))
  found, wanted = read(139), whole()[0]
  np.testing.assert_allclose(found, wanted, atol=2e-5)
  # Whatever lies behind is not read; a block too few is.
  np.testing.assert_array_equal(read(384), found)
  assert np.abs(read(128)[1:] - wanted[1:]).max() > 1e-3
