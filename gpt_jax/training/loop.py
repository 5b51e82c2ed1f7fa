"""The training loop: prepare, compile, step, save, report.

The order within a step matters: the next batch is read and its step dispatched
before the previous step's result is fetched, so that the device never waits for
the host. Whatever needs the state itself (evaluating, sampling, saving) first
waits for the step.
"""

import contextlib
import time
from typing import Any

import jax

from gpt_jax import config as config_lib
from gpt_jax import exits, files, metric_names, tree
from gpt_jax.config import Config, InputError
from gpt_jax.machine import console, cores, processes, runtime, signals
from gpt_jax.runs import checkpoint, goodput, lock, mirror, scratch
from gpt_jax.training import preflight, replicas, rollback
from gpt_jax.training import replay as replay_lib
from gpt_jax.training.setup import Setup, Stage


def train(
  config: Config,
  workdir: str,
  command: str,
  stop: signals.Stop,
  replay: int | None = None,
) -> int:
  """Starts or resumes a run; returns the exit code.

  Args:
    config: frozen; model.vocab_size may still be None.
    workdir: the run's folder, created if absent, or its address.
    command: the command that resumes the run, printed when it is stopped.
    stop: records the signals that this process receives.
    replay: recompute this step, and write nothing.

  Raises:
    InputError: the config, the data or the workdir cannot be used; nothing is
      half-written.
  """
  screen = console.Console(processes.index() == 0)
  if replay is not None or not files.is_address(workdir):
    folder = scratch.local(workdir)
    return _train(config, folder, command, stop, replay, screen, None)
  copy = mirror.hold(workdir, screen.say)
  try:
    code = _train(config, copy.folder, command, stop, replay, screen, copy)
  except BaseException:
    with contextlib.suppress(InputError):
      copy.close()
    raise
  copy.close()
  return code


def _train(config, workdir, command, stop, replay, screen, copy) -> int:
  held = []
  try:
    if replay is None:  # a replay writes nothing and needs no lock
      processes.share(lambda: held.append(lock.hold(workdir, screen.say)))
      stop.leaving += [each.release for each in held]
    started, clock = time.perf_counter(), goodput.Clock()
    setup = Setup(config, workdir, screen, clock, replay is not None, copy)
    return Loop(setup, stop, command, started, replay).run()
  finally:
    for each in held:
      each.release()


