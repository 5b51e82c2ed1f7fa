"""Compares attention kernels with a naive one: gpt_jax.lab.plan.attention.

The reference is numpy in float64 with gradients derived by hand, and shares no
code with the kernels. A leak is a gradient of a token that the mask hides, such
as a later token or one of another document; it must be exactly zero. From a
notebook: compare(kernel, feature).
"""

import dataclasses
import sys

from gpt_jax import cli
from gpt_jax.config import InputError
from gpt_jax.machine import runtime
from gpt_jax.ops import visibility
from gpt_jax.ops.visibility import Rule, TokenPositions

SHAPE = dict(B=2, N=4, H=64)
# Name -> (option of model.attention, platform, mesh, model.seq_attention, T).
KERNELS = {
  "dense": ("dense", "cpu", {}, "gather", 512),
  "dense, 8 devices": (
    "dense",
    "cpu",
    dict(data=2, seq=2, tensor=2),
    "gather",
    512,
  ),
  "blocks": ("blocks", "cpu", {}, "gather", 512),
  "blocks, 8 devices": (
    "blocks",
    "cpu",
    dict(data=2, fsdp=1, tensor=4),
    "gather",
    512,
  ),
  "blocks, keys gathered": ("blocks", "cpu", dict(seq=8), "gather", 512),
  "blocks, ring": ("blocks", "cpu", dict(seq=8), "ring", 512),
  "splash": ("splash", "interpreted", {}, "gather", 512),
  "splash, 8 devices": (
    "splash",
    "interpreted",
    dict(fsdp=2, tensor=4),
    "gather",
    512,
  ),
  "splash, keys gathered": (
    "splash",
    "interpreted",
    dict(data=2, seq=2, tensor=2),
    "gather",
    512,
  ),
  "splash, ring": (
    "splash",
    "interpreted",
    dict(data=2, seq=2, tensor=2),
    "ring",
    512,
  ),
  "flash": ("flash", "interpreted", {}, "gather", 192),
  "flash, 8 devices": (
    "flash",
    "interpreted",
    dict(fsdp=2, tensor=4),
    "gather",
    200,
  ),
}
# The feature in which values are half as wide as keys.
NARROW = "narrow values, all"
# Name -> (rule, key heads, whether documents are packed).
FEATURES = {
  "plain": (Rule(), SHAPE["N"], False),
  "window": (Rule(window=100), SHAPE["N"], False),
  "soft-cap": (Rule(softcap=2.0), SHAPE["N"], False),
  "grouped": (Rule(), 2, False),
  "segments": (Rule(), SHAPE["N"], True),
  "all": (Rule(window=100, softcap=2.0), 1, True),
  "both ways": (Rule(is_causal=False), SHAPE["N"], False),
  "both ways, window": (Rule(False, window=100), 2, False),
  "both ways, all": (Rule(False, 100, 2.0), 1, True),
  NARROW: (Rule(window=100, softcap=2.0), 2, True),
}


@dataclasses.dataclass(frozen=True)
class Result:
  """Largest absolute errors; entries of the arrays are of order one.

  Attributes:
    forward: of y.
    backward: of the gradients of q, k and v.
    leak: largest gradient of a token that the mask hides; must be zero.
  """

  forward: float
  backward: float
  leak: float


def value_dim_of(feature: str) -> int:
  """Returns the width of the values."""
  return SHAPE["H"] // 2 if feature == NARROW else SHAPE["H"]


def visible(rule: Rule, length: int, num_rows: int, segments_BT):
  """Returns mask_BTS, numpy: whether query t may attend to key s."""
  import numpy as np

  t, s = np.mgrid[:length, :length]
  mask = (s <= t) | (not rule.is_causal)
  if rule.window is not None:
    mask &= abs(t - s) < rule.window
  mask = np.broadcast_to(mask, (num_rows, length, length))
  if segments_BT is not None:
    mask = mask & (segments_BT[:, :, None] == segments_BT[:, None])
  return mask


