"""A run up to its first step: preparing, checking, compiling and reading."""

import concurrent.futures
import functools
import json
import os
import typing
from collections.abc import Iterator

import jax
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import files, sharding, tree
from gpt_jax.config import Config, InputError
from gpt_jax.data import batches as batches_lib
from gpt_jax.data import card
from gpt_jax.data.objectives import check_sources, find_layout, prompting
from gpt_jax.data.prepare import prepare_data
from gpt_jax.inference import references
from gpt_jax.machine import console, processes, runtime
from gpt_jax.models import check_objective
from gpt_jax.runs import (
  bases,
  checkpoint,
  goodput,
  metrics,
  mirror,
  restore,
  scratch,
  teachers,
)
from gpt_jax.runs import workdir as workdir_lib
from gpt_jax.training import (
  build,
  inherit,
  preflight,
  privacy,
  rollback,
  rollouts,
)
from gpt_jax.training import state as state_lib
from gpt_jax.training.reporter import Reporter


class Stage(typing.NamedTuple):
  """What the loop uses while the batch has one size.

  Attributes:
    size: sequences of the global batch.
    rows: the rows of that batch that this process reads.
    watch: the telemetry pass.
    step: the compiled train step.
    seconds: compile time.
    peak: bytes that the step needs on a device, 0 if unknown.
  """

  size: int
  rows: np.ndarray
  watch: typing.Callable
  step: typing.Callable
  seconds: float
  peak: int


