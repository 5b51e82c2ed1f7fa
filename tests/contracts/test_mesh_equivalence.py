"""The same run on any mesh: same initial parameters, same losses."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import metric_names, sharding, tree
from gpt_jax.config import InputError
from gpt_jax.models import build_model
from gpt_jax.parametrization import ParamSpec
from gpt_jax.training import optim, state, step

pytestmark = pytest.mark.battery

T, B, STEPS = 32, 8, 10
MESHES = {
  "fsdp 8": dict(fsdp=8),
  "tensor 8": dict(tensor=8),
  "data 2 x fsdp 2 x tensor 2": dict(data=2, fsdp=2, tensor=2),
  "fsdp 4 x seq 2": dict(fsdp=4, seq=2),
  "data 8": dict(data=8),
}
EXPERT_MESHES = {
  "expert 8": dict(expert=8),
  "fsdp 2 x expert 4": dict(fsdp=2, expert=4),
  "data 2 x expert 2 x tensor 2": dict(data=2, expert=2, tensor=2),
  "fsdp 2 x expert 2 x seq 2": dict(fsdp=2, expert=2, seq=2),
}
FORMS = {
  "gpt2": dict(bias=True),
  "llama": dict(
    norm="rmsnorm",
    position="rope",
    mlp="swiglu",
    tied_embeddings=False,
    scan_layers=True,
  ),
  "bert": dict(
    family="encoder",
    norm_placement="post",
    embed_norm=True,
    num_token_types=2,
    head="transform",
  ),
  "attention": dict(
    family="encoder_decoder",
    norm_placement="post",
    position="sinusoidal",
    scaled_embeddings=True,
    mlp="relu",
    bias=True,
  ),
  "t5": dict(
    family="encoder_decoder",
    norm="rmsnorm",
    position="relative",
    mlp="geglu_tanh",
    attn_scale=1.0,
    tied_embeddings=False,
    scan_layers=True,
  ),
  "classes": dict(
    family="encoder", bias=True, num_token_types=2, head="first", num_classes=5
  ),
  "latent": dict(
    norm="rmsnorm",
    position="rope",
    mlp="swiglu",
    head_dim=12,
    kv_lora_rank=32,
    q_lora_rank=24,
    qk_rope_head_dim=4,
    v_head_dim=6,
  ),
  # Which experts a token goes to jumps where two scores are equal; with these
  # seeds none come as near each other as rounding on other meshes moves them.
  "moe": dict(
    norm="rmsnorm",
    position="rope",
    mlp="swiglu",
    tied_embeddings=False,
    num_experts=8,
    router_balance_weight=0.1,
  ),
}


# Biases of 1e-3 would turn on the ties of an untrained router, which rounding
# on other meshes decides.
FORMS["moe_fine"] = FORMS["moe"] | dict(
  layer_pattern="dense+moe",
  expert_mlp_dim=32,
  num_shared_experts=1,
  router_score="sigmoid",
  router_bias_rate=0.01,
  router_z_weight=0.01,
  expert_capacity_factor=1.25,
)
# Eight devices along one axis take one form, the other meshes every form.
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
ALONG_ONE = {"fsdp 8": "llama", "tensor 8": "gpt2", "data 8": "classes"}


def run_config(form: str, mesh: dict, microbatches: int = 1, **model):
  config = base.get_config()
  with config.unlocked():
    config.model.update(
      num_layers=2,
      model_dim=64,
      num_heads=8,
      mlp_dim=128,
      max_len=T,
      vocab_size=250,
      vocab_multiple=64,
      **FORMS[form] | model,
    )
    config.data.seq_len = T
    if "num_classes" in FORMS[form]:
      config.data.objective = "classification"
    config.optim.update(warmup_steps=3, learning_rate=3e-3, clip_norm=1.0)
    config.train.update(
      num_steps=STEPS, global_batch_size=B, num_microbatches=microbatches
    )
    config.mesh.update(dict.fromkeys(sharding.AXES, 1) | mesh)
  return config_lib.freeze(config)


def labelled(ids):
  """Returns what batches of texts of different lengths have, and labels."""
  lengths, place = 8 + ids[:, :1] % (T - 8), np.arange(T)[None]
  return {
    "targets": ids[:, :1] % 5,
    "mask": np.float32(np.arange(B)[:, None] != 3),
    "segments": np.int32(place >= lengths),
    "types": np.int32(place >= lengths // 2),
  }


def make_run(config, devices: int):
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
  model = build_model(config.model, config.mesh.rules)
  tx = optim.build_optimizer(config.optim, model.abstract_params()[1])
  return mesh, model, tx


@functools.cache
def begun(config, devices: int):
  mesh, model, tx = make_run(config, devices)
  return state.init_state(model, tx, config, mesh)


def source_of(ids) -> dict:
  """Returns sources of S tokens, the last quarter of each row padding."""
  ids_BS = ids[:, : T // 2][:, ::-1]
  is_padding = np.arange(T // 2) >= 3 * T // 8
  return {
    "sources": ids_BS,
    "source_segments": np.tile(is_padding, (B, 1)).astype(np.int32),
    "segments": np.zeros((B, T), np.int32),
  }


def losses_of(
  config, devices: int = 8, seed: int = 0, extra=None
) -> np.ndarray:
  mesh, model, tx = make_run(config, devices)
  schedule = optim.build_schedule(config.optim, STEPS)
  # Initial parameters are the same bits anywhere (a test below): made once.
  form = "gpt2" if config.model.bias else "llama"
  form = "moe" if config.model.num_experts else form
  form = "bert" if config.model.family == "encoder" else form
  if config.model.family == "encoder_decoder":
    form = "attention" if config.model.bias else "t5"
  form = "moe_fine" if config.model.num_shared_experts else form
  form = "latent" if config.model.kv_lora_rank else form
  form = "classes" if config.model.num_classes else form
  source = run_config(form, {}, num_kv_heads=config.model.num_kv_heads)
  abstract = state.abstract_state(model, tx, config, mesh)
  now = jax.tree.map(
    lambda x, a: jax.device_put(np.asarray(x), a.sharding),
    begun(source, 1),
    abstract,
  )
  place = sharding.batch_sharding(mesh, config.mesh.rules)
  train_step = jax.jit(
    step.make_train_step(model, tx, schedule, config), donate_argnums=0
  )
  rng = np.random.default_rng(seed)
  losses = []
  with jax.set_mesh(mesh):
    for _ in range(STEPS):
      ids = rng.integers(0, 250, (B, T + 1)).astype(np.int32)
      batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:]}
      if config_lib.has_source(config.model):
        batch |= source_of(ids)
      if config.model.num_classes is not None:
        batch |= labelled(ids)
      if extra is not None:
        batch |= extra(ids)
      done = train_step(now, jax.device_put(batch, place))
      # The loss alone may be there while other devices are still at work.
      now, result = jax.block_until_ready(done)
      losses.append(float(result[metric_names.LOSS]))
  return np.array(losses)


@functools.cache
def reference(form: str) -> np.ndarray:
  return losses_of(run_config(form, {}), devices=1)


@pytest.mark.parametrize(
  "form, name",
  [
    slow(f, n) if ALONG_ONE.get(n, f) != f else (f, n)
    for f in FORMS
    if f != "moe_fine"  # which counts whole sequences
    for n in MESHES
    if not (f == "classes" and "seq" in n)  # whose texts are whole
  ],
)
def test_losses_agree_on_every_mesh(form, name):
  losses = losses_of(run_config(form, MESHES[name]))
  np.testing.assert_allclose(losses, reference(form), rtol=1e-5)


@pytest.mark.parametrize(
  "form, name",
  [
    ("moe", "expert 8"),
    slow("moe", "fsdp 2 x expert 4"),
    ("moe", "data 2 x expert 2 x tensor 2"),
    ("moe", "fsdp 2 x expert 2 x seq 2"),
    slow("moe_fine", "expert 8"),
    ("moe_fine", "fsdp 2 x expert 4"),
    ("moe_fine", "data 2 x expert 2 x tensor 2"),
  ],
)
def test_losses_agree_on_every_mesh_of_experts(form, name):
  losses = losses_of(run_config(form, EXPERT_MESHES[name]))
  np.testing.assert_allclose(losses, reference(form), rtol=1e-5)


@pytest.mark.parametrize("form", ["moe", "moe_fine"])
def test_rows_that_cannot_be_split_meet_the_same_experts(form):
  config = run_config(form, dict(expert=4, tensor=2))
  mesh, model, _ = make_run(config, 8)
  params = jax.tree.map(np.asarray, begun(run_config(form, {}), 1).params)
  tokens = np.random.default_rng(0).integers(0, 250, (1, T)).astype(np.int32)

  def loss(params):
    out, routing = model.apply(params, tokens, needs_balance=True)
    score = (jax.nn.log_softmax(out[..., :250]) ** 2).mean()
    return score + routing["balance_B"].sum()

  both = jax.jit(jax.value_and_grad(loss))
  value, grads = both(params)
  with jax.set_mesh(mesh):
    # A decoding step has a row or two, however many devices there are.
    there, theirs = both(params)
  np.testing.assert_allclose(there, value, rtol=1e-5)
  names = tree.flatten_with_names(grads)
  for name, grad in tree.flatten_with_names(theirs).items():
    np.testing.assert_allclose(grad, names[name], rtol=1e-3, atol=1e-5)
    assert name.endswith("moe/bias") or np.abs(grad).max() > 5e-5, name


def test_the_expert_axis_splits_the_batch_of_any_model():
  config = run_config("gpt2", dict(fsdp=2, expert=4))
  np.testing.assert_allclose(losses_of(config), reference("gpt2"), rtol=1e-5)
  place = sharding.batch_sharding(sharding.make_mesh(config.mesh), "standard")
  assert place.shard_shape((B, T)) == (1, T)


def test_losses_of_other_data_do_not_agree():
  losses = losses_of(run_config("gpt2", {}), devices=1, seed=1)
  assert np.abs(losses / reference("gpt2") - 1).max() > 1e-4


SPLITS = {
  "seq 8": dict(seq=8),
  "data 2 x seq 4": dict(data=2, seq=4),
  "seq 2 x tensor 4": dict(seq=2, tensor=4),
}
WINDOW = dict(sliding_window=5, attn_softcap=4.0)
SEEN = {
  "all": {},
  "window": WINDOW,
  "grouped": dict(num_kv_heads=4),
  "local and global": WINDOW | dict(layer_pattern="local+global"),
}


def packed(ids):
  """Returns batches whose rows hold documents of 12 and of 20 tokens."""
  lengths = (12, T - 12)
  place = lambda f: np.tile(np.concatenate([*map(f, range(2))]), (B, 1))
  return {
    "segments": place(lambda i: np.full(lengths[i], i, np.int32)),
    "positions": place(lambda i: np.arange(lengths[i], dtype=np.int32)),
    "mask": (ids[:, 1:] % 3 > 0).astype(np.float32),
  }


@functools.cache
def losses_in_order(seen: str, extra=None):
  return losses_of(run_config("llama", {}, **SEEN[seen]), 1, extra=extra)


@pytest.mark.parametrize("how", ["gather", "ring"])
@pytest.mark.parametrize(
  "seen, name",
  [
    slow("all", "seq 8"),  # the packed documents below are split so
    ("all", "data 2 x seq 4"),
    slow("window", "data 2 x seq 4"),
    ("grouped", "seq 2 x tensor 4"),
    ("local and global", "data 2 x seq 4"),
  ],
)
def test_a_row_split_over_devices_has_the_same_losses(seen, name, how):
  config = run_config("llama", SPLITS[name], seq_attention=how, **SEEN[seen])
  np.testing.assert_allclose(
    losses_of(config), losses_in_order(seen), rtol=1e-5
  )


@pytest.mark.parametrize("how", ["gather", "ring"])
def test_packed_documents_split_over_devices_have_the_same_losses(how):
  config = run_config("llama", SPLITS["seq 8"], seq_attention=how)
  apart = losses_in_order("all", packed)
  np.testing.assert_allclose(losses_of(config, extra=packed), apart, rtol=1e-5)
  together = losses_in_order("all")
  assert np.abs(apart / together - 1).max() > 1e-4  # the control


def test_zigzag_gives_every_part_the_same_number_of_pairs_to_score():
  def pairs_of(order, parts):
    seen = np.tril(np.ones((64, 64), int))[order][:, order]
    return seen.sum(1).reshape(parts, -1).sum(1)

  assert np.ptp(pairs_of(sharding.zigzag(64, 8), 8)) == 0
  in_order = pairs_of(np.arange(64), 8)
  assert in_order.max() > 10 * in_order.min()  # the control
  assert sorted(sharding.zigzag(64, 8)) == list(range(64))


@pytest.mark.parametrize(
  "form, mesh",
  [
    slow("gpt2", {}),
    ("gpt2", dict(data=2, tensor=4)),
    ("moe", dict(expert=2, tensor=4)),
    ("latent", {}),
    ("classes", dict(data=2, tensor=4)),
  ],
)
def test_four_microbatches_equal_one(form, mesh):
  config = run_config(form, mesh, microbatches=4)
  losses = losses_of(config, devices=8 if mesh else 1)
  np.testing.assert_allclose(losses, reference(form), rtol=1e-5)


def test_losses_of_unbalanced_experts_do_not_agree():
  losses = losses_of(run_config("moe", {}, router_balance_weight=0.0), 1)
  assert np.abs(losses / reference("moe") - 1).max() > 1e-4


def test_replicated_rules_agree_too():
  config = run_config("gpt2", dict(data=4, fsdp=2))
  config = dataclasses.replace(
    config, mesh=dataclasses.replace(config.mesh, rules="replicated")
  )
  np.testing.assert_allclose(losses_of(config), reference("gpt2"), rtol=1e-5)


def test_dropout_is_the_same_on_every_mesh():
  one = losses_of(run_config("gpt2", {}, dropout_rate=0.2), devices=1)
  all8 = losses_of(
    run_config("gpt2", MESHES["fsdp 4 x seq 2"], dropout_rate=0.2)
  )
  np.testing.assert_allclose(one, all8, rtol=1e-5)


@pytest.mark.parametrize("name", MESHES)
def test_initial_parameters_are_the_same_bits_on_every_mesh(name):
  one = begun(run_config("gpt2", {}), 1)
  many = begun(run_config("gpt2", MESHES[name]), 8)
  a, b = (tree.flatten_with_names(now.params) for now in (one, many))
  for leaf in a:
    np.testing.assert_array_equal(a[leaf], b[leaf], leaf)


def test_no_device_holds_a_whole_sharded_parameter():
  now = begun(run_config("gpt2", dict(fsdp=4, tensor=2)), 8)
  for name, leaf in tree.flatten_with_names(now).items():
    if re.search("/attn/|/mlp/|tokens", name) and "bias" not in name:
      assert leaf.addressable_shards[0].data.size == leaf.size // 8, name


def test_a_device_holds_its_experts_alone():
  experts = begun(run_config("moe", dict(expert=4, fsdp=2)), 8).params["blocks"]
  for leaf in (experts["moe"][name] for name in ("in", "gate", "out")):
    local = leaf.addressable_shards[0].data
    assert local.shape[1] == 2 and local.size == leaf.size // 8


def test_checksums_are_the_same_on_every_mesh_and_see_one_bit():
  one = begun(run_config("gpt2", {}), 1)
  many = begun(run_config("gpt2", MESHES["fsdp 8"]), 8)
  checksum = jax.jit(tree.checksum)
  a = np.asarray(checksum(one.params))
  np.testing.assert_array_equal(a, np.asarray(checksum(many.params)))
  table = np.asarray(one.params["embed"]["tokens"]).copy()
  table.view(np.uint32)[3, 5] ^= 1
  bent = {**one.params, "embed": {**one.params["embed"], "tokens": table}}
  changed = (np.asarray(checksum(bent)) != a).any(axis=1)
  assert changed.sum() == 1


def test_resolver_refuses_what_cannot_be_placed():
  mesh = sharding.make_mesh(run_config("gpt2", dict(fsdp=4, tensor=2)).mesh)
  place = lambda axes, shape: sharding.spec_of(
    "blocks/mlp/in", axes, shape, "standard", mesh
  )
  assert place(("embed", "mlp"), (8, 6)) == jax.P("fsdp", "tensor")
  with pytest.raises(InputError, match="blocks/mlp/in.*'embd'.*know"):
    place(("embd", "mlp"), (8, 6))
  with pytest.raises(InputError, match="'mlp' and 'heads' both want.*tensor"):
    place(("mlp", "heads"), (8, 6))
  with pytest.raises(InputError, match="dim 'embed' is 6, which mesh fsdp 4"):
    place(("embed", "mlp"), (6, 6))


def test_mesh_that_does_not_match_the_devices_is_refused():
  config = run_config("gpt2", dict(fsdp=3))
  with pytest.raises(InputError, match="fsdp 3 does not match the 8 devices"):
    sharding.make_mesh(config.mesh)
  rest = run_config("gpt2", dict(fsdp=-1, tensor=2))
  assert sharding.make_mesh(rest.mesh).shape["fsdp"] == 4


def test_a_stacked_declaration_gains_the_layers_dim():
  assert ParamSpec(("embed",), "hidden").stacked().axes == ("layers", "embed")
