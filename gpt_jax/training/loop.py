"""The training loop: prepare, compile, step, save, report.

The order of events in a step is the protocol: the next batch is read and the
step dispatched before the result of the last one is fetched, so that the host
never keeps the device waiting; whatever needs the state itself (evaluating,
sampling, saving) first waits for it.
"""

import concurrent.futures
import os
import time
import typing

import jax
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import exits, objective, sharding
from gpt_jax.config import Config, InputError
from gpt_jax.data import batches as batches_lib
from gpt_jax.data.prepare import prepare_data
from gpt_jax.data.shards import check_length
from gpt_jax.machine import console, processes, runtime, signals
from gpt_jax.models import build_model
from gpt_jax.runs import checkpoint, goodput, lock, metrics
from gpt_jax.runs import workdir as workdir_lib
from gpt_jax.training import optim, preflight, replicas, rollback, telemetry
from gpt_jax.training import replay as replay_lib
from gpt_jax.training import state as state_lib
from gpt_jax.training import step as step_lib
from gpt_jax.training.reporter import Diverged, Reporter


class Stage(typing.NamedTuple):
  """What runs while the batch has one size.

  Attributes:
    size: sequences of the batch.
    rows: this process's, of them.
    watch: of telemetry.
    step: compiled, in so many seconds.
    peak: bytes that it needs on a device, or 0.
  """

  size: int
  rows: np.ndarray
  watch: typing.Callable
  step: typing.Callable
  seconds: float
  peak: int


def train(
  config: Config,
  workdir: str,
  command: str,
  stop: signals.Stop,
  replay: int | None = None,
) -> int:
  """Runs or goes on with a run; returns the exit code.

  Args:
    config: frozen; model.vocab_size may still be None.
    workdir: the run's folder, made if absent.
    command: what to type to go on, shown when interrupted.
    stop: notes the signals of this process.
    replay: recompute this step, and write nothing.

  Raises:
    InputError: see the sentences; nothing is half-written.
  """
  screen = console.Console(processes.index() == 0)
  held = []
  try:
    if replay is None:  # which writes nothing
      processes.share(lambda: held.append(lock.hold(workdir, screen.say)))
      stop.leaving += [each.release for each in held]
    return _train(config, workdir, command, screen, stop, replay)
  finally:
    for each in held:
      each.release()


