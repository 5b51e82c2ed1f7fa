"""Where arrays live: the mesh, and rule sets that map dims to its axes.

Parameters and activations name their dims logically ("embed", "heads"); a rule
set maps those names to mesh axes. The mesh always has all axes, most of size
one, so that no code checks whether an axis exists. Axes are of type Auto: the
compiler propagates shardings from the few constraints in the models.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gpt_jax.config import InputError, MeshConfig
from gpt_jax.tree import map_with_names

# Slowest links first.
AXES = ("data", "fsdp", "expert", "seq", "tensor")

# Logical name -> mesh axes. Where a parameter's dim and an activation's are
# placed differently they have different names (embed, residual).
RULES = {
  "standard": {
    "batch": ("data", "fsdp", "expert"),
    "length": ("seq",),
    "key_length": (),
    "residual": (),
    # The residual stream between sublayers, where each token is independent:
    # also split over tensor (Korthikanti et al. 2022).
    "residual_length": ("seq", "tensor"),
    "layers": (),
    "embed": ("fsdp",),
    "latent": ("fsdp",),  # latent attention's compressed vector
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "positions": (),
    "norm": (),
    "experts": ("expert",),
  },
}
# Parameters whole on every device: plain data parallelism, and the reference
# that sharded runs are compared with.
RULES["replicated"] = {
  name: axes if name in ("batch", "length") else ()
  for name, axes in RULES["standard"].items()
}


def make_mesh(
  mesh: MeshConfig, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Returns the mesh of `devices` (default: all), shaped by the config.

  Raises:
    InputError: the sizes do not multiply to the number of devices, or slices
      do not divide mesh.data.
  """
  devices = jax.devices() if devices is None else devices
  sizes = mesh_sizes(mesh, len(devices))
  return Mesh(
    _arrange(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES)
  )


def mesh_sizes(mesh: MeshConfig, num_devices: int) -> list[int]:
  """Returns the size of each of AXES.

  Raises:
    InputError: they do not multiply to the number of devices.
  """
  sizes = [getattr(mesh, axis) for axis in AXES]
  known = math.prod(s for s in sizes if s != -1)
  if -1 in sizes and num_devices % known == 0:
    sizes[sizes.index(-1)] = num_devices // known
  if -1 in sizes or math.prod(sizes) != num_devices:
    shape = " x ".join(
      f"{axis} {size}"
      for axis, size in zip(AXES, sizes, strict=True)
      if size != 1
    )
    raise InputError(
      f"the mesh {shape or 'of one device'} does not match the "
      f"{num_devices} devices here; sizes must multiply to {num_devices}"
    )
  return sizes


def count_slices(devices: Sequence[jax.Device]) -> int:
  """Returns the number of TPU slices; 1 for all other devices."""
  if devices[0].platform != "tpu":
    return 1
  return len({getattr(d, "slice_index", None) for d in devices})


def _arrange(sizes: list[int], devices: Sequence[jax.Device]):
  """Returns the devices as an array of these sizes, neighbors side by side.

  Mesh axes follow the torus of links inside a slice. Only `data`, which sends
  gradients once per step, may cross the slower network between slices.
  """
  if devices[0].platform != "tpu":
    return mesh_utils.create_device_mesh(sizes, devices)
  slices = count_slices(devices)
  data, *rest = sizes
  if data % slices:
    raise InputError(
      f"mesh.data is {data} and the devices are in {slices} slices; it must "
      f"be a multiple of {slices}, as data is the axis between slices"
    )
  if slices == 1:
    return mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  return mesh_utils.create_hybrid_device_mesh(
    [data // slices, *rest],
    [slices] + [1] * len(rest),
    devices,
    allow_split_physical_axes=True,
  )


def describe_mesh(mesh: Mesh) -> str:
  """Returns "data 2 x fsdp 4", leaving out axes of size one."""
  named = [f"{a} {n}" for a, n in mesh.shape.items() if n > 1]
  return " x ".join(named) or "one device"


def spec_of(
  name: str,
  axes: Sequence[str | None],
  shape: Sequence[int],
  rules: str,
  mesh: Mesh | AbstractMesh,
) -> P:
  """Returns the PartitionSpec of an array whose dims are named by `axes`.

  Args:
    name: of the array, for errors.
    axes: a logical name or None for each dim.
    shape: sizes of the dims.
    rules: a key of RULES.
    mesh: its axis sizes must divide the dims.

  Raises:
    InputError: a logical name has no rule, two dims use the same mesh axis, or
      the mesh does not divide a dim.
  """
  table = RULES[rules]
  entries, taken = [], {}
  for axis, size in zip(axes, shape, strict=True):
    if axis is None:
      entries.append(None)
      continue
    if axis not in table:
      raise InputError(
        f"{name} has a dim named {axis!r}, which rule set {rules!r} does not "
        f"know; it knows {', '.join(table)}"
      )
    wanted = tuple(a for a in table[axis] if mesh.shape[a] > 1)
    for a in wanted:
      if a in taken:
        raise InputError(
          f"{name}: dims {taken[a]!r} and {axis!r} both want mesh axis {a!r}; "
          f"rule set {rules!r} must give it to one of them"
        )
      taken[a] = axis
    parts = math.prod(mesh.shape[a] for a in wanted)
    if size % parts:
      raise InputError(
        f"{name}: dim {axis!r} is {size}, which mesh "
        f"{' x '.join(f'{a} {mesh.shape[a]}' for a in wanted)} does not divide"
      )
    entries.append(wanted if len(wanted) > 1 else wanted[0] if wanted else None)
  return P(*entries)


def shardings_of(
  abstract: Any, specs: Any, rules: str, mesh: Mesh | AbstractMesh
):
  """Returns the tree of NamedShardings of a tree of declared arrays.

  Args:
    abstract: tree of ShapeDtypeStruct.
    specs: the same tree of ParamSpec, with None for replicated leaves.
  """

  def one(name, leaf, spec):
    axes = (None,) * len(leaf.shape) if spec is None else spec.axes
    return NamedSharding(mesh, spec_of(name, axes, leaf.shape, rules, mesh))

  return map_with_names(one, abstract, specs)


def abstract_of(shapes: Any, specs: Any, rules: str, mesh: Mesh | AbstractMesh):
  """Returns the tree of ShapeDtypeStructs with their shardings.

  Args:
    shapes, specs: as abstract and specs of shardings_of.
  """
  return jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
    shapes,
    shardings_of(shapes, specs, rules, mesh),
  )


