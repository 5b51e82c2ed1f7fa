"""Compression of a model that others trained, on its own stories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpt_jax
from gpt_jax.deploy.compress import calibrate, layerwise, methods
from gpt_jax.deploy.hf import importing
from gpt_jax.models import stack

T, ROWS, SCORED = 256, 64, 48


@pytest.fixture(scope="module")
def stories(tmp_path_factory, request):
  """(run, rows to calibrate on, rows to score) of stories260k."""
  test_data = request.getfixturevalue("stories_folder")
  place = tmp_path_factory.mktemp("stories") / "run"
  importing.import_model(str(test_data), str(place))
  run = gpt_jax.load(str(place))

  def write(seed: int, count: int):
    texts = run.generate([""] * count, num_tokens=T + 20, seed=seed)
    ids = [run.encode(text)[:T] for text in texts]
    return np.array([row for row in ids if len(row) == T])

  return run, write(1, 2 * ROWS), write(2, SCORED)


@pytest.fixture(scope="module")
def stories_folder():
  import os
  import pathlib

  folder = os.environ.get("GPT_JAX_TEST_DATA")
  if not folder:
    pytest.skip("GPT_JAX_TEST_DATA is not set: no real texts to test on")
  return pathlib.Path(folder) / "stories260k"


@pytest.mark.slow  # writes 176 stories
def test_each_method_costs_what_its_page_says(stories):
  run, texts, scored = stories

  @jax.jit
  def loss(params, rows_BT):
    log_p = jax.nn.log_softmax(run.model.apply(params, rows_BT)[:, :-1])
    return -jnp.take_along_axis(log_p, rows_BT[:, 1:, None], -1).mean()

  with jax.set_mesh(run.mesh):
    full = float(loss(run.params, scored))

  def change(text, seed=0):
    """Returns how much larger the loss is, as a share."""
    rows = texts[np.random.default_rng(seed).permutation(len(texts))[:ROWS]]
    method = methods.parse(text)
    with jax.set_mesh(run.mesh):
      made = methods.apply(method, run.config, run.model, run.params, rows)
      whole = jax.jit(run.model.restore_matrices)(made.params)
      return float(loss(whole, scored)) / full - 1, whole

  assert abs(change("int8")[0]) < 1e-3
  plain = change("int4")[0]
  for seed in range(3):
    assert change("gptq", seed)[0] < 0.8 * plain, seed
  assert change("wanda:50")[0] < 0.9 * change("magnitude:50")[0]
  pruned = change("wanda:2of4")[1]
  work = stack.unstack_layers(pruned, run.model.stacks)
  own = calibrate.apart(run.model)
  for name, role in calibrate.list_matrices(own, work).items():
    w_FD = calibrate.by_rows(layerwise.leaf_of(work, name), role)
    counts = (w_FD.reshape(len(w_FD), -1, 4) != 0).sum(-1)
    assert (counts == 2).all(), name
