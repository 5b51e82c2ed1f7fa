"""Learning from a teacher: what a step minimises, holds and leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import small_config

from gpt_jax import objective, sharding, tree
from gpt_jax.config import DistillConfig
from gpt_jax.data import logits
from gpt_jax.metric_names import LOSS, TEACHER_KL
from gpt_jax.ops.divergence import Divergence
from gpt_jax.runs import teachers
from gpt_jax.training import build, traced

STEPS, B, T, V = 6, 8, 16, 50


def student_config(mesh=None, model=None, train=None, **distill):
  """A config of 8 rows, which 8 devices divide."""
  config, replace = small_config(), dataclasses.replace
  sizes = dict(num_heads=8, model_dim=64, mlp_dim=128, vocab_multiple=192)
  told = dict(teacher="there", top_k=None, kl="forward", temperature=2.0)
  return replace(
    config,
    train=replace(config.train, **dict(global_batch_size=B) | (train or {})),
    distill=DistillConfig(**told | dict(weight=0.9) | distill),
    model=replace(config.model, **sizes | (model or {})),
    optim=replace(config.optim, learning_rate=3e-3),
    mesh=replace(config.mesh, **dict.fromkeys(sharding.AXES, 1) | (mesh or {})),
  )


# Another form, with other rows of padding, than the student's.
TEACHER = student_config(
  model=dict(
    num_layers=3,
    model_dim=128,
    norm="rmsnorm",
    position="rope",
    mlp="swiglu",
    tied_embeddings=False,
    vocab_multiple=8,
    logit_softcap=3.0,
    scan_layers=True,
  )
).model


@pytest.fixture(autouse=True)
def there(monkeypatch):
  """Stands for the teacher's workdir."""
  read = lambda c: TEACHER if c.distill.top_k is None else None
  monkeypatch.setattr(teachers, "read_model", read)


def drawn(like, seed: int = 7):
  """Returns arrays like `like`, where they are to lie; the same on any mesh."""
  rng = np.random.default_rng(seed)

  def draw(name, x):
    values = rng.normal(0, 0.2, x.shape) + ("norm" in name)
    return jax.device_put(values.astype(x.dtype), x.sharding)

  return tree.map_with_names(draw, like)


def batch_of(seed: int) -> dict:
  rng = np.random.default_rng(seed)
  ids = rng.integers(0, V, (B, T + 1)).astype(np.int32)
  mask = (rng.random((B, T)) > 0.2).astype(np.float32)
  return {"tokens": ids[:, :-1], "targets": ids[:, 1:], "mask": mask}


def run(config, devices: int = 1, batches=batch_of):
  """Returns ([(loss, divergence)], last state)."""
  built = build.assemble(config, jax.devices()[:devices])
  now = built.init_learned()
  if built.abstract.teacher is not None:
    now = now.replace(teacher=drawn(built.abstract.teacher))
  train_step, found = jax.jit(built.make_step(), donate_argnums=0), []
  with jax.set_mesh(built.mesh):
    for seed in range(STEPS):
      batch = jax.device_put(batches(seed % 2), built.batch_place)
      now, metrics = jax.block_until_ready(train_step(now, batch))
      found.append([float(metrics[LOSS]), float(metrics[TEACHER_KL])])
  return np.array(found), now


def plain(config, student, teacher):
  """Returns mean(params, told, batch) as the papers write it."""
  d = config.distill

  def mean(params, told, batch):
    own = student.apply(params, batch["tokens"])[..., :V]
    other = teacher.apply(told, batch["tokens"])[..., :V]
    nll = -jnp.take_along_axis(
      jnp.log(jax.nn.softmax(own)), batch["targets"][..., None], -1
    )[..., 0]
    p = jax.nn.softmax(other / d.temperature)
    q = jax.nn.softmax(own / d.temperature)
    if d.kl == "reverse":
      p, q = q, p
    kl = (p * jnp.log(p / q)).sum(-1) * d.temperature**2
    each = (1 - d.weight) * nll + d.weight * kl
    return (each * batch["mask"]).sum() / batch["mask"].sum()

  return mean


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_value_and_gradient_are_those_of_the_formula(kl, chunks):
  config = student_config(kl=kl, train=dict(num_loss_chunks=chunks))
  built = build.assemble(config, jax.devices()[:1])
  params, told = drawn(built.abstract.params), drawn(built.abstract.teacher, 8)
  mean = plain(config, built.model, built.teacher.model)
  minimise = objective.make_objective(built.model, config, built.teacher)
  batch = batch_of(3)

  def ours(params):
    totals = objective.count_totals(batch)
    return minimise(params, batch, None, totals, told)[0]

  value, grads = jax.jit(jax.value_and_grad(ours))(params)
  wanted, theirs = jax.jit(jax.value_and_grad(mean))(params, told, batch)
  np.testing.assert_allclose(value, wanted, rtol=1e-5)
  largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(theirs))
  named = tree.flatten_with_names(theirs)
  for name, grad in tree.flatten_with_names(grads).items():
    np.testing.assert_allclose(
      grad, named[name], rtol=1e-5, atol=1e-5 * largest, err_msg=name
    )


@pytest.fixture(scope="module")
def alone():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(teachers, "read_model", lambda c: TEACHER)
    return {kl: run(student_config(kl=kl)) for kl in ("forward", "reverse")}


