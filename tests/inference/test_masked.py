"""An encoder is trained, scored and refused as it should be."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import metric_names, objective
from gpt_jax.inference import scoring
from gpt_jax.models import build_model
from gpt_jax.training import state

ENCODER = (
  "--config.model.family=encoder",
  "--config.data.objective=masked_lm",
  "--config.model.head=transform",
  "--config.sample.every_steps=0",
)


def test_an_encoder_trains_and_reports_its_accuracy_beside_the_baseline(
  call_verb, small_run, tmp_path
):
  workdir = tmp_path / "run"
  done = call_verb("train", *small_run, *ENCODER, f"--workdir={workdir}")
  assert done.returncode == 0, done.stderr
  assert "by the commonest token" in done.stdout
  rows = [
    json.loads(line)
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]
  last = [row for row in rows if "eval/valid/accuracy" in row][-1]
  assert "eval/valid/bits_per_byte" not in last
  plain = call_verb("evaluate", f"--workdir={workdir}", "--json")
  assert plain.returncode == 0, plain.stderr
  assert json.loads(plain.stdout)["accuracy"] == last["eval/valid/accuracy"]
  refused = call_verb("generate", f"--workdir={workdir}", "--prompt=The")
  assert refused.returncode == 2
  assert "encoder, which cannot continue a text" in refused.stderr


@pytest.mark.parametrize(
  ("keys", "sentence"),
  [
    (("--config.data.objective=masked_lm",), "model.family is decoder"),
    (("--config.model.family=encoder",), "model.family is encoder"),
  ],
)
def test_an_objective_that_the_family_cannot_carry_is_refused(
  keys, sentence, call_verb, small_run, tmp_path
):
  done = call_verb("train", *small_run, *keys, f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 2
  assert sentence in done.stderr and "which can be trained with" in done.stderr


def test_the_commonest_share_leaves_separators_out():
  class Set:
    num_ids, separator_id = 8, 9

    def read(self, start, stop):
      return np.array([9, 1, 1, 9, 2, 1, 9, 3])[start:stop]

  assert scoring.commonest_share(Set()) == 3 / 5


def test_parts_of_the_logits_give_the_loss_and_accuracy_of_the_whole():
  config = config_lib.freeze(base.get_config()).model
  sizes = dict(num_layers=1, model_dim=32, mlp_dim=64, max_len=16)
  model = build_model(
    dataclasses.replace(
      config,
      **sizes,
      vocab_size=100,
      family="encoder",
      head="transform",
      bias=True,
    )
  )
  params = state.init_params(model, 0)
  rng = np.random.default_rng(0)
  params["head"]["bias"] = jnp.asarray(rng.normal(0, 3, 128), jnp.float32)
  ids = rng.integers(0, 100, (4, 16), np.int32)
  batch = {"tokens": ids, "targets": ids, "mask": np.ones((4, 16), np.float32)}

  def run(num_chunks, others=(metric_names.ACCURACY,)):
    loss = objective.make_loss(model, num_chunks, others)
    total = lambda p: (loss(p, batch)[metric_names.LOSS], loss(p, batch))
    return jax.jit(jax.value_and_grad(total, has_aux=True))(params)

  ((_, one), grad), ((_, two), grad_parts) = run(1), run(4)
  assert one[metric_names.ACCURACY] == two[metric_names.ACCURACY]
  assert 0 < one[metric_names.ACCURACY] < 64
  np.testing.assert_allclose(
    one[metric_names.LOSS], two[metric_names.LOSS], rtol=1e-5
  )
  for a, b in zip(
    jax.tree.leaves(grad), jax.tree.leaves(grad_parts), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