def naive(q, k, v, dy, rule: Rule, segments_BT):
  """Returns (y, dq, dk, dv) in float64, for arrays in Attention's layout."""
  import numpy as np

  q, k, v, dy = (np.asarray(x, np.float64) for x in (q, k, v, dy))
  k, v = k[:, :, None], v[:, :, None]  # one for each group of queries
  T, scale = q.shape[3], q.shape[-1] ** -0.5
  s = q @ k.mT * scale
  slope = 1.0
  if rule.softcap is not None:
    tanh = np.tanh(s / rule.softcap)
    slope = 1 - tanh**2
    s = rule.softcap * tanh
  mask = visible(rule, T, len(q), segments_BT)
  s = np.where(mask[:, None, None], s, -np.inf)
  p = np.exp(s - s.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  y, dv, dp = p @ v, p.mT @ dy, dy @ v.mT
  ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * slope * scale
  return y, ds @ k, (ds.mT @ q).sum(2), dv.sum(2)


def make_inputs(
  num_kv_heads: int, length: int, is_packed: bool, value_dim=SHAPE["H"]
):
  """Returns (q, k, v, dy, segments_BT or None), numpy float32."""
  import numpy as np

  rng = np.random.default_rng(0)
  B, N, H, K = *SHAPE.values(), num_kv_heads
  queries, keys = (B, K, N // K, length, H), (B, K, length, H)
  values, outputs = ((*s[:-1], value_dim) for s in (keys, queries))
  shapes = queries, keys, values, outputs
  arrays = [rng.normal(size=s).astype(np.float32) for s in shapes]
  segments = None
  if is_packed:
    borders = np.array([[length // 3, length // 2], [5, length - 70]])
    slots = np.arange(length)
    segments = (slots >= borders[..., None]).sum(1).astype(np.int32)
  return *arrays, segments


def make_attention(kernel: str, rule: Rule, devices=None):
  """Returns (mesh, f(q, k, v, dy, segments_BT) -> (y, dq, dk, dv)).

  Arguments and results of f are in the order of the text, even if the kernel
  needs another order of tokens (sharding.zigzag).

  Args:
    devices: TPUs to compile for, here or not; None for simulated devices.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  from configs import base
  from gpt_jax import config as config_lib
  from gpt_jax import sharding
  from gpt_jax.models import attend
  from gpt_jax.models.context import Context

  word, platform, axes, how, T = KERNELS[kernel]
  model = config_lib.freeze(base.get_config()).model
  model = dataclasses.replace(
    model, attention=word, seq_attention=how, num_heads=SHAPE["N"]
  )
  section = base.get_config().mesh
  section.update(dict.fromkeys(sharding.AXES, 1) | axes)
  count = int(np.prod([section[a] for a in sharding.AXES]))
  mesh = sharding.make_mesh(
    config_lib.MeshConfig(**section),
    (devices or jax.devices("cpu"))[:count],
  )
  if devices:
    platform = "tpu"
  parts = section.seq
  is_zigzag = word != "dense" and rule.is_causal
  order = sharding.zigzag(T, parts) if is_zigzag else np.arange(T)

  @jax.jit
  def run(q, k, v, dy, segments_BT):
    if segments_BT is not None:
      segments_BT = segments_BT[:, order]
    at = TokenPositions(jnp.asarray(order)[None], segments_BT)
    context = Context(
      kind="global",
      rule=rule,
      kernel=word,
      platform=platform,
      slots_BT=at.slots_BT,
      is_ordered=parts == 1,
      segments_BT=segments_BT,
      mask_BTS=visibility.visible(rule, at, at) if word == "dense" else None,
    )
    f = lambda q, k, v: attend.attend(q, k, v, context, model, "standard")
    arrays = q[:, :, :, order], k[:, :, order], v[:, :, order]
    y, back = jax.vjp(f, *arrays)
    dq, dk, dv = back(dy[:, :, :, order])
    home = np.argsort(order)
    return y[:, :, :, home], dq[:, :, :, home], dk[:, :, home], dv[:, :, home]

  return mesh, run


def compile_for_tpu(kernel: str, feature: str) -> None:
  """Compiles a kernel with its gradient for TPUs that need not be here.

  Raises:
    InputError: there is no TPU compiler here.
  """
  import jax
  import jax.numpy as jnp
  from jax.sharding import NamedSharding
  from jax.sharding import PartitionSpec as P

  from gpt_jax.lab.plan import aot
  from gpt_jax.machine import chips

  (rule, K, is_packed), T = FEATURES[feature], KERNELS[kernel][-1]
  devices = aot.find_devices(chips.parse_topology("v5e:2x4", 1))
  mesh, run = make_attention(kernel, rule, list(devices))
  *arrays, segments = make_inputs(K, T, is_packed, value_dim_of(feature))
  place = NamedSharding(mesh, P())
  describe = lambda x, dtype: jax.ShapeDtypeStruct(
    x.shape, dtype, sharding=place
  )
  arrays = [describe(x, jnp.bfloat16) for x in arrays]
  if segments is not None:
    segments = describe(segments, jnp.int32)
  with jax.set_mesh(mesh):
    run.lower(*arrays, segments).compile()


def compare(kernel: str, feature: str) -> Result:
  """Returns how far a kernel is from the reference."""
  import jax
  import numpy as np

  (rule, K, is_packed), T = FEATURES[feature], KERNELS[kernel][-1]
  q, k, v, dy, segments = make_inputs(K, T, is_packed, value_dim_of(feature))
  mesh, run = make_attention(kernel, rule)

  def attention(*arrays):
    with jax.set_mesh(mesh):
      return [np.asarray(x) for x in run(*arrays)]

  wanted = naive(q, k, v, dy, rule, segments)
  y, *grads = attention(q, k, v, dy, segments)
  error = lambda a, b: float(np.abs(a - b).max())
  backward = max(map(error, grads, wanted[1:]))

  # Only some queries get a non-zero dy. The keys that are hidden from them, and
  # all other queries, must then have a gradient of exactly zero.
  if segments is None:
    asked = np.zeros((SHAPE["B"], T), bool)
    asked[:, : T // 2] = True
  else:
    asked = segments == 1
  mask = visible(rule, T, SHAPE["B"], segments)
  told = (mask & asked[:, :, None]).any(1)
  only = np.where(asked[:, None, None, :, None], dy, 0)
  _, dq, dk, dv = attention(q, k, v, only, segments)
  others = ~told[:, None, :, None]
  leak = max(float(np.abs(np.where(others, x, 0)).max()) for x in (dk, dv))
  idle = ~asked[:, None, None, :, None]
  leak = max(leak, float(np.abs(np.where(idle, dq, 0)).max()))
  assert np.abs(dk).max() > 0
  return Result(error(y, wanted[0]), backward, leak)


def main(argv: list[str]) -> int:
  parser = cli.build_parser(
    "lab.plan.attention",
    "Every attention kernel against a naive one: largest absolute errors in "
    "float32, and leaks.",
    needs_config=False,
  )
  parser.add_argument(
    "--only", default="", metavar="WORD", help="kernels that have this in them"
  )
  parser.add_argument(
    "--tpu",
    action="store_true",
    help="compile the TPU kernels, which needs libtpu and no TPU",
  )
  args = cli.parse_flags(parser, argv)
  chosen = [name for name in KERNELS if args.only in name]
  if not chosen:
    raise InputError(
      f"--only={args.only!r} is in no kernel's name; they are: "
      f"{'; '.join(KERNELS)}"
    )
  runtime.start(args.devices or 8)
  if args.tpu:
    runtime.start_tpu_compiler()
    for kernel in chosen:
      if KERNELS[kernel][0] == "splash":
        for feature in FEATURES:
          compile_for_tpu(kernel, feature)
          print(f"{kernel:24} {feature:9} compiled for TPU: yes", flush=True)
    return 0
  print(f"{'kernel':24} {'feature':9} {'forward':>9} {'gradient':>9} leak")
  worst = 0.0
  for kernel, feature, r in compare_all(chosen):
    worst = max(worst, r.leak)
    line = f"{kernel:24} {feature:9} {r.forward:9.1e} {r.backward:9.1e}"
    print(f"{line} {r.leak:.0e}" if r.leak else f"{line} 0", flush=True)
  if not args.only:
    print("cudnn: not run here, there is no GPU")
  return int(worst > 0)


def compare_all(kernels=tuple(KERNELS)):
  """Yields (kernel, feature, Result) for every feature of each kernel."""
  for kernel in kernels:
    for feature in FEATURES:
      yield kernel, feature, compare(kernel, feature)


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
