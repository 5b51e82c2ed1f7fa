"""DP-SGD: gradients are clipped one by one, noise is as large as stated."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special
from test_step import batch_of, make, small_config

from gpt_jax import config as config_lib
from gpt_jax import metric_names, objective, tree
from gpt_jax.config import InputError
from gpt_jax.models import build_model
from gpt_jax.training import privacy, state, step

# (noise, rate, steps, delta): epsilon of dp-accounting 0.6 by its
# RdpAccountant, of Poisson samples and the Gaussian mechanism.
KNOWN = {
  (1.1, 256 / 60_000, 14_062, 1e-5): 2.5965558697943036,
  (1.0, 0.01, 1_000, 1e-5): 2.101366525420273,
  (4.0, 0.1, 200, 1e-6): 1.7550479732969526,
  (8.0, 1.0, 10, 1e-5): 1.6712176062087547,
  (2.0, 0.5, 1, 1e-3): 0.9771204718071826,
}


@pytest.mark.parametrize("asked", KNOWN, ids=str)
def test_epsilon_is_that_of_dp_accounting(asked):
  assert privacy.epsilon(*asked) == pytest.approx(KNOWN[asked], rel=1e-6)


def test_a_whole_order_is_the_sum_that_the_paper_gives(monkeypatch):
  # Mironov et al. 2019, eq. 5: the expansion of the binomial.
  noise, rate, a, steps, delta = 0.7, 0.03, 6, 40, 1e-5
  k = np.arange(a + 1)
  moment = np.log(special.comb(a, k)) + k * np.log(rate)
  moment += (a - k) * np.log1p(-rate) + (k * k - k) / (2 * noise**2)
  wanted = steps * special.logsumexp(moment) / (a - 1)
  wanted += np.log1p(-1 / a) - np.log(delta * a) / (a - 1)
  monkeypatch.setattr(privacy, "ORDERS", (a,))
  found = privacy.epsilon(noise, rate, steps, delta)
  assert found == pytest.approx(wanted, rel=1e-9)


def private(parts: int = 1, noise: float = 1e-3, clip: float = 1.0):
  config = small_config(num_microbatches=parts)
  values = {"optim.noise_multiplier": noise, "optim.clip_norm": clip}
  values |= {"model.num_layers": 1}
  return change(config, values)


def change(config, values):
  for key, value in values.items():
    name, field = key.split(".")
    section = dataclasses.replace(getattr(config, name), **{field: value})
    config = dataclasses.replace(config, **{name: section})
  return config


@pytest.mark.wide
def test_each_gradient_is_clipped_as_a_loop_clips_it():
  config = private(parts=2)
  model = build_model(config.model)
  params = jax.jit(lambda: state.init_params(model, 0))()
  batch = batch_of(0)
  minimise = objective.make_objective(model, config)

  @jax.jit
  def one(params, row):
    totals = objective.count_totals(row, 1)
    return jax.grad(minimise, has_aux=True)(params, row, None, totals)

  rows = [
    one(params, {k: v[i : i + 1] for k, v in batch.items()}) for i in range(4)
  ]
  norms = np.array([float(optax.tree.norm(g)) for g, _ in rows])
  clip = float(np.median(norms))  # two are clipped, two are not
  assert (norms < clip).sum() == 2
  scales = np.minimum(1.0, clip / norms)
  wanted = jax.tree.map(
    lambda *leaves: sum(s * g for s, g in zip(scales, leaves, strict=True)) / 4,
    *(g for g, _ in rows),
  )
  config = change(config, {"optim.clip_norm": clip})
  gradient = jax.jit(step.make_gradient(model, config))
  found, metrics = gradient(params, batch, None)
  same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
  jax.tree.map(same, found, wanted)
  losses = [float(m[metric_names.LOSS]) for _, m in rows]
  assert float(metrics[metric_names.LOSS]) == pytest.approx(np.mean(losses))
  # The same by optax.contrib, which holds all gradients at once.
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *(g for g, _ in rows))
  tx = optax.contrib.differentially_private_aggregate(clip, 0.0, key=0)
  jax.tree.map(same, found, tx.update(stacked, tx.init(params))[0])


def test_noise_is_as_large_as_stated_and_another_at_each_step():
  config = private(noise=1.5, clip=0.2)
  zeros = {"a": jnp.zeros(200_000), "b": jnp.zeros(200_000)}
  first, again, other = (
    privacy.add_noise(zeros, config, jnp.int32(s)) for s in (3, 3, 4)
  )
  jax.tree.map(np.testing.assert_array_equal, first, again)
  wanted = 1.5 * 0.2 / config.train.global_batch_size
  for one in (*first.values(), *other.values()):
    assert float(one.std()) == pytest.approx(wanted, rel=0.01)
  for x, y in ((first["a"], first["b"]), (first["a"], other["a"])):
    assert abs(float(jnp.corrcoef(x, y)[0, 1])) < 0.01


@pytest.mark.wide
def test_a_step_adds_noise_and_clips_nothing_after_it():
  train_step, now = make(private(noise=1e3, clip=1e-3))
  count = tree.count_elements(now.params)
  after, metrics = train_step(now, batch_of(0))
  assert int(after.num_skipped) == 0
  # Far above the clipping norm, to which no mean of gradients is clipped.
  wanted = 1e3 * 1e-3 / 4 * np.sqrt(count)
  found = float(metrics[metric_names.GRAD_NORM])
  assert found == pytest.approx(wanted, rel=0.05) and found > 1


@pytest.mark.parametrize(
  "values, words",
  [
    ({"optim.clip_norm": None}, "in units of optim.clip_norm"),
    ({"data.packing": "documents"}, "several documents share a row"),
    ({"train.spike_factor": 4.0}, "leave it None"),
    ({"data.objective": "dpo"}, "pairs and groups of answers"),
  ],
  ids=lambda x: str(x)[:20],
)
def test_what_noise_cannot_protect_is_refused(values, words):
  from configs import base

  config = base.get_config()
  asked = {"optim.noise_multiplier": 1.0, "optim.clip_norm": 1.0} | values
  if values.get("data.objective") == "dpo":
    asked["train.init_from"] = "runs/base"
  config.update_from_flattened_dict(asked)
  with pytest.raises(InputError, match=words):
    config_lib.freeze(config)


def test_what_is_stated_counts_the_sequences_that_are_read():
  class Set:
    num_ids, num_documents, has_labels = 1601, 50, False

  config = private(noise=1.0)
  found = privacy.account(config, [(1.0, Set())])
  # 100 windows of 16, less one whose place lets borders shift.
  assert found["num_sequences"] == 99
  wanted = privacy.epsilon(1.0, 4 / 99, 20, 1e-5)
  assert found["epsilon"] == wanted and found["delta"] == 1e-5
  Set.has_labels = True
  assert privacy.account(config, [(1.0, Set())])["num_sequences"] == 50
  # Of a mixture the source whose sequences come most often decides.
  Set.has_labels, rare = False, Set()
  rare.num_ids = 161
  mixed = privacy.account(config, [(0.5, Set()), (0.5, rare)])
  assert mixed["epsilon"] == privacy.epsilon(1.0, 2 / 10, 20, 1e-5)
  assert privacy.account(small_config(), [(1.0, Set())]) is None
  assert "privacy: (" in privacy.describe(mixed)
