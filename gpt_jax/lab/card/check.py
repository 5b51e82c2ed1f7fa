"""Compares attention and train steps of a GPU with float32 on the CPU."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import metric_names
from gpt_jax.config import Config
from gpt_jax.lab.card.steps import Setting, Steps
from gpt_jax.models import attend
from gpt_jax.ops import blockwise
from gpt_jax.ops.visibility import Rule

# Largest relative error that bfloat16 may have against float32.
TOLERANCE = 2e-2
# Name -> (visibility rule, whether rows hold several documents).
RULES = {
  "attention": (Rule(), False),
  "attention, window": (Rule(window=96), False),
  "attention, documents": (Rule(), True),
  "attention, both ways": (Rule(is_causal=False), False),
  "attention, soft-cap": (Rule(softcap=5.0), False),
}


def check_attention(name: str, setting: Setting) -> dict:
  """Returns a row: relative errors of a GPU's attention and its gradients.

  The reference is blockwise attention in float32 on the CPU.
  """
  rule, is_packed = RULES[name]
  B, K, G, T, H = 2, 2, 2, 256, 64
  random = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(random.standard_normal(shape), "bfloat16")
  q, dy = draw(B, K, G, T, H) / 8, draw(B, K, G, T, H)
  k, v = draw(B, K, T, H), draw(B, K, T, H)
  segments = None
  if is_packed:
    segments = np.sort(random.integers(0, 4, (B, T)), axis=-1).astype(np.int32)

  def value_and_grads(kernel):
    def run(q, k, v, dy):
      y, pull = jax.vjp(lambda *a: kernel(*a, segments, rule), q, k, v)
      return y, *pull(dy.astype(y.dtype))

    return jax.jit(run)

  def fused_kernel(q, k, v, segments, rule):
    if segments is None and rule.softcap is None:
      return attend.cudnn(q, k, v, rule, scale=1.0)
    return attend.flash(q, k, v, segments, rule, scale=1.0)

  device = setting.devices[0]
  fused = value_and_grads(fused_kernel)
  if setting.is_compiled_only:
    mesh = jax.sharding.Mesh([device], ("data",))
    one = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    like = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one)
    with jax.set_mesh(mesh):
      fused.lower(*map(like, (q, k, v, dy))).compile()
    return {"is_compiled": True}
  got = fused(*jax.device_put((q, k, v, dy), device))
  cpu = jax.devices("cpu")[0]
  exact = [np.asarray(a, np.float32) for a in (q, k, v, dy)]
  with jax.default_device(cpu):
    want = value_and_grads(blockwise.strips)(*jax.device_put(exact, cpu))
  errors = {
    name: _relative_error(a, b)
    for name, a, b in zip(("y", "dq", "dk", "dv"), got, want, strict=True)
  }
  return errors | {"is_right": max(errors.values()) < TOLERANCE}


def _relative_error(a: Any, b: Any) -> float:
  a, b = (np.asarray(x, np.float64) for x in (a, b))
  return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def check_steps(config: Config, setting: Setting) -> dict:
  """Returns a row: loss and gradient norm of three steps, here and on the CPU.

  The CPU computes in float32.
  """
  # Autotuning kernels takes longer than it saves at such small sizes.
  is_gpu = setting.devices[0].platform == "gpu"
  options = {"xla_gpu_autotune_level": "0"} if is_gpu else None
  steps = Steps(config, setting.devices, options)
  if setting.is_compiled_only:
    return {"is_compiled": True}
  model = dataclasses.replace(config.model, compute_dtype="float32")
  exact = dataclasses.replace(config, model=model)
  got = _numbers(steps)
  want = _numbers(Steps(exact, jax.devices("cpu")[:1], None))
  error = float(np.abs(np.array(got) / np.array(want) - 1).max())
  return {"got": got, "want": want, "is_right": error < TOLERANCE}


def _numbers(steps: Steps) -> list[float]:
  steps.start()
  names = metric_names.LOSS, metric_names.GRAD_NORM
  return [
    float(metrics[name])
    for metrics in [steps.take() for _ in range(3)]
    for name in names
  ]
