"""Steps on preferences: their gradients, meshes and microbatches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import small_config

from gpt_jax import judging, metric_names, objective, sharding, tree
from gpt_jax.config import AdapterConfig
from gpt_jax.ops import preferences
from gpt_jax.training import build, step

T, ROWS, BETA = 32, 8, 0.3


def config_of(word="dpo", mesh=None, adapter="none", **train):
  config = small_config(init_from="/nowhere")
  replace = dataclasses.replace
  train = dict(global_batch_size=ROWS, preference_beta=BETA) | train
  sizes = dict(num_heads=8, model_dim=64, mlp_dim=128, vocab_multiple=64)
  return replace(
    config,
    data=replace(config.data, objective=word, seq_len=T),
    train=replace(config.train, **train),
    model=replace(config.model, **sizes, max_len=T),
    optim=replace(config.optim, learning_rate=1e-2),
    adapter=AdapterConfig(rank=adapter, alpha=8.0, kind="lora", base="full"),
    mesh=replace(config.mesh, **dict.fromkeys(sharding.AXES, 1) | (mesh or {})),
  )


def draw_pairs(seed: int = 0):
  """Returns ROWS of (prompt, [chosen, rejected]), ids of unlike lengths."""
  rng = np.random.default_rng(seed)
  ids = lambda low, high: rng.integers(1, 50, rng.integers(low, high)).tolist()
  return [(ids(2, 6), [ids(2, 9), ids(2, 9)]) for _ in range(ROWS)]


def batch_of(pairs, reference_B2=None) -> dict:
  """Returns the batch of these rows, filled up by hand."""
  names = ("tokens", "targets", "segments", "positions")
  batch: dict = {name: np.zeros((ROWS, T), np.int32) for name in names}
  batch["mask"] = np.zeros((ROWS, T), np.float32)
  batch["labels"] = np.tile(np.float32([1, -1]), (ROWS, 1))
  batch["reference"] = np.zeros((ROWS, 2), np.float32)
  if reference_B2 is not None:
    batch["reference"] = reference_B2.astype(np.float32)
  for row, (prompt, answers) in enumerate(pairs):
    at = 0
    for side, answer in enumerate(answers):
      ids = [*prompt, *answer]
      end = at + len(ids) - 1
      batch["tokens"][row, at:end] = ids[:-1]
      batch["targets"][row, at:end] = ids[1:]
      batch["mask"][row, end - len(answer) : end] = 1
      batch["segments"][row, at:] = side
      batch["positions"][row, at:] = np.arange(T - at)
      at = end
  return batch


def log_p_of(model, params, pairs):
  """Returns log-probabilities (B, 2), of each answer in a row of its own."""
  alone = [([*prompt, *y], len(y)) for prompt, both in pairs for y in both]
  ids = np.zeros((2 * ROWS, T + 1), np.int32)
  counts = np.zeros((2 * ROWS, T), bool)
  for row, (each, size) in enumerate(alone):
    ids[row, : len(each)] = each
    counts[row, len(each) - 1 - size : len(each) - 1] = True
  logits_BTV = model.apply(params, ids[:, :-1])
  log_p_BTV = logits_BTV - jax.nn.logsumexp(logits_BTV, -1, keepdims=True)
  log_p_BT = jnp.take_along_axis(log_p_BTV, ids[:, 1:, None], -1)[..., 0]
  return jnp.where(counts, log_p_BT, 0).sum(1).reshape(-1, 2)


def dpo(log_p_B2, reference_B2, pairs):
  """Rafailov et al. 2023, equation 7."""
  ratio_B2 = log_p_B2 - reference_B2
  inside_B = BETA * ratio_B2[:, 0] - BETA * ratio_B2[:, 1]
  return jnp.mean(jnp.log1p(jnp.exp(-inside_B)))


def ipo(log_p_B2, reference_B2, pairs):
  """Azar et al. 2023, equation 17; h of equation 12."""
  h_B = log_p_B2[:, 0] - log_p_B2[:, 1]
  h_B += reference_B2[:, 1] - reference_B2[:, 0]
  return jnp.mean((h_B - 1 / (2 * BETA)) ** 2)


def orpo(log_p_B2, reference_B2, pairs):
  """Hong et al. 2024, equations 3 to 7."""
  num_B2 = np.array([[len(y) for y in answers] for _, answers in pairs])
  p_B2 = jnp.exp(log_p_B2 / num_B2)
  odds_B2 = p_B2 / (1 - p_B2)
  inside_B = jnp.log(odds_B2[:, 0] / odds_B2[:, 1])
  by_odds_B = -jnp.log(1 / (1 + jnp.exp(-inside_B)))
  return jnp.mean(-log_p_B2[:, 0] / num_B2[:, 0] + BETA * by_odds_B)


def kto(log_p_B2, reference_B2, pairs):
  """Ethayarajh et al. 2024, equation 8, with both weights 1."""
  ratio_B2 = log_p_B2 - reference_B2
  z = jnp.maximum(0.0, jax.lax.stop_gradient(ratio_B2[:, 1].mean()))
  value = lambda x: 1 / (1 + jnp.exp(-BETA * x))
  good, bad = value(ratio_B2[:, 0] - z), value(z - ratio_B2[:, 0])
  return jnp.mean(1 - jnp.where(GOOD[:, 0] > 0, good, bad))


# Whether the first answer of a row is good, of kto alone.
GOOD = np.float32([[1, 0], [-1, 0]] * (ROWS // 2))
# {option of data.objective: the loss of its paper}
PAPERS = {"dpo": dpo, "ipo": ipo, "orpo": orpo, "kto": kto}


def batch_for(word: str, pairs, reference_B2) -> dict:
  batch = batch_of(pairs, reference_B2)
  if word == "kto":
    batch["labels"] = GOOD.copy()
  if word == "orpo":
    del batch["reference"]
  return batch


def begin(config, devices: int = 1):
  built = build.assemble(config, jax.devices()[:devices])
  return built, built.init_state()


def gradient_of(config, batch, params, base=None):
  built = build.assemble(config, jax.devices()[:1])
  gradient = jax.jit(step.make_gradient(built.model, config))
  with jax.set_mesh(built.mesh):
    return jax.device_get(gradient(params, batch, None, base))


def assert_close(found, wanted, bound=1e-5, least=1e-6):
  found, wanted = map(tree.flatten_with_names, (found, wanted))
  assert found.keys() == wanted.keys()
  for name, x in wanted.items():
    size = max(float(np.abs(x).max()), least)
    np.testing.assert_allclose(
      found[name] / size, x / size, rtol=0, atol=bound, err_msg=name
    )


@pytest.fixture(scope="module")
def case():
  """(pairs, reference's log-probabilities) of a model that is not the run's."""
  pairs, rng = draw_pairs(), np.random.default_rng(1)
  num_B2 = np.array([[len(y) for y in answers] for _, answers in pairs])
  # About what the run's model gives, a little less, so that ratios differ.
  return pairs, -4.5 * num_B2 + rng.normal(0, 2, (ROWS, 2))


@pytest.mark.parametrize("word", PAPERS)
def test_loss_and_gradient_are_those_of_the_paper(word, case):
  pairs, reference_B2 = case
  config = config_of(word)
  built, now = begin(config)
  log_p = lambda p: log_p_of(built.model, p, pairs)
  loss = lambda p: PAPERS[word](log_p(p), reference_B2, pairs)
  wanted, by_hand = jax.jit(jax.value_and_grad(loss))(now.params)
  batch = batch_for(word, pairs, reference_B2)
  found, metrics = gradient_of(config, batch, now.params)
  assert metrics[metric_names.LOSS] == pytest.approx(float(wanted), rel=1e-5)
  assert_close(found, by_hand)


def test_odds_of_a_certain_answer_are_finite():
  def loss(log_p_B2):
    num_B2, label_B = jnp.full((1, 2), 3.0), jnp.ones(1)
    answers = preferences.Answers(log_p_B2, None, num_B2, label_B)
    return preferences.orpo(answers, BETA).loss_B[0]

  found = jax.value_and_grad(loss)
  learned, grad_12 = found(jnp.array([[0.0, -5.0]]))
  assert abs(learned) < 1e-5
  np.testing.assert_allclose(grad_12, [[-1 / 3, 0]], atol=1e-5)
  # Rounding can make a sum of log-probabilities larger than 0.
  for most in (0.0, 1e-6):
    wrong, grad_12 = found(jnp.array([[-5.0, most]]))
    near, _ = found(jnp.array([[-5.0, -3e-5]]))
    assert near < wrong < 2 * near and np.isfinite(grad_12).all()


@pytest.mark.battery
@pytest.mark.parametrize("word", PAPERS)
def test_microbatches_are_the_whole(word, case):
  pairs, reference_B2 = case
  batch = batch_for(word, pairs, reference_B2)
  batch["labels"][5] = batch["mask"][5] = 0  # a row that holds nothing
  _, now = begin(config_of(word))
  whole, metrics = gradient_of(config_of(word), batch, now.params)
  config = config_of(word, num_microbatches=4)
  parts, summed = gradient_of(config, batch, now.params)
  assert_close(parts, whole)
  assert_close(summed, metrics, least=1.0)


@pytest.mark.wide
def test_metrics_are_means_over_the_pairs_that_there_are(case):
  pairs, reference_B2 = case
  batch = batch_of(pairs, reference_B2)
  batch["labels"][3:5] = batch["mask"][3:5] = 0
  built, now = begin(config_of())
  _, metrics = gradient_of(config_of(), batch, now.params)
  there = [i for i in range(ROWS) if i not in (3, 4)]
  log_p_B2 = np.asarray(log_p_of(built.model, now.params, pairs))[there]
  reward_B2 = BETA * (log_p_B2 - reference_B2[there])
  margin_B = reward_B2[:, 0] - reward_B2[:, 1]
  assert 0 < np.mean(margin_B > 0) < 1
  wanted = {
    metric_names.REWARD_MARGIN: margin_B,
    metric_names.REWARD_ACCURACY: margin_B > 0,
    metric_names.CHOSEN_LOG_PROB: log_p_B2[:, 0],
    metric_names.REJECTED_LOG_PROB: log_p_B2[:, 1],
    metric_names.LOSS: np.log1p(np.exp(-margin_B)),
  }
  for name, values in wanted.items():
    np.testing.assert_allclose(metrics[name], values.mean(), 1e-5, 1e-6)


def run(config, batch, devices: int = 1, steps: int = 4):
  """Returns (losses, margins, base before, last state)."""
  built, now = begin(config, devices)
  base = jax.tree.map(np.asarray, now.base)
  train_step = jax.jit(built.make_step(), donate_argnums=0)
  losses, margins = [], []
  with jax.set_mesh(built.mesh):
    placed = jax.device_put(batch, built.batch_place)
    for _ in range(steps):
      now, found = jax.block_until_ready(train_step(now, placed))
      losses.append(float(found[metric_names.LOSS]))
      margins.append(float(found[metric_names.REWARD_MARGIN]))
  return np.array(losses), np.array(margins), base, now


def test_ktos_answers_are_averaged_by_their_labels(case):
  pairs, reference_B2 = case
  batch = batch_for("kto", pairs, reference_B2)
  batch["labels"][2] = batch["mask"][2] = 0  # a good one less
  config = config_of("kto", num_microbatches=2)
  built, now = begin(config)
  _, metrics = gradient_of(config, batch, now.params)
  log_p_B2 = np.asarray(log_p_of(built.model, now.params, pairs))
  ratio_B2 = log_p_B2 - reference_B2
  there = np.arange(ROWS) != 2
  z = max(0.0, ratio_B2[there, 1].mean())
  assert z > 0
  good, bad = there & (GOOD[:, 0] > 0), GOOD[:, 0] < 0
  reward_B = BETA * ratio_B2[:, 0]
  right = np.append(ratio_B2[good, 0] > z, ratio_B2[bad, 0] < z)
  wanted = {
    metric_names.CHOSEN_REWARD: reward_B[good].mean(),
    metric_names.REJECTED_REWARD: reward_B[bad].mean(),
    metric_names.REWARD_MARGIN: reward_B[good].mean() - reward_B[bad].mean(),
    metric_names.CHOSEN_LOG_PROB: log_p_B2[good, 0].mean(),
    metric_names.REJECTED_LOG_PROB: log_p_B2[bad, 0].mean(),
    metric_names.REWARD_ACCURACY: right.mean(),
  }
  for name, value in wanted.items():
    np.testing.assert_allclose(metrics[name], value, 1e-5, 1e-6, err_msg=name)


MESHES = (dict(fsdp=8), dict(tensor=8), dict(data=2, fsdp=2, tensor=2))


@pytest.mark.battery
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("word", ["dpo", "kto"])
def test_a_mesh_gives_the_same_losses(word, mesh, case):
  pairs, reference_B2 = case
  batch = batch_for(word, pairs, reference_B2)
  parts = 1 if "fsdp" in mesh else 2
  alone, *_ = run(config_of(word), batch)
  config = config_of(word, mesh=mesh, num_microbatches=parts)
  split, *_ = run(config, batch, 8)
  np.testing.assert_allclose(split, alone, rtol=1e-5)
  assert alone[-1] < alone[0]


@pytest.mark.wide
def test_adapters_learn_preferences_and_their_base_stays(case):
  pairs, _ = case
  config = config_of(adapter="attn=4")
  built, now = begin(config)
  whole = built.model.attach(now.params, now.base)
  reference_B2 = np.asarray(log_p_of(built.model, whole, pairs))
  batch = batch_of(pairs, reference_B2)
  losses, margins, base, after = run(config, batch, steps=8)
  assert losses[0] == pytest.approx(np.log(2), abs=1e-5)
  assert abs(margins[0]) < 1e-4 and margins[-1] > 0.01
  named = tree.flatten_with_names(after.base)
  for name, x in tree.flatten_with_names(base).items():
    np.testing.assert_array_equal(named[name], x)


def test_an_answer_does_not_see_the_other(case):
  """The control of rows: without segments the rejected one reads the chosen."""
  pairs, _ = case
  built, now = begin(config_of())
  batch = batch_of(pairs)
  read = lambda logits: judging.answers_of(logits, batch).log_p_B2
  apply = lambda b: read(
    built.model.apply(now.params, **objective.inputs_of(b, built.model))
  )
  found, wanted = apply(batch), log_p_of(built.model, now.params, pairs)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  logits = built.model.apply(now.params, batch["tokens"])
  leaking = read(logits)
  assert np.abs(leaking - wanted)[:, 1].max() > 1e-3