class Loop:
  """The remaining steps of a run, then its report.

  Args:
    setup: the run up to its first step.
    stop, command, replay: as in train.
    started: time.perf_counter() when this process began with the run.
  """

  def __init__(
    self,
    setup: Setup,
    stop: signals.Stop,
    command: str,
    started: float,
    replay: int | None = None,
  ):
    self.setup, self.stop, self.command = setup, stop, command
    self.config, self.keeper = setup.config, setup.keeper
    self.screen, self.clock = setup.screen, setup.clock
    self.replay, self.total = replay, setup.config.train.num_steps
    self.started = started
    self.reporter: Any = None  # until there is a state to report on
    self.ledger = rollback.Ledger()
    self.hash_batch = jax.jit(tree.hash_batch)

  def run(self) -> int:
    """Runs the remaining steps and reports; returns the exit code."""
    if (step := self.replay) is not None:
      again = lambda: self.setup.recompute(step)
      return replay_lib.replay(
        step, self.total, self.keeper, again, self.screen.say
      )
    state, meta, stage = self.setup.begin()
    first = int(state.step)
    if self.setup.is_resumed:
      self.screen.say(f"going on from step {first:,}")
    self.setup.write_record()
    self.ledger = rollback.Ledger.of(meta)
    self.keeper.meta |= self.ledger.meta()
    self.reporter = self.setup.build_reporter(first, meta)
    if first >= self.total and self.reporter.has_reported():
      self.screen.say(
        f"this run is finished: all {self.total:,} steps are done"
      )
      return 0
    # Wait for all processes here, however long each compiled: gloo's first
    # collective times out after 30 seconds.
    processes.agree("the step to go on from", first)
    self.stop.wait_for()
    self.clock.switch("step")
    processes.mark(is_result=False)
    try:
      return self._run_or_roll_back(state, stage, first)
    except replicas.Corrupt as error:
      self.screen.close()
      self.keeper.wait()
      self.screen.say(f"gpt_jax: {error}")
      return exits.CORRUPT
    finally:
      try:
        self.keeper.close()
      finally:
        self.reporter.close()

  def _run_or_roll_back(self, state, stage: Stage, first: int) -> int:
    while True:
      try:
        with jax.set_mesh(self.setup.mesh):
          state = self.run_steps(state, stage, first)
          return self.finish(state)
      except rollback.Diverged as error:
        failed, why = error.step, str(error)
      state = None  # freed before another is restored
      self.screen.close()
      self.keeper.wait()
      found = self.roll_back(failed, why)
      if found is None:
        break
      state, first = found
    steps = self.keeper.steps()
    kept = f"step {steps[-1]:,} is saved" if steps else "nothing was saved"
    self.screen.say(
      f"gpt_jax: {why}, {kept}; start in another --workdir with "
      f"{preflight.suggest_finite(self.config)}"
    )
    return exits.DIVERGED

  def run_steps(self, state: Any, stage: Stage, first: int):
    """Returns the state after the last step, or where a signal stopped it."""
    reporter, config = self.reporter, self.config
    if stage.size != config_lib.at_step(config, first).train.global_batch_size:
      # The last checkpoint is damaged, and an older one was restored.
      stage = self.setup.build_stage(first)
    batches = self.setup.read_batches(stage, first, self.ledger.num_passed)
    reporter.set_batch(stage.size)
    reporter.catch_up(state)
    must_wait = cores.are_simulated(self.setup.mesh.local_devices)
    wait = jax.block_until_ready if must_wait else lambda x: x
    check_every = config.train.check_replicas_every_steps
    pending = None
    for index in range(first, self.total):
      if index in self.setup.stages and index > first:
        if pending is not None:
          reporter.finish(*pending, is_forced=True)
          pending = None
        stage, batches = self._enter_stage(index)
      if index == first + 2:
        self._settle(state)
      waited = time.perf_counter()
      with self.clock.spend("data"):
        rows = next(batches)
        batch = self.setup.fill_batch(rows, stage, state, index)
      reporter.meter.data_wait += time.perf_counter() - waited
      reporter.profile(index)
      wait(state)
      done = index + 1
      seen = reporter.is_watched(done) and wait(stage.watch(state, batch))
      hashed = {}
      if reporter.is_logged(done):
        hashed[metric_names.BATCH_HASH] = wait(self.hash_batch(batch))
      state, result = stage.step(state, batch)
      if pending is not None:
        reporter.finish(*pending)
      pending = (done, result | hashed)
      if seen:
        reporter.watch(done, seen)
      if check_every and done % check_every == 0:
        replicas.check(state, done)
      code = self.stop.check(done)
      if self._is_due(done, code):
        reporter.finish(*pending, is_forced=True)
        pending = None
        self._report_and_save(done, state, code)
        if code is not None and done < self.total:
          break
    return state

  def _settle(self, state) -> None:
    """Does the start-up work that can wait until the first step is logged.

    Imports and compiles what a save needs, and measures the peak for MFU.
    """
    jax.block_until_ready(state)
    started = time.perf_counter()
    with self.clock.spend("compile"):
      self.keeper.prepare(self.setup.abstract.without_frozen())
      runtime.give_back_memory()
      if self.reporter.is_writing:
        peak = preflight.device_peak(self.setup.mesh)
        self.reporter.meter.peak = peak
      checkpoint.preload()
    self.reporter.meter.leave_out(time.perf_counter() - started)

  def _enter_stage(self, step: int):
    """Returns (stage, its batches) at a step where the batch size grows."""
    with self.clock.spend("compile"):
      stage = self.setup.build_stage(step)
    processes.agree("the step of a larger batch", step)
    self.reporter.set_batch(stage.size)
    self.screen.say(f"step {step:,}: batches of {stage.size:,} sequences now")
    return stage, self.setup.read_batches(stage, step, self.ledger.num_passed)

  def _is_due(self, done: int, code: int | None) -> bool:
    is_last = done == self.total
    is_saving = self.keeper.should_save(done) or is_last
    return is_saving or self.reporter.is_due(done) or code is not None

  def _report_and_save(self, done: int, state, code: int | None) -> None:
    is_last = done == self.total
    is_saving = self.keeper.should_save(done) or is_last
    if code is None and not is_last:
      self.reporter.report_on(done, state)
    # During a streak of skipped updates nothing is learned, and saves would
    # push out the last good checkpoint.
    is_stuck = self.reporter.skipped_in_row > 0 and not is_last
    if is_saving and not is_stuck or code is not None:
      self.keeper.meta["metrics"] = self.reporter.seal_rows()
      with self.clock.spend("save"):
        self.keeper.save(done, state.without_frozen(), force=True)
    self.reporter.meter.restart()

  def finish(self, state: Any) -> int:
    """Waits for the last save and reports; returns the exit code."""
    with self.clock.spend("save"):
      self.keeper.wait()
    self.reporter.end_profile()
    done, total = int(state.step), self.total
    code = self.stop.check(done)
    if code is None:
      seconds = time.perf_counter() - self.started
      is_stopped = lambda: self.stop.check(total) is not None
      self.reporter.report(state, seconds, is_stopped)
      code = self.stop.check(total)
    if code is None:
      return 0
    self.screen.close()
    self.screen.say(
      f"stopped at step {done:,} of {total:,}, saved; go on with: "
      f"{self.command}"
    )
    return code

  def roll_back(self, failed: int, why: str):
    """Returns (state, its step) to resume from, or None where there is none.

    Args:
      failed: number of steps done when the run diverged.
      why: the reason, for the printed line.
    """
    limit = self.config.train.max_rollbacks
    if len(self.ledger.entries) >= limit:
      return None
    choose = lambda: self.ledger.choose(self.keeper.good_steps())
    target = processes.share(choose)
    if target is None:
      return None
    self.ledger = self.ledger.add(target, failed, self.setup.count)
    self.reporter.close()
    state, meta = self.setup.restore(step=target)
    self.keeper.meta |= self.ledger.meta()
    self.clock.forget()  # the rows hold the time spent so far
    self.reporter = self.setup.build_reporter(target, meta)
    self.reporter.note_rollback(failed, self.ledger.num_passed)
    self.screen.say(
      f"{why}: going back to step {target:,} and on with the batches after "
      f"those of step {failed:,} (rollback {len(self.ledger.entries)} of "
      f"{limit})"
    )
    return state, target
