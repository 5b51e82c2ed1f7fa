"""The training state, which is created sharded.

Shapes are evaluated abstractly, shardings follow from the declarations, and one
compiled function then creates every leaf on its devices. A parameter's values
depend only on the seed and its name, so that the same seed gives the same
parameters on any mesh.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gpt_jax import sharding, tree
from gpt_jax.config import Config
from gpt_jax.models import Model
from gpt_jax.parametrization import init_param
from gpt_jax.training import initial, optim


class TrainState(struct.PyTreeNode):
  """Everything that a step reads and writes.

  Attributes:
    step: int32, optimizer steps done, skipped ones included.
    params: what is trained: parameters in param_dtype, or adapters.
    opt_state: the optimizer's state.
    num_skipped: int32, updates skipped in the whole run.
    skipped_in_row: int32, updates skipped in a row up to this step.
    ema: moving average of params, float32; None without train.ema_decay.
    norm_mean: {"mean": float32, "count": int32} of the gradient norms of
      updates that were not skipped; None without train.spike_factor.
    base: the frozen parameters that adapters adapt; None without adapters.
      Never changed, and not saved.
    teacher: the frozen parameters of a teacher, not saved either; or None.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  num_skipped: jax.Array
  skipped_in_row: jax.Array
  ema: Any = None
  norm_mean: Any = None
  base: Any = None
  teacher: Any = None

  def without_frozen(self) -> "TrainState":
    """Returns the state without frozen parameters, as checkpoints hold it."""
    return self.replace(base=None, teacher=None)


def init_params(model: Model, seed: int):
  """Returns initial values of what is trained, by the seed and leaf names."""
  shapes, specs = model.abstract_learned()
  c, root = model.config, jax.random.key(seed)

  def init(name, leaf, spec):
    key = tree.key_for(root, name)
    one = lambda key, shape: init_param(key, spec, shape, leaf.dtype, c)
    if spec.axes[0] != "layers":
      return one(key, leaf.shape)
    fold = jax.vmap(lambda i: jax.random.fold_in(key, i))
    keys = fold(jnp.arange(leaf.shape[0]))
    return jax.vmap(lambda k: one(k, leaf.shape[1:]))(keys)

  return tree.map_with_names(init, shapes, specs)


def abstract_state(
  model: Model,
  tx: optax.GradientTransformation,
  config: Config,
  mesh: Mesh | AbstractMesh,
  teacher: Model | None = None,
) -> TrainState:
  """Returns the TrainState of ShapeDtypeStructs with their shardings.

  Args:
    teacher: the model whose parameters the state has too.

  Raises:
    InputError: a parameter cannot be placed on this mesh.
  """
  shapes, specs = model.abstract_learned()
  opt_shapes = jax.eval_shape(tx.init, shapes)
  opt_specs = optim.state_specs(opt_shapes, shapes, specs)
  rules = config.mesh.rules
  sharded = lambda a, specs: sharding.abstract_of(a, specs, rules, mesh)
  scalar: Any = jax.ShapeDtypeStruct(
    (), jnp.int32, sharding=NamedSharding(mesh, P())
  )
  params, ema, norm_mean = sharded(shapes, specs), None, None
  base = None if model.adapter is None else sharded(*model.abstract_base())
  told = None if teacher is None else sharded(*teacher.abstract_params())
  if config.train.ema_decay is not None:
    ema = sharded(jax.eval_shape(_as_float32, shapes), specs)
  if config.train.spike_factor is not None:
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=scalar.sharding)
    norm_mean = {"mean": number, "count": scalar}
  return TrainState(
    step=scalar,
    params=params,
    opt_state=sharded(opt_shapes, opt_specs),
    num_skipped=scalar,
    skipped_in_row=scalar,
    ema=ema,
    norm_mean=norm_mean,
    base=base,
    teacher=told,
  )


def init_state(
  model: Model, tx: optax.GradientTransformation, config: Config, mesh: Mesh
) -> TrainState:
  """Returns a fresh state on the mesh; no leaf is ever whole on one device.

  The caller adds frozen parameters: the base of adapters, a teacher.
  """
  abstract = abstract_state(model, tx, config, mesh).without_frozen()

  make_params: Callable = lambda seed: init_params(model, seed)
  given: Any = np.uint32(config.seed)
  if initial.is_served(model, mesh):
    make_params, given = initial.in_chunks(model, config.seed)

  def init(given):
    params = make_params(given)
    zero, ema, norm_mean = jnp.int32(0), None, None
    if config.train.spike_factor is not None:
      norm_mean = {"mean": jnp.float32(0), "count": zero}
    if config.train.ema_decay is not None:
      ema = _as_float32(params)
    moments = tx.init(params)
    return TrainState(zero, params, moments, zero, zero, ema, norm_mean)

  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  with jax.set_mesh(mesh):
    return jax.jit(init, out_shardings=shardings)(given)


def replace_params(state: TrainState, params: Any) -> TrainState:
  """Returns the state with other parameters, from which its EMA starts."""
  ema = None if state.ema is None else jax.jit(_as_float32)(params)
  return state.replace(params=params, ema=ema)


def _as_float32(params):
  # Copies float32 too: the step donates both buffers.
  return jax.tree.map(lambda p: jnp.array(p, jnp.float32), params)