class Setup:
  """A run up to its first step: data, checks, compiled step, state.

  Args:
    config: frozen; model.vocab_size may still be None.
    workdir: the run's folder.
    screen: prints lines and tables.
    clock: this process's time by activity.
    is_replay: whether a step is recomputed and nothing is written.
    copy: uploads what is written, if the run is at an address.

  Attributes:
    config: model.vocab_size is known.
    prepared: the prepared data.
    assembly: mesh, model, optimizer and abstract state (build.py).
    keeper: the run's Checkpointer.
    base: checkpoint of another run that adapters adapt, or that the loss takes
      as its reference; or None.
    teacher: checkpoint of the run of the teacher, or None.
    stages: {first step: sequences of a batch from that step on}.
    is_resumed: whether there is a checkpoint to resume from.
  """

  def __init__(
    self,
    config: Config,
    workdir: str,
    screen: console.Console,
    clock: goodput.Clock,
    is_replay: bool,
    copy: mirror.Mirror | None = None,
  ):
    self.workdir, self.screen, self.clock = workdir, screen, clock
    self._rollouts: rollouts.Rollouts | None = None
    self.folder = os.path.join(workdir, "checkpoints")
    self.record = os.path.join(workdir, "config.json")
    metrics.check_wandb(config.train.wandb_project)
    # Before data are prepared, which can take hours.
    check_objective(config.model.family, config.data.objective)
    check_sources(config.data)
    preflight.check_processes(config)
    for other in (config.train.init_from, config.distill.teacher):
      if other is not None:
        scratch.local(other)
    self.is_resumed = processes.share(lambda: self._look(config, is_replay))
    if self.is_resumed:
      checkpoint.preload()
    self._prepare(config)
    self._check_against_record()
    self.assembly = build.assemble(self.config)
    self.mesh, self.abstract = self.assembly.mesh, self.assembly.abstract
    self.base, self.teacher = self._find_base(), self._find_teacher()
    preflight.check_memory(self.config, self.mesh, self.abstract)
    self._describe()
    if references.is_needed(self.config):
      self._attach_references()
    self.keeper = checkpoint.Checkpointer(
      self.folder,
      self.config.checkpoint,
      workdir_lib.facts_of(self.config, self.prepared),
      say=screen.say,
      mirror=copy,
      key=preflight.read_key(self.config),
    )
    self.is_shared = copy is None
    self.stages = dict(config_lib.batch_stages(self.config.train))

  # Prepare

  def _look(self, config: Config, is_replay: bool) -> bool:
    how = checkpoint.choose_resume(self.folder, config.checkpoint.resume)
    if how == "restore" or is_replay:
      workdir_lib.read_record(self.workdir)
    return how == "restore"

  def _prepare(self, config: Config) -> None:
    say = self.screen.say
    with self.clock.spend("data"):
      self.prepared = processes.in_turn(lambda: prepare_data(config.data, say))
    processes.agree("the prepared data", self.prepared.fingerprint)
    runtime.give_back_memory()
    # Report a mesh that the batches do not fit before any fault of the data.
    mesh = sharding.make_mesh(config.mesh)
    for step, _ in config_lib.batch_stages(config.train):
      preflight.check_batch(config_lib.at_step(config, step), mesh)
    self.config = self.prepared.resolve_vocab(config)
    tokenizer = prompting(self.config, self.prepared.tokenizer)
    preflight.check_prompt(self.config, tokenizer, say)
    layout = find_layout(config, lambda: self.prepared.tokenizer)
    held = self.prepared.valid.values() if layout else ()
    for tokens in (*(tokens for _, tokens in self.prepared.train), *held):
      remark = batches_lib.check_set(tokens, config.data.seq_len, layout)
      if remark:
        say(remark)

  def _check_against_record(self) -> None:
    def check() -> None:
      if self.is_resumed or os.path.exists(self.record):
        workdir_lib.check_same_run(
          self.workdir, self.config, self.prepared.fingerprint
        )

    processes.share(check)
    source = self.config.train.init_from
    if source is not None and not self.is_resumed:
      tokenizer = self.prepared.tokenizer
      processes.share(
        lambda: preflight.check_init(source, tokenizer, self.config.model)
      )
      inherit.check_layers(self.config)
    teachers.check(self.config, self.prepared.tokenizer)

  def _find_base(self) -> bases.Base | None:
    source = self.config.train.init_from
    is_needed = self.has_base or references.is_recorded(self.config)
    if not is_needed or source is None:
      return None
    shapes = tree.describe_shapes(
      self.assembly.abstract_base() if self.has_base else self.abstract.params
    )
    if not self._has_begun():
      return bases.find_base(source, shapes)
    base = self._recorded(bases.BASE)
    if base is not None and not self.has_base:
      # Its log-probabilities are stored; without them it is checked.
      return base
    return bases.check_base(source, shapes, base)

  def _find_teacher(self) -> bases.Base | None:
    source, abstract = self.config.distill.teacher, self.abstract.teacher
    if self.config.distill.top_k is not None:
      recorded = self._recorded(bases.TEACHER)
      return teachers.find_stored(self.config, self.prepared, recorded)
    if abstract is None or source is None:
      return None
    shapes, role = tree.describe_shapes(abstract), bases.TEACHER
    if not self._has_begun():
      return bases.find_base(source, shapes, role=role)
    return bases.check_base(source, shapes, self._recorded(role), role)

  def _has_begun(self) -> bool:
    return processes.share(lambda: os.path.exists(self.record))

  def _recorded(self, role: bases.Role) -> bases.Base | None:
    """Returns the other run that this run's record names, or None."""
    if not self._has_begun():
      return None
    base = processes.share(
      lambda: workdir_lib.read_base(self.workdir, role.name)
    )
    return base and bases.Base(*base)

  @property
  def has_base(self) -> bool:
    """Whether parameters of another run are part of the state."""
    return self.abstract.base is not None

  def _attach_references(self) -> None:
    assert self.base is not None  # by config/check_preferences.py
    sets = [one for _, one in self.prepared.train]
    sets += self.prepared.valid.values()
    with self.clock.spend("evaluation"):
      references.attach(
        sets, self.config, self.base, self.mesh, self.screen.say
      )

  def _describe(self) -> None:
    self.screen.say(f"gpt_jax: training in {self.workdir}")
    self.screen.table(
      preflight.describe(self.config, self.mesh, self.abstract, self.prepared)
    )
    lost = preflight.describe_lost_updates(self.config)
    if lost:
      self.screen.say(lost)
    spent = privacy.account(self.config, self.prepared.train)
    if spent is not None:
      self.screen.say(privacy.describe(spent))
      path = os.path.join(self.workdir, "privacy.json")
      processes.in_turn(lambda: files.write_text(path, json.dumps(spent)))

  # Compile, and create or restore the state

  def build_stage(self, step: int) -> Stage:
    """Returns the Stage of this step, used until the batch size changes."""
    now = self.assembly.at_step(step)
    return Stage(
      now.config.train.global_batch_size,
      now.local_rows(),
      now.make_watch(),
      *now.compile_step(),
    )

  def count(self, step: int) -> int:
    """Returns the number of sequences in the first `step` steps."""
    return config_lib.count_sequences(self.config.train, step)

  def read_batches(
    self, stage: Stage, step: int, num_passed: int
  ) -> Iterator[batches_lib.Batch]:
    """Returns an iterator over this process's rows, from a step on.

    Args:
      num_passed: number of sequences that rollbacks skip.
    """
    return batches_lib.make_train_iterator(
      self.prepared,
      self.config,
      self.config.seed,
      stage.size,
      stage.rows,
      step,
      self.count(step) + num_passed - step * stage.size,
    )

  def place(self, batch: dict, stage: Stage) -> dict:
    """Returns the global batch, to which this process adds its rows."""
    return sharding.place_batch(
      batch, self.assembly.batch_place, stage.rows, stage.size
    )

  def fill_batch(
    self, rows: dict, stage: Stage, state: state_lib.TrainState, step: int
  ) -> dict:
    """Returns the global batch of a step; for grpo, sampled by the state.

    Args:
      rows: the rows of this process.
      step: number of steps done.
    """
    place = lambda batch: self.place(batch, stage)
    if not config_lib.OBJECTIVES[self.config.data.objective].is_sampled:
      return place(rows)
    if self._rollouts is None:
      self._rollouts = self._build_rollouts()
    whole = self.assembly.model.attach(state.params, state.base)
    return self._rollouts.sample(whole, step, rows, place)

  def _build_rollouts(self) -> rollouts.Rollouts:
    own = prompting(self.config, self.prepared.tokenizer)
    reference, source = None, self.config.train.init_from
    if self.config.train.kl_weight and source is not None:
      base = self.base
      assert base is not None
      reference = references.restore_reference(
        self.config, base, self.mesh, self.screen.say
      )
    model = self.assembly.model
    return rollouts.Rollouts(
      self.config, model, own.separator_id, own.vocab_size, reference
    )

  def restore(self, **which) -> tuple[state_lib.TrainState, dict]:
    """Returns (state, its checkpoint's metadata).

    Args:
      which: arguments of Checkpointer.restore.
    """
    state, meta = self.keeper.restore(self.abstract.without_frozen(), **which)
    return self._with_frozen(state), meta

  def _with_frozen(self, state: state_lib.TrainState) -> state_lib.TrainState:
    def read(source, abstract, found, convert=None):
      if found is None or abstract is None:
        return None
      facts = processes.share(lambda: workdir_lib.read_facts(source))
      some = functools.partial(restore.restore_params, convert=convert)
      say, step = self.screen.say, found.step
      return some(source, abstract, say, facts=facts, step=step)

    c, assembly = self.config, self.assembly
    whole = convert = None
    if self.has_base:
      whole, convert = assembly.abstract_base(), assembly.make_rounding()
    return state.replace(
      base=read(c.train.init_from, whole, self.base, convert),
      teacher=read(c.distill.teacher, self.abstract.teacher, self.teacher),
    )

  def recompute(self, step: int) -> tuple[int, state_lib.TrainState]:
    """Returns (step started from, what a checkpoint holds after `step`).

    Writes nothing.
    """
    if any(s < step for s in processes.share(self.keeper.steps)):
      state, _ = self.restore(before=step)
    elif self.config.train.init_from is not None and not self.has_base:
      raise InputError(
        f"no checkpoint before step {step} is left in {self.workdir}, and the "
        "run of train.init_from may have changed since; give a later --replay"
      )
    else:
      state = self._with_frozen(self.assembly.init_learned())
    begun, stage = int(state.step), None
    num_passed = processes.share(lambda: rollback.passed_at(self.keeper, step))
    with jax.set_mesh(self.mesh):
      for index in range(begun, step):
        if stage is None or index in self.stages:
          stage = self.build_stage(index)
          batches = self.read_batches(stage, index, num_passed)
        batch = self.fill_batch(next(batches), stage, state, index)
        # One at a time: simulated devices can deadlock with two in flight.
        state, _ = jax.block_until_ready(stage.step(state, batch))
    return begun, state.without_frozen()

  def begin(self) -> tuple[state_lib.TrainState, dict, Stage]:
    """Returns (state, its checkpoint's metadata, the first stage).

    The step is compiled while the state is created or restored. A base of
    adapters is read only afterwards: the compiler and the base together would
    be the peak memory of the run.
    """
    self.screen.say("compiling ...")
    keeper, init_from = self.keeper, self.config.train.init_from
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      expected = processes.share(keeper.latest_step) if self.is_resumed else 0
      compiling = pool.submit(self.build_stage, expected)
      if self.has_base:
        concurrent.futures.wait([compiling])
        runtime.give_back_memory()
      meta = {}
      if self.is_resumed:
        state, meta = self.restore()
      else:
        state = self._with_frozen(self.assembly.init_learned())
        if init_from is not None and not self.has_base:
          params = inherit.read_params(
            self.assembly,
            self.prepared.labels,
            state.params,
            self.screen.say,
            None if self.base is None else self.base.step,
          )
          state = state_lib.replace_params(state, params)
      with self.clock.spend("compile"):
        stage = compiling.result()
    runtime.give_back_memory()
    line = f"compiled in {stage.seconds:.1f} s"
    if stage.peak:
      needed = console.format_bytes(stage.peak)
      line += f"; the step needs {needed} on each device"
    self.screen.say(line)
    return state, meta, stage

  def write_record(self) -> None:
    """Writes tokenizer.json and config.json if this run has none yet."""

    def write() -> None:
      if not os.path.exists(self.record):
        tokenizer = self.prepared.tokenizer
        files.write_text(
          os.path.join(self.workdir, "tokenizer.json"), tokenizer.to_json()
        )
        told = card.describe_all(self.prepared.folders)
        files.write_text(os.path.join(self.workdir, "data.md"), told)
        workdir_lib.write_config(
          self.workdir,
          self.config,
          self.prepared.fingerprint,
          tokenizer.fingerprint(),
          self.prepared.labels,
          {"base": self.base, "teacher": self.teacher},
        )

    processes.share(write)
    if processes.index() > 0 and self.is_shared:
      workdir_lib.await_file(self.record)

  def build_reporter(self, first: int, meta: dict) -> Reporter:
    """Returns the reporter of steps after `first`; drops rows after it."""
    return Reporter(
      self.config,
      self.workdir,
      first,
      self.screen,
      self.assembly.model,
      self.mesh,
      self.prepared,
      self.clock,
      meta.get("metrics"),
    )