def _train(
  config: Config, workdir: str, command: str, screen, stop, replay: int | None
) -> int:
  started, clock = time.perf_counter(), goodput.Clock()
  metrics.check_wandb(config.train.wandb_project)
  folder = os.path.join(workdir, "checkpoints")
  record = os.path.join(workdir, "config.json")

  def look() -> bool:
    how = checkpoint.choose_resume(folder, config.checkpoint.resume)
    if how == "restore" or replay is not None:
      workdir_lib.read_record(workdir)
    return how == "restore"

  is_resumed = processes.share(look)
  checkpoint.preload()

  # Data and model
  with clock.spend("data"):
    prepared = processes.in_turn(lambda: prepare_data(config.data, screen.say))
  processes.agree("the prepared data", prepared.fingerprint)
  runtime.give_back_memory()
  mesh = sharding.make_mesh(config.mesh)
  for step, _ in config_lib.batch_stages(config.train):
    preflight.check_batch(config_lib.at_step(config, step), mesh)
  config = preflight.resolve_vocab(config, prepared)
  preflight.check_prompt(config, prepared.tokenizer, screen.say)
  for _, tokens in prepared.train:
    check_length(tokens, config.data.seq_len)

  def check_run() -> None:
    if is_resumed or os.path.exists(record):
      workdir_lib.check_same_run(workdir, config, prepared.fingerprint)

  processes.share(check_run)
  if config.train.init_from is not None and not is_resumed:
    source = config.train.init_from
    processes.share(lambda: preflight.check_init(source, prepared.tokenizer))
  platform = mesh.devices.flat[0].platform
  model = build_model(config.model, config.mesh.rules, platform)
  _, specs = model.abstract_params()
  tx = optim.build_optimizer(config.optim, specs)
  schedule = optim.build_schedule(config.optim, config.train.num_steps)
  abstract = state_lib.abstract_state(model, tx, config, mesh)
  preflight.check_memory(config, mesh, abstract)
  screen.say(f"gpt_jax: training in {workdir}")
  screen.table(preflight.describe(config, mesh, abstract, prepared))
  lost = preflight.describe_lost_updates(config)
  if lost:
    screen.say(lost)

  # Compile while the state is made or read
  batch_place = sharding.batch_sharding(mesh, config.mesh.rules)

  def build_stage(step: int) -> Stage:
    """Returns what runs from this step until the batch changes its size."""
    now = config_lib.at_step(config, step)
    function = step_lib.make_train_step(model, tx, schedule, now)
    size = now.train.global_batch_size
    return Stage(
      size,
      sharding.local_rows(batch_place, (size, now.data.seq_len)),
      jax.jit(telemetry.make_watch(model, tx, schedule, now)),
      *step_lib.compile_step(function, abstract, now, mesh, batch_place),
    )

  keeper = checkpoint.Checkpointer(
    folder,
    config.checkpoint,
    workdir_lib.facts_of(config, prepared),
    say=screen.say,
  )
  stages = dict(config_lib.batch_stages(config.train))

  count = lambda step: config_lib.count_sequences(config.train, step)

  def read_batches(stage: Stage, step: int, passed: int):
    offset = count(step) + passed - step * stage.size
    return batches_lib.make_train_iterator(
      prepared, config.data, config.seed, stage.size, stage.rows, step, offset
    )

  def recompute(step: int):
    """Returns (step begun at, state after `step`), reporting nothing."""
    if any(s < step for s in processes.share(keeper.steps)):
      state, _ = keeper.restore(abstract, before=step)
    elif config.train.init_from is not None:
      raise InputError(
        f"no checkpoint before step {step} is left in {workdir}, and "
        "train.init_from may have moved on since; give a later --replay"
      )
    else:
      state = state_lib.init_state(model, tx, config, mesh)
    begun, stage = int(state.step), None
    passed = processes.share(lambda: rollback.passed_at(keeper, step))
    with jax.set_mesh(mesh):
      for index in range(begun, step):
        if stage is None or index in stages:
          stage = build_stage(index)
          batches = read_batches(stage, index, passed)
        batch = next(batches)
        batch = sharding.place_batch(batch, batch_place, stage.rows, stage.size)
        # One at a time: simulated devices that get ahead wait for each other.
        state, _ = jax.block_until_ready(stage.step(state, batch))
    return begun, state

  if replay is not None:
    total = config.train.num_steps
    again = lambda: recompute(replay)
    return replay_lib.replay(replay, total, keeper, again, screen.say)
  hash_batch = jax.jit(objective.hash_batch)
  screen.say("compiling ...")
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    expected = processes.share(keeper.latest_step) if is_resumed else 0
    compiling = pool.submit(build_stage, expected)
    if is_resumed:
      state, meta = keeper.restore(abstract)
    else:
      meta = {}
      pool.submit(keeper.prepare, abstract)
      state = state_lib.init_state(model, tx, config, mesh)
      if config.train.init_from is not None:
        source = config.train.init_from
        facts = processes.share(lambda: workdir_lib.read_facts(source))
        params = checkpoint.restore_params(
          source, abstract.params, screen.say, facts=facts
        )
        state = state_lib.replace_params(state, params)
    with clock.spend("compile"):
      stage = compiling.result()
  runtime.give_back_memory()
  first, total = int(state.step), config.train.num_steps
  line = f"compiled in {stage.seconds:.1f} s"
  if stage.peak:
    line += (
      f"; the step needs {console.format_bytes(stage.peak)} on each device"
    )
  screen.say(line)
  if is_resumed:
    screen.say(f"going on from step {first:,}")

  def write_record() -> None:
    if not os.path.exists(record):
      workdir_lib.write_text(
        os.path.join(workdir, "tokenizer.json"), prepared.tokenizer.to_json()
      )
      tokenizer = prepared.tokenizer.fingerprint()
      workdir_lib.write_config(workdir, config, prepared.fingerprint, tokenizer)

  processes.share(write_record)
  if processes.index() > 0:
    workdir_lib.await_file(record)

  def build_reporter(first: int, meta: dict) -> Reporter:
    """Returns what writes the rows from this step on; later ones go."""
    return Reporter(
      config,
      workdir,
      first,
      screen,
      model,
      mesh,
      prepared,
      clock,
      meta.get("metrics"),
    )

  ledger = rollback.Ledger.of(meta)
  keeper.meta |= ledger.meta()
  reporter = build_reporter(first, meta)
  if first >= total and reporter.has_reported():
    screen.say(f"this run is finished: all {total:,} steps are done")
    return 0

  # The loop
  # All are met here, however long each has compiled: gloo waits 30 seconds for
  # the others of a first collective, and fails.
  processes.agree("the step to go on from", first)
  stop.wait_for()
  # Simulated devices share few threads: of two programs whose devices meet at
  # once, each can keep the other's from its meeting.
  is_simulated = platform == "cpu" and mesh.size > jax.process_count()
  wait = jax.block_until_ready if is_simulated else lambda x: x
  clock.switch("step")
  processes.mark(is_result=False)

  def run_steps(state, stage: Stage, first: int) -> int:
    """Runs the steps that are left; returns the exit code."""
    if stage.size != config_lib.at_step(config, first).train.global_batch_size:
      stage = build_stage(first)  # a damaged step gave way to an older one
    batches = read_batches(stage, first, ledger.num_passed)
    reporter.set_batch(stage.size)
    with jax.set_mesh(mesh):
      reporter.catch_up(state)
      pending = None
      for index in range(first, total):
        if index in stages and index > first:
          if pending is not None:
            reporter.finish(*pending, is_forced=True)
            pending = None
          with clock.spend("compile"):
            stage = build_stage(index)
          processes.agree("the step of a larger batch", index)
          batches = read_batches(stage, index, ledger.num_passed)
          reporter.set_batch(stage.size)
          screen.say(f"step {index:,}: batches of {stage.size:,} sequences now")
        waited = time.perf_counter()
        with clock.spend("data"):
          batch = sharding.place_batch(
            next(batches), batch_place, stage.rows, stage.size
          )
        reporter.meter.data_wait += time.perf_counter() - waited
        reporter.profile(index)
        wait(state)
        seen = reporter.is_watched(index + 1)
        seen = seen and wait(stage.watch(state, batch))
        hashed = {}
        if reporter.is_logged(index + 1):
          hashed["batch_hash"] = wait(hash_batch(batch))
        state, result = stage.step(state, batch)
        result |= hashed
        if pending is not None:
          reporter.finish(*pending)
        pending = (index + 1, result)
        if seen:
          reporter.watch(index + 1, seen)

        done = index + 1
        every = config.train.check_replicas_every_steps
        if every and done % every == 0:
          replicas.check(state, done)
        code = stop.check(done)
        is_last = done == total
        is_saving = keeper.should_save(done) or is_last
        if is_saving or reporter.is_due(done) or code is not None:
          reporter.finish(*pending, is_forced=True)
          pending = None
          if code is None and not is_last:
            reporter.report_on(done, state)
          # A streak of skipped updates learns nothing, and its saves would push
          # out the last good step.
          is_stuck = reporter.skipped_in_row > 0 and not is_last
          if is_saving and not is_stuck or code is not None:
            keeper.meta["metrics"] = reporter.seal_rows()
            with clock.spend("save"):
              keeper.save(done, state, force=True)
          reporter.meter.restart()
          if code is not None and not is_last:
            break
      with clock.spend("save"):
        keeper.wait()
      reporter.end_profile()
      code = stop.check(int(state.step))
      if code is None:
        seconds = time.perf_counter() - started
        is_stopped = lambda: stop.check(total) is not None
        reporter.report(state, seconds, is_stopped)
        code = stop.check(total)
    if code is None:
      return 0
    screen.close()
    screen.say(
      f"stopped at step {int(state.step):,} of {total:,}, saved; go on with: "
      f"{command}"
    )
    return code

  def roll_back(failed: int, why: str):
    """Returns (state, its step, reporter) to go on with, or None."""
    nonlocal ledger
    if len(ledger.entries) >= config.train.max_rollbacks:
      return None
    target = processes.share(lambda: ledger.choose(keeper.good_steps()))
    if target is None:
      return None
    ledger = ledger.add(target, failed, count)
    reporter.close()
    state, meta = keeper.restore(abstract, step=target)
    keeper.meta |= ledger.meta()
    clock.forget()  # its rows hold it, and carry it over
    again = build_reporter(target, meta)
    again.note_rollback(failed, ledger.num_passed)
    screen.say(
      f"{why}: going back to step {target:,} and on with the batches after "
      f"those of step {failed:,} (rollback {len(ledger.entries)} of "
      f"{config.train.max_rollbacks})"
    )
    return state, target, again

  try:
    while True:
      try:
        return run_steps(state, stage, first)
      except Diverged as error:
        failed, why = error.step, str(error)
      # The state is let go before another is read.
      state = None
      screen.close()
      keeper.wait()
      found = roll_back(failed, why)
      if found is None:
        break
      state, first, reporter = found
    steps = keeper.steps()
    kept = f"step {steps[-1]:,} is saved" if steps else "nothing was saved"
    screen.say(
      f"gpt_jax: {why}, {kept}; start in another --workdir with "
      f"{preflight.suggest_finite(config)}"
    )
    return exits.DIVERGED
  except replicas.Corrupt as error:
    screen.close()
    keeper.wait()
    screen.say(f"gpt_jax: {error}")
    return exits.CORRUPT
  finally:
    try:
      keeper.close()
    finally:
      reporter.close()