def test_a_student_nears_its_teacher_which_stays_bit_for_bit(alone):
  found, after = alone["forward"]
  without, _ = run(student_config(weight=0.0))
  assert found[-1, 1] < without[-1, 1] - 0.02
  assert found[-1, 0] > without[-1, 0]
  first = tree.flatten_with_names(drawn(after.teacher))
  for name, x in tree.flatten_with_names(after.teacher).items():
    np.testing.assert_array_equal(x, first[name], name)


def test_the_checkpoint_and_the_moments_know_no_teacher():
  built = build.assemble(student_config(), jax.devices()[:1])
  off = dataclasses.replace(
    built.config,
    distill=dataclasses.replace(built.config.distill, teacher=None),
  )
  without = build.assemble(off, jax.devices()[:1]).abstract
  assert without.teacher is None and built.abstract.teacher is not None
  shapes = tree.describe_shapes
  assert shapes(built.abstract.without_frozen()) == shapes(without)


MESHES = [dict(fsdp=8), dict(tensor=8), dict(fsdp=2, tensor=2, seq=2)]


@pytest.mark.parametrize(
  "kl, mesh, chunks",
  [
    *(("forward", mesh, 1) for mesh in MESHES),
    ("reverse", MESHES[2], 2),
  ],
  ids=str,
)
def test_a_student_learns_the_same_on_any_mesh(kl, mesh, chunks, alone):
  train = dict(num_loss_chunks=chunks)
  found, after = run(student_config(mesh, kl=kl, train=train), devices=8)
  np.testing.assert_allclose(found, alone[kl][0], rtol=1e-5)
  if mesh.get("fsdp") == 8:  # no device holds the whole teacher
    q = after.teacher["blocks"]["attn"]["q"]
    assert q.sharding.shard_shape(q.shape)[1] == q.shape[1] // 8


@pytest.mark.parametrize(
  "train", [dict(num_microbatches=4), dict(num_loss_chunks=4)], ids=str
)
@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_parts_of_a_batch_or_of_its_logits_equal_the_whole(kl, train, alone):
  found, _ = run(student_config(kl=kl, train=train))
  np.testing.assert_allclose(found, alone[kl][0], rtol=1e-5)


def test_telemetry_measures_what_is_minimised():
  built = build.assemble(student_config(weight=1.0), jax.devices()[:1])
  now = built.init_state()
  told = built.make_watch()(now, batch_of(0))
  # A teacher that is the student has nothing to tell.
  other = now.replace(teacher=jax.tree.map(jnp.zeros_like, now.teacher))
  without = built.make_watch()(other, batch_of(0))
  name = "telemetry/grad_norm/hidden"
  assert float(told[name]) != float(without[name]) > 0


def stored(top_k: int):
  """Returns batches that hold the largest logits of some teacher."""

  def batches(seed):
    rng = np.random.default_rng(100 + seed)
    p = rng.dirichlet(np.full(V, 0.3), (B, T))
    ids = np.argsort(-p, axis=-1)[..., :top_k].astype(np.int32)
    named = np.take_along_axis(p, ids, -1)
    outcomes = np.concatenate([named, 1 - named.sum(-1, keepdims=True)], -1)
    log_probs = np.log(np.maximum(outcomes, 1e-9)).astype(np.float32)
    return batch_of(seed) | {logits.IDS: ids, logits.LOG_PROBS: log_probs}

  return batches


@pytest.fixture(scope="module")
def alone_on_stored():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(teachers, "read_model", lambda c: None)
    return run(student_config(top_k=6), batches=stored(6))[0]


@pytest.mark.parametrize(
  "mesh, train",
  [
    (dict(fsdp=2, tensor=2, seq=2), {}),
    (dict(fsdp=2, tensor=2, seq=2), dict(num_loss_chunks=2)),
    ({}, dict(num_microbatches=2, num_loss_chunks=3)),
  ],
  ids=str,
)
def test_stored_logits_teach_the_same_on_any_mesh(mesh, train, alone_on_stored):
  config = student_config(mesh, top_k=6, train=train)
  found, _ = run(config, 8 if mesh else 1, stored(6))
  np.testing.assert_allclose(found, alone_on_stored, rtol=1e-5)


@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_coarser_outcomes_diverge_less(kl):
  rng, d = np.random.default_rng(0), Divergence(kl, 1.5)
  own, other = rng.normal(0, 2, (2, 3, 4, 9)).astype(np.float32)
  found = []
  for top_k in (1, 3, 8, 9):
    _, ids = jax.lax.top_k(other, top_k)
    parts = d.log_probs_of(own, ids), d.log_probs_of(other, ids)
    np.testing.assert_allclose(jnp.exp(parts[0]).sum(-1), 1, rtol=1e-5)
    found.append(float(d.sum(*parts)))
  whole = float(d.sum(d.log_probs(own), d.log_probs(other)))
  assert found[0] < found[1] < found[2] < whole * (1 + 1e-5)
  np.testing.assert_allclose(found[3], whole, rtol=1e-5)


def test_a_stored_program_is_that_of_its_teacher():
  built = build.assemble(student_config(), jax.devices()[:1])
  name = lambda teacher: traced.path_of(built.config, built.mesh, teacher)
  other = dataclasses.replace(TEACHER, rope_theta=1e4 + 1)
  model = dataclasses.replace(built.teacher.model, config=other)
  taught = built.teacher._replace(model=model)
  assert len({name(None), name(built.teacher), name(taught)}) == 3
