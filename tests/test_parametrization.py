"""The table of parametrizations: every row does what it says, and no more."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from harness import init_params

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import metric_names, parametrization, tree
from gpt_jax.config import InputError
from gpt_jax.models import build_model
from gpt_jax.parametrization import ParamSpec
from gpt_jax.training import optim, state, step

D, L, H, T, V = 32, 2, 8, 16, 64
# Of the model below, four times as wide and twice as deep as its base.
WIDE, DEEP = 4.0, 2.0
GROWN = dict(base_dim=D // 4, base_layers=L // 2, base_head_dim=H // 4)


def config_of(word: str, optim_changes=(), **model) -> config_lib.Config:
  config = base.get_config()
  config.model.update(
    num_layers=L,
    model_dim=D,
    num_heads=D // H,
    mlp_dim=2 * D,
    max_len=T,
    vocab_size=V,
    vocab_multiple=1,
    init_std=0.1,
    parametrization=word,
  )
  config.model.update(model)
  config.data.seq_len = T
  config.optim.update(dict(optim_changes))
  return config_lib.freeze(config)


def named_specs(word: str, **model) -> dict[str, ParamSpec]:
  found = build_model(config_of(word, **model).model).abstract_params()[1]
  return tree.flatten_with_names(found)


def tokens(rows: int = 2):
  ids = np.random.default_rng(0).integers(0, V, (rows, T + 1))
  return ids.astype(np.int32)


def train(config, steps: int = 3):
  """Returns (losses, the last parameters by name)."""
  model = build_model(config.model)
  tx = optim.build_optimizer(config.optim, model.abstract_params()[1])
  schedule = optim.build_schedule(config.optim, config.train.num_steps)
  params = init_params(model, 0)
  zero = jnp.int32(0)
  now = state.TrainState(zero, params, tx.init(params), zero, zero)
  one = jax.jit(step.make_train_step(model, tx, schedule, config))
  losses, ids = [], tokens()
  for _ in range(steps):
    now, seen = one(now, {"tokens": ids[:, :-1], "targets": ids[:, 1:]})
    losses.append(float(seen[metric_names.LOSS]))
  return losses, tree.flatten_with_names(jax.device_get(now.params))


@pytest.mark.parametrize("word", ["mup", "completep"])
def test_at_its_base_every_parametrization_is_the_standard_one(word):
  standard, expected = train(config_of("standard"))
  at_base = dict(base_dim=D, base_layers=L, base_head_dim=H)
  losses, params = train(config_of(word, **at_base))
  assert losses == standard
  for name, leaf in expected.items():
    np.testing.assert_array_equal(params[name], leaf, err_msg=name)
  grown, _ = train(config_of(word, **at_base | GROWN))
  assert grown != standard  # the control


def test_standard_takes_no_notice_of_a_base():
  assert (
    train(config_of("standard", **GROWN))[0] == train(config_of("standard"))[0]
  )


# Role -> what its weights' deviation is divided by at WIDE, and at WIDE, DEEP.
STDS = {
  "embed": (1, 1),
  "unembed": (1, 1),
  "position": (1, 1),
  "hidden": (2, 2),
  "residual": (2 * 4**0.5, 2 * 2**0.5),
  "router": (4, 4),
}


@pytest.mark.parametrize("column,word", [(0, "mup"), (1, "completep")])
@pytest.mark.parametrize("role", STDS)
def test_weights_start_as_wide_as_the_table_says(role, column, word):
  config = config_of(word, **GROWN).model
  spec = ParamSpec(("embed", "mlp"), role)
  drawn = parametrization.init_param(
    jax.random.key(0), spec, (512, 512), jnp.float32, config
  )
  expected = 0.1 / STDS[role][column]
  assert float(drawn.std()) == pytest.approx(expected, rel=0.01)


def test_an_output_matrix_of_its_own_starts_as_it_is_told():
  made = lambda **kw: config_of("mup", tied_embeddings=False, **kw, **GROWN)
  start = lambda config: init_params(build_model(config.model), 0)
  level = jax.device_get(start(made(unembed_init_std=0.0)))
  assert not level.pop("unembed").any()
  usual = jax.device_get(start(made()))
  assert usual.pop("unembed").any()
  jax.tree.map(np.testing.assert_array_equal, level, usual)
  with pytest.raises(InputError, match="unembed_init_std is 0 and .*tied"):
    config_of("standard", unembed_init_std=0.0)


def test_rates_and_eps_are_as_the_table_says():
  form = dict(tied_embeddings=False, bias=True, num_experts=2)
  for word, n in (("mup", 1.0), ("completep", DEEP)):
    found = {
      name: (spec.rate, spec.eps)
      for name, spec in named_specs(word, **form, **GROWN).items()
    }
    m = WIDE
    matrix, vector = (1 / m, 1 / m / n), (1.0, 1 / m / n)
    expected = {
      "embed/tokens": (1.0, 1 / m),
      "embed/positions": (1.0, 1 / m),
      "unembed": (1.0, 1 / m),
      "final_norm/scale": (1.0, 1 / m),
      "blocks/attn/q": matrix,
      "blocks/attn/o": matrix,
      "blocks/attn/q_bias": vector,
      "blocks/norm_mlp/scale": vector,
      "blocks/moe/in": matrix,
      "blocks/moe/out": matrix,
      "blocks/moe/router": (1 / m, 1 / n),
    }
    assert {k: found[k] for k in expected} == expected
  plain = named_specs("standard", **form, **GROWN).values()
  assert {(s.rate, s.eps) for s in plain} == {(1.0, 1.0)}


def test_adam_follows_rate_and_eps_and_decay_does_not():
  section = config_of("standard", {"weight_decay": 0.3, "eps": 0.5}).optim
  spec = ParamSpec(("embed", "mlp"), "hidden", rate=0.25, eps=0.125)
  params = {"w": jnp.full((2, 2), 2.0)}
  tx = optim.build_optimizer(section, {"w": spec})
  theirs = optax.scale_by_adam(section.beta1, section.beta2, 0.5 * 0.125)
  ours_state, theirs_state = tx.init(params), theirs.init(params)
  for seed in range(3):
    noise = np.random.default_rng(seed).standard_normal((2, 2))
    grads = {"w": jnp.asarray(noise, jnp.float32)}
    ours, ours_state = tx.update(grads, ours_state, params)
    adam, theirs_state = theirs.update(grads, theirs_state)
    expected = 0.25 * adam["w"] + 0.3 * 2.0
    np.testing.assert_allclose(ours["w"], expected, rtol=1e-6)
  plain = optim.build_optimizer(section, {"w": ParamSpec((), "hidden")})
  other, _ = plain.update(grads, plain.init(params), params)
  assert not np.allclose(other["w"], expected, rtol=1e-2)  # the control


def apply(config, params, **kw):
  model = build_model(config.model)
  return model, jax.jit(lambda p: model.apply(p, tokens()[:, :-1], **kw))(
    params
  )


@pytest.mark.parametrize("is_tied", [True, False])
def test_logits_are_divided_by_the_width_ratio(is_tied):
  form = dict(tied_embeddings=is_tied, base_dim=D // 4)
  plain, wide = (config_of(w, **form) for w in ("standard", "mup"))
  params = init_params(build_model(plain.model), 0)
  _, expected = apply(plain, params)
  _, found = apply(wide, params)
  np.testing.assert_allclose(found, expected / WIDE, rtol=1e-5, atol=1e-6)
  # And where the loss makes them in parts.
  _, (x_BTD, w_VD) = apply(wide, params, is_headless=True)
  np.testing.assert_allclose(
    x_BTD @ w_VD.T, expected / WIDE, rtol=1e-4, atol=1e-5
  )


def test_completep_divides_what_a_sublayer_adds_by_the_depth_ratio():
  form = dict(base_dim=D, base_layers=L // 2)
  params = init_params(build_model(config_of("standard").model), 0)
  deep = build_model(config_of("completep", **form).model)
  plain = build_model(config_of("standard").model)
  halved = params | {"blocks": dict(params["blocks"])}
  halved["blocks"]["attn"] = params["blocks"]["attn"] | {
    "o": params["blocks"]["attn"]["o"] / DEEP
  }
  halved["blocks"]["mlp"] = params["blocks"]["mlp"] | {
    "out": params["blocks"]["mlp"]["out"] / DEEP
  }
  ids = tokens()[:, :-1]
  found, apply = jax.jit(deep.apply)(params, ids), jax.jit(plain.apply)
  np.testing.assert_allclose(found, apply(halved, ids), atol=1e-5)
  assert not np.allclose(found, apply(params, ids), atol=1e-3)


def test_scores_are_divided_by_the_head_width_beyond_the_base():
  scale = lambda word, **kw: parametrization.attention_multiplier(
    config_of(word, base_dim=D, base_layers=L, **kw).model, 64
  )
  assert scale("standard", base_head_dim=16) == 64**-0.5
  assert scale("mup", base_head_dim=16) == 16**0.5 / 64
  assert scale("mup", base_head_dim=64) == 64**-0.5
  assert scale("mup") == 64**-0.5


@pytest.mark.parametrize(
  "word,changes,optimizer,sentence",
  [
    ("mup", {}, "adamw", "base_dim is None"),
    ("completep", dict(base_dim=8), "adamw", "base_layers is None"),
    ("mup", dict(base_dim=8), "muon", "rules for adamw and adam"),
    (
      "completep",
      dict(base_dim=8, base_layers=1, norm_placement="post"),
      "adamw",
      "must be pre",
    ),
    ("mupp", {}, "adamw", "must be one of standard, mup, completep"),
  ],
)
def test_what_has_no_rule_is_refused(word, changes, optimizer, sentence):
  with pytest.raises(InputError, match=sentence):
    config_of(word, {"optimizer": optimizer}, **changes)
