"""Initial parameters drawn in chunks are those of init_params, bit for bit."""

import jax
import numpy as np
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import sharding, tree
from gpt_jax.models import build_model
from gpt_jax.training import initial, state

FORMS = {
  "gpt": {},
  "untied, from zero": dict(tied_embeddings=False, unembed_init_std=0.0),
  "bfloat16, mup": dict(
    param_dtype="bfloat16", parametrization="mup", base_dim=16, base_head_dim=8
  ),
}


@pytest.mark.parametrize("data", [0, 1, 77, 2**32 - 1])
def test_keys_fold_as_jax_folds_them(data):
  key = np.array([5, 2**31 + 9], np.uint32)
  there = jax.random.fold_in(jax.random.wrap_key_data(key), np.uint32(data))
  here = initial.fold_in(key, data)
  assert here.tolist() == jax.random.key_data(there).tolist()


@pytest.mark.parametrize("name", FORMS)
def test_every_form_starts_with_the_same_bits(name, monkeypatch):
  monkeypatch.setattr(initial, "CHUNK", 1 << 9)  # most arrays take several
  config = base.get_config()
  with config.unlocked():
    config.model.update(
      num_layers=2, num_heads=4, model_dim=32, mlp_dim=72, max_len=16
    )
    config.model.update(vocab_size=50, vocab_multiple=1, **FORMS[name])
    config.data.seq_len = 16
  model = build_model(config_lib.freeze(config).model)
  seed = 2**32 - 3
  function, given = initial.in_chunks(model, seed)
  here = tree.flatten_with_names(jax.jit(function)(given))
  whole = jax.jit(lambda seed: state.init_params(model, seed))
  there = tree.flatten_with_names(whole(np.uint32(seed)))
  assert here.keys() == there.keys()
  for leaf in here:
    assert here[leaf].dtype == there[leaf].dtype, leaf
    assert np.array(here[leaf]).tobytes() == np.array(there[leaf]).tobytes()


def test_chunks_serve_one_cpu_device_alone():
  model = build_model(config_lib.freeze(_with_vocab()).model)
  mesh = lambda count: sharding.make_mesh(
    config_lib.freeze(_with_vocab(fsdp=count)).mesh, jax.devices()[:count]
  )
  assert initial.is_served(model, mesh(1))
  assert not initial.is_served(model, mesh(2))
  with jax.default_prng_impl("rbg"):
    assert not initial.is_served(model, mesh(1))


def _with_vocab(**mesh):
  config = base.get_config()
  with config.unlocked():
    config.model.vocab_size = 50
    config.mesh.update(mesh)
  return config