def constrain(x: jax.Array, axes: Sequence[str | None], rules: str):
  """Constrains an activation's sharding inside a compiled function.

  Without a mesh in context (jax.set_mesh) this is the identity, so that models
  run as plain functions too. A dim that the mesh does not divide (the single
  token of a decoding step, with a split sequence) is replicated.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  spec = fitting_spec(axes, x.shape, rules)
  return jax.lax.with_sharding_constraint(x, spec)


def fitting_spec(
  axes: Sequence[str | None], shape: Sequence[int], rules: str
) -> P:
  """Returns an activation's PartitionSpec on the mesh in context.

  A dim that the mesh does not divide is replicated.
  """
  mesh = jax.sharding.get_abstract_mesh()
  fits = lambda axis, size: (
    size % math.prod(mesh.shape[a] for a in RULES[rules][axis]) == 0
  )
  axes = [
    a if a and fits(a, n) else None for a, n in zip(axes, shape, strict=True)
  ]
  return spec_of("an activation", axes, shape, rules, mesh)


def used_axes(rules: str, name: str) -> tuple[str, ...]:
  """Returns the axes of the mesh in context that split a logical dim."""
  return tuple(a for a in RULES[rules][name] if axis_size(a) > 1)


def axis_size(axis: str) -> int:
  """Returns the size of an axis of the mesh in context, 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.shape[axis]


def axes_size(rules: str, name: str) -> int:
  """Returns the number of parts that the mesh in context splits a dim into."""
  return math.prod(axis_size(axis) for axis in RULES[rules][name])


def zigzag(length: int, parts: int) -> np.ndarray:
  """Returns an order of tokens that balances causal attention over parts.

  The row is cut into 2 * parts chunks, and part i gets chunks i and
  2 * parts - 1 - i: early queries see few keys and late ones many, and the sum
  is the same for each such pair. A row that 2 * parts does not divide stays in
  order.
  """
  if length % (2 * parts):
    return np.arange(length, dtype=np.int32)
  chunks = np.arange(length, dtype=np.int32).reshape(2 * parts, -1)
  pairs = [(i, 2 * parts - 1 - i) for i in range(parts)]
  return chunks[np.array(pairs)].reshape(-1)


def balance(batch, length: int, parts: int, rules: str):
  """Returns (batch with every row in zigzag order, order_1T)."""
  order = zigzag(length, parts)
  axes = lambda x: ("batch", "length", *[None] * (x.ndim - 2))
  move = lambda x: constrain(x[:, order], axes(x), rules)
  return jax.tree.map(move, batch), jnp.asarray(order)[None]


def batch_sharding(mesh: Mesh, rules: str) -> NamedSharding:
  """Returns the sharding of a batch's arrays, (B, T) or (B, S)."""
  axes = tuple(a for a in RULES[rules]["batch"] if mesh.shape[a] > 1)
  length = tuple(a for a in RULES[rules]["length"] if mesh.shape[a] > 1)
  return NamedSharding(mesh, P(axes or None, length or None))


def local_rows(placement: NamedSharding, shape: Sequence[int]) -> np.ndarray:
  """Returns the rows of a (B, T) batch that this process's devices hold."""
  parts = placement.addressable_devices_indices_map(tuple(shape)).values()
  slices = [index[0] for index in parts if index is not None]
  rows = {r for part in slices for r in range(*part.indices(shape[0]))}
  return np.array(sorted(rows))


def place_batch(
  batch: dict, placement: NamedSharding, rows: np.ndarray, num_rows: int
):
  """Returns global arrays, made from the rows that each process has.

  Args:
    batch: of (b, T) numpy arrays, the rows of this process.
    placement: of the global batch.
    rows: (b,) ascending indices of these rows, from `local_rows`.
    num_rows: B.
  """
  if placement.is_fully_addressable:
    return jax.device_put(batch, placement)

  def put(local):
    def pick(index):
      wanted = np.arange(*index[0].indices(num_rows))
      return local[np.searchsorted(rows, wanted)][:, index[1]]

    shape = (num_rows, *local.shape[1:])
    return jax.make_array_from_callback(shape, placement, pick)

  return jax.tree.map(put, batch)


def fetch(x: Any) -> np.ndarray:
  """Returns a whole global array; all processes must call it together."""

  if x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(x)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(x, tiled=True)
