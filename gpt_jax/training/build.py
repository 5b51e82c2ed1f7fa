"""Assembles a run: the one place where a config becomes a train step.

Training, the planner, benchmarks, studies and tests all begin with `assemble`,
so that what is planned or timed is what is trained.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from gpt_jax import config as config_lib
from gpt_jax import sharding, tree
from gpt_jax.config import Config
from gpt_jax.models import Model, build_model, check_objective
from gpt_jax.parametrization import ParamSpec
from gpt_jax.runs import teachers
from gpt_jax.teacher import Teacher
from gpt_jax.training import optim, preflight, telemetry
from gpt_jax.training import state as state_lib
from gpt_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Assembly:
  """The parts of a run, before anything is computed.

  Attributes:
    config: model.vocab_size is known.
    mesh: a Mesh of devices, or an AbstractMesh where there are none.
    model: built for the platform of the devices.
    tx: the optimizer.
    schedule: step -> learning rate.
    teacher: the teacher that the model is distilled from, or None.
    abstract: TrainState of ShapeDtypeStructs with their shardings.
  """

  config: Config
  mesh: Any
  model: Model
  tx: optax.GradientTransformation
  schedule: Callable
  teacher: Teacher | None
  abstract: state_lib.TrainState

  @property
  def batch_place(self) -> jax.sharding.NamedSharding:
    """The sharding of (B, T) batches."""
    return sharding.batch_sharding(self.mesh, self.config.mesh.rules)

  @property
  def learned(self) -> Any:
    """The abstract parameters, with None in place of frozen ones."""
    # optim.rates matches names only, so that empty specs are enough.
    specs = jax.tree.map(lambda _: ParamSpec((), ""), self.abstract.params)
    is_frozen = optim.find_frozen(optim.rate_specs(self.config.optim, specs))
    return tree.leave_out(self.abstract.params, is_frozen)

  def local_rows(self) -> np.ndarray:
    """Returns the rows of the global batch that this process reads."""
    shape = self.config.train.global_batch_size, self.config.data.seq_len
    return sharding.local_rows(self.batch_place, shape)

  def at_step(self, step: int) -> "Assembly":
    """Returns the assembly for the batch size of a step."""
    config = config_lib.at_step(self.config, step)
    return dataclasses.replace(self, config=config)

  def init_learned(self) -> state_lib.TrainState:
    """Returns a fresh state on the mesh, without frozen parameters."""
    return state_lib.init_state(self.model, self.tx, self.config, self.mesh)

  def init_state(self) -> state_lib.TrainState:
    """Returns a fresh state on the mesh, with random frozen parameters."""
    plain = dataclasses.replace(self.model, adapter=None)
    teacher = self.teacher and self.teacher.model

    def draw(model, like):
      if like is None:
        return None
      places = jax.tree.map(lambda leaf: leaf.sharding, like)
      make = lambda: state_lib.init_params(model, self.config.seed)
      with jax.set_mesh(self.mesh):
        return jax.jit(make, out_shardings=places)()

    base = None
    if self.abstract.base is not None:
      base = self.round_base(draw(plain, self.abstract_base()))
    return self.init_learned().replace(
      base=base, teacher=draw(teacher, self.abstract.teacher)
    )

  def abstract_base(self) -> Any:
    """Returns the base of adapters as its run stores it, with shardings."""
    parts = self.model.abstract_params()
    return sharding.abstract_of(*parts, self.config.mesh.rules, self.mesh)

  def round_base(self, params: Any) -> Any:
    """Returns the base in the format that a state stores (adapter.base)."""
    if self.config.adapter.base == "full":
      return params
    places = jax.tree.map(lambda leaf: leaf.sharding, self.abstract.base)
    with jax.set_mesh(self.mesh):
      return jax.jit(self.model.round_base, out_shardings=places)(params)

  def make_rounding(self) -> Callable[[str, Any], Any]:
    """Returns convert(name, leaf), which applies round_base to one parameter.

    So a base can be quantized while it is read, and is never in memory whole.
    """
    specs = self.model.abstract_params()[1]
    places = jax.tree.map(lambda leaf: leaf.sharding, self.abstract.base)
    names = tree.flatten_with_names(specs)
    parts = jax.tree.structure(specs).flatten_up_to(places)
    places = dict(zip(names, parts, strict=True))

    def convert(name: str, leaf):
      if isinstance(places[name], jax.sharding.Sharding):
        return leaf
      one = lambda leaf: self.model.round_base(leaf, names[name])
      with jax.set_mesh(self.mesh):
        return jax.jit(one, out_shardings=places[name])(leaf)

    return convert

  def make_step(self):
    """Returns step(state, batch) -> (state, metrics), to be compiled."""
    one = step_lib.make_train_step(
      self.model, self.tx, self.schedule, self.config, self.teacher
    )
    return step_lib.repeat_step(one, self.config.train.updates_per_batch)

  def lower_step(self):
    """Returns the step, which donates its state, lowered but not compiled."""
    return step_lib.lower_step(
      self.make_step(), self.abstract, self.config, self.mesh, self.batch_place
    )

  def compile_step(self, options: dict | None = None):
    """Returns (compiled step, seconds, peak bytes on a device or 0).

    Args:
      options: XLA options, added to those of the platform.
    """
    return step_lib.compile_step(
      self.make_step(),
      self.abstract,
      self.config,
      self.mesh,
      self.batch_place,
      options,
      self.teacher,
    )

  def make_watch(self):
    """Returns the telemetry pass (state, batch) -> values, jitted."""
    return jax.jit(
      telemetry.make_watch(
        self.model, self.tx, self.schedule, self.config, self.teacher
      )
    )


def assemble(
  config: Config,
  devices: Sequence[jax.Device] | None = None,
  platform: str | None = None,
  mesh: Any = None,
) -> Assembly:
  """Returns the Assembly of a config.

  Args:
    config: model.vocab_size is known (tokenizers.resolve_vocab).
    devices: devices of the mesh; None for all of them.
    platform: selects the model's kernels; None for the platform of the devices.
    mesh: used in place of devices, for instance an AbstractMesh.

  Raises:
    InputError: mesh, batch, objective and model do not go together.
  """
  check_objective(config.model.family, config.data.objective)
  taught = teachers.read_model(config)
  if mesh is None:
    mesh = sharding.make_mesh(config.mesh, devices)
    platform = platform or mesh.devices.flat[0].platform
    for step, _ in config_lib.batch_stages(config.train):
      preflight.check_batch(config_lib.at_step(config, step), mesh)
  model = build_model(
    config.model,
    config.mesh.rules,
    platform or "cpu",
    adapter=config.adapter,
  )
  teacher = None
  if config.distill.teacher is not None:
    build = lambda c: build_model(c, config.mesh.rules, platform or "cpu")
    found = None if taught is None else build(taught)
    teacher = Teacher(config.distill, found)
  _, specs = model.abstract_learned()
  tx = optim.build_optimizer(config.optim, specs)
  schedule = optim.build_schedule(config.optim, config.train.num_steps)
  abstract = state_lib.abstract_state(
    model, tx, config, mesh, teacher and teacher.model
  )
  return Assembly(config, mesh, model, tx, schedule, teacher, abstract)
