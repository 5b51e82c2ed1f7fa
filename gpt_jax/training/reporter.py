"""Reports on a run: metric rows, evaluations, samples and the final report.

An evaluation or sample that is due comes before the checkpoint of its step, so
that a run resumed from that checkpoint has it already. If a signal prevents
one, the resumed run does it first.
"""

import math
import os
import time
from collections.abc import Callable
from typing import Any

import jax

from gpt_jax import config as config_lib
from gpt_jax import files, flops, metric_names
from gpt_jax.config import Config
from gpt_jax.data.objectives import ANSWERED, build_task, prompting
from gpt_jax.data.prepare import PreparedData
from gpt_jax.inference import generation, scoring, texts
from gpt_jax.machine import console, processes
from gpt_jax.models import Model
from gpt_jax.runs import goodput, metrics, plot
from gpt_jax.training import step as step_lib
from gpt_jax.training.rollback import Diverged
from gpt_jax.training.tasks import Tasks


class Reporter:
  """Writes rows and files and prints lines, as the loop's steps are done.

  Args:
    config: model.vocab_size is known.
    workdir: the run's folder.
    first: number of steps done when this process begins.
    screen: prints lines and tables.
    model: the model of the config.
    mesh: the mesh of the state.
    prepared: the data; its validation sets are evaluated.
    clock: this process's time by activity; earlier processes' time is added.
    seal: seal of the rows up to `first`, from its checkpoint; None if unknown.
  """

  def __init__(
    self,
    config: Config,
    workdir: str,
    first: int,
    screen: console.Console,
    model: Model,
    mesh: jax.sharding.Mesh,
    prepared: PreparedData,
    clock: goodput.Clock,
    seal: list | None = None,
  ):
    self.config, self.workdir, self.first = config, workdir, first
    self.screen, self.model, self.mesh = screen, model, mesh
    self.prepared = prepared
    self.tasks = Tasks(config, model, prepared.tokenizer, mesh)
    self.writers = None
    self.is_writing = processes.index() == 0
    self.clock = clock
    self.time_left = metrics.TimeLeft()
    total = config.train.num_steps
    if self.is_writing:
      has_curve = os.path.exists(self._curve_path())
      # An interrupted report is repeated, so its rows are dropped.
      is_cut = lambda row: (
        row["step"] == total and any(name.startswith("eval/") for name in row)
      )
      self.writers = metrics.Writers(
        workdir,
        first,
        config.train.wandb_project,
        is_dropped=lambda row: not has_curve and is_cut(row),
        say=screen.say,
        seal=seal,
      )
      if has_curve and first < total:
        os.remove(self._curve_path())  # the run has yet to end again
      clock.go_on(self.writers.carried)
    self.meter = metrics.Meter(
      config.train.global_batch_size * config.data.seq_len,
      flops.train_flops_of(config),
      peak=None,  # measured by the loop after the first steps
      is_measured=mesh.devices.flat[0].platform == "cpu",
    )
    self.is_profiling = False
    self.sample_fault = None
    self._sample_steps = config_lib.sample_steps(config)
    self.skipped_in_row = 0

  def finish(self, step: int, result: dict, is_forced: bool = False) -> None:
    """Waits for the result of a step; logs it if the step is logged.

    Args:
      step: number of steps done, this one included.
      result: metrics of the train step, on the device.
      is_forced: the result is fetched before the next step is dispatched, so
        that the time since the last fetch is not the time of a step.

    Raises:
      Diverged: more than train.max_nonfinite_steps in a row were skipped, or
        the last steps of the run were.
    """
    values = {k: float(v) for k, v in jax.device_get(result).items()}
    processes.mark()
    if not is_forced:
      self.meter.mark()
    t = self.config.train
    skipped = self.skipped_in_row = int(values[step_lib.SKIPPED_IN_ROW])
    if skipped:
      self._list_skipped(step, values)
    is_bad_end = skipped > 1 or not math.isfinite(values[metric_names.LOSS])
    if skipped > t.max_nonfinite_steps or (step == t.num_steps and is_bad_end):
      kind = "not finite"
      if t.spike_factor is not None:
        kind = f"not finite, or spikes above {t.spike_factor:g} times the mean,"
      what = "update was" if skipped == 1 else f"{skipped} updates were"
      raise Diverged(
        step,
        f"the last {what} {kind} and skipped; stopped at step {step:,}",
      )
    if not self.is_logged(step):
      return
    # Values whose name has no slash are for the loop alone.
    row = {name: value for name, value in values.items() if "/" in name}
    row[metric_names.BATCH_HASH] = int(values[metric_names.BATCH_HASH])
    done = config_lib.count_sequences(t, step)
    row[metric_names.TOKENS] = done * self.config.data.seq_len
    rates = self.meter.rates()
    self._write(step, row | rates)
    each = self.time_left.note(step, time.perf_counter())
    left = None if each is None else (t.num_steps - step) * each
    self.screen.progress(
      step, t.num_steps, values[metric_names.LOSS], rates, left
    )

  def _list_skipped(self, step: int, values: dict) -> None:
    """Writes the row of a skipped update, and prints a line."""
    is_spike = bool(values.get(step_lib.IS_SPIKE, 0))
    norm, loss = values[metric_names.GRAD_NORM], values[metric_names.LOSS]
    if is_spike:
      row = {metric_names.SKIPPED_SPIKE: 1, metric_names.GRAD_NORM: norm}
    else:
      row = {metric_names.SKIPPED_NONFINITE: 1}
    if metric_names.BATCH_HASH in values:
      row[metric_names.BATCH_HASH] = int(values[metric_names.BATCH_HASH])
    self._write(step, row)
    why = "a spike" if is_spike else "not finite"
    self.screen.say(
      f"step {step:,}: its update is skipped, {why} (gradient norm {norm:.3g}, "
      f"loss {loss:.4g})"
    )

  def note_rollback(self, failed: int, num_passed: int) -> None:
    """Writes the row of a rollback, at the step that the run resumes from.

    Args:
      failed: number of steps done when the run diverged.
      num_passed: sequences of the data order that are skipped so far.
    """
    row = {
      metric_names.ROLLED_BACK_FROM: failed,
      metric_names.PASSED: num_passed,
    }
    if self.is_writing:
      # A run killed after a rollback repeats it, and already has its row.
      rows = metrics.read_rows(os.path.join(self.workdir, "metrics.jsonl"))
      if any(row.items() <= each.items() for each in rows):
        return
    self._write(self.first, row)

  def seal_rows(self) -> list | None:
    """Returns the seal of all rows so far; None where none are written."""
    return self.writers.seal.value() if self.writers else None

  def set_batch(self, size: int) -> None:
    """Sets the batch size of the steps that follow."""
    self.meter.tokens_per_step = size * self.config.data.seq_len
    self.time_left = metrics.TimeLeft()
    self.meter.restart()

  def is_logged(self, step: int) -> bool:
    """Returns whether this step has a row; the first and last do."""
    t = self.config.train
    every = t.log_every_steps
    is_turn = every > 0 and step % every == 0
    return is_turn or step in (1, t.num_steps)

  def is_watched(self, step: int) -> bool:
    """Returns whether telemetry is due at this step, as at the first."""
    every = self.config.train.telemetry_every_steps
    return every > 0 and (step % every == 0 or step == 1)

  def watch(self, step: int, seen: dict) -> None:
    """Writes the telemetry of a step."""
    seen = jax.device_get(seen)
    self._write(step, {k: float(v) for k, v in seen.items()})

  def is_due(self, step: int) -> bool:
    """Returns whether an evaluation or a sample is due after this step."""
    every = self.config.eval.every_steps, self._sample_steps
    return any(n and step % n == 0 for n in every)

  def report_on(self, step: int, state: Any) -> None:
    """Evaluates on some batches, and samples, where it is due."""
    with self.clock.spend("evaluation"):
      self._report_on(step, state)

  def _report_on(self, step: int, state) -> None:
    c = self.config
    if c.eval.every_steps and step % c.eval.every_steps == 0:
      for name, tokens in self.prepared.valid.items():
        result = self._score(state, state.params, tokens, c.eval.num_batches)
        row = {
          metric_names.eval_name(name, k): v
          for k, v in result.items()
          if k not in scoring.DERIVED
        }
        line = f"step {step:,}: {name} loss {result['loss']:.4f}"
        if state.ema is not None:
          result = self._score(state, state.ema, tokens, c.eval.num_batches)
          row[metric_names.eval_name(name, "ema_loss")] = result["loss"]
          line += f", of the average {result['loss']:.4f}"
        self._write(step, row)
        self.screen.say(line)
      self._answer_tasks(step, state)
    if self._sample_steps and step % self._sample_steps == 0:
      self._sample(step, state)

  def catch_up(self, state: Any) -> None:
    """Evaluates and samples at step `first`, if a signal prevented that."""

    def is_there() -> bool:
      rows = metrics.read_rows(os.path.join(self.workdir, "metrics.jsonl"))
      names = [k for r in rows if r["step"] == self.first for k in r]
      return any(name.startswith("eval/") for name in names)

    # After the last step the report evaluates the whole set instead.
    is_due = 0 < self.first < self.config.train.num_steps
    is_due = is_due and self.is_due(self.first)
    if is_due and not processes.share(is_there):
      self.report_on(self.first, state)

  def report(
    self,
    state: Any,
    seconds: float,
    is_stopped: Callable[[], bool] = lambda: False,
  ) -> None:
    """Ends a run: evaluates whole validation sets, samples, plots the loss.

    The plot is written last: its file marks the report as complete.

    Args:
      state: the state after the last step.
      seconds: duration of this process.
      is_stopped: asked between the parts; once it is true, the rest is left
        out.

    Raises:
      Diverged: the loss on a validation set is not finite.
    """
    with self.clock.spend("evaluation"):
      self._report(state, seconds, is_stopped)

  def _report(self, state, seconds: float, is_stopped) -> None:
    c, total = self.config, self.config.train.num_steps
    self.screen.close()
    done = f"{total:,} steps"
    if self.first:
      done = f"steps {self.first + 1:,} to {total:,}"
    if self.first < total:
      self.screen.say(f"trained {done} in {console.format_seconds(seconds)}")
    for name, tokens in self.prepared.valid.items():
      if tokens.num_ids < 2 or is_stopped():
        continue
      self.screen.say(f"evaluating all of {name} ...")
      result = self._score(state, state.params, tokens, None)
      self._write(
        total, {metric_names.eval_name(name, k): v for k, v in result.items()}
      )
      self._say_result(name, result)
      if self.is_writing:
        tokenizer = self.prepared.tokenizer
        self.screen.table(scoring.compare(result, tokens, tokenizer))
      if state.ema is not None:
        loss = self._score(state, state.ema, tokens, None)["loss"]
        self._write(total, {metric_names.eval_name(name, "ema_loss"): loss})
        self.screen.say(f"{name}: loss {loss:.4f} of the moving average")
      if not math.isfinite(result["loss"]):
        raise Diverged(total, f"the loss on {name} is {result['loss']}")
    if not is_stopped():
      self._answer_tasks(total, state)
    self._say_noise_scale()
    if self._sample_steps and not is_stopped():
      text = self._sample(total, state)
      if text is not None:
        self.screen.say("sample:")
        for line in console.wrap_text(self._join_sample(text)):
          self.screen.say(f"  | {line}")
    if is_stopped():
      return
    self._plot()
    self.screen.say(f"time: {self.clock.describe()}")
    self.screen.say(f"everything is in {self.workdir}:")
    rows = [
      ("checkpoints/", f"the last is step {total:,}"),
      ("plots/loss.svg", "the loss curve"),
      ("metrics.jsonl", "every logged figure; also in tensorboard/"),
      ("data.md", "what was learned from, and how that was prepared"),
    ]
    if c.model.num_experts is not None:
      rows.append(("plots/expert_load.svg", "how busy experts were, by layer"))
    if self._sample_steps:
      rows.append(("samples/", "generated text"))
    self.screen.table(rows)

  def has_reported(self) -> bool:
    """Returns whether `report` was completed."""
    return processes.share(lambda: os.path.exists(self._curve_path()))

  def profile(self, index: int) -> None:
    """Starts and stops the profiler around train.profile_steps steps.

    Args:
      index: number of steps done, over the whole run.
    """
    t = self.config.train
    # The first three steps are slower and left out, if there are more.
    start = min(self.first + 3, t.num_steps - 1)
    if t.profile_steps and index == start and self.is_writing:
      jax.profiler.start_trace(os.path.join(self.workdir, "profile"))
      self.is_profiling = True
    elif index == start + t.profile_steps:
      self.end_profile()

  def end_profile(self) -> None:
    """Writes the profile if one is being taken."""
    if self.is_profiling:
      self.is_profiling = False
      jax.profiler.stop_trace()
      self.screen.say(f"the profile is in {self.workdir}/profile")

  def close(self) -> None:
    """Removes the progress bar and closes the files."""
    self.screen.close()
    self.end_profile()
    if self.writers is not None:
      self.writers.close()

  def _score(self, state, learned, tokens, num_batches: int | None):
    c = self.config
    # A batch as large as a microbatch, which is known to fit.
    parts = c.train.num_microbatches
    return scoring.score(
      self.model,
      self.model.attach(learned, state.base),
      tokens,
      seq_len=c.data.seq_len,
      batch_size=c.train.global_batch_size // parts,
      packing=c.data.packing,
      num_loss_chunks=c.train.num_loss_chunks,
      mesh=self.mesh,
      max_batches=num_batches and num_batches * parts,
      show=lambda done, of: self.screen.wait(
        f"evaluated {done:,} of {of:,} batches"
      ),
      task=build_task(c, lambda: self.prepared.tokenizer),
    )

  def _answer_tasks(self, step: int, state) -> None:
    row = self.tasks.answer(self.model.attach(state.params, state.base))
    if row:
      self._write(step, row)
      figures = (f"{k.removeprefix('eval/')} {v:.4g}" for k, v in row.items())
      self.screen.say(f"step {step:,}: {', '.join(figures)}")

  def _say_result(self, name: str, result: dict) -> None:
    if "perplexity" not in result:
      self.screen.say(f"{name}: {scoring.describe(result)}")
      return
    self.screen.say(
      f"{name}: loss {result['loss']:.4f}, perplexity "
      f"{result['perplexity']:.2f}, over all {result['num_tokens']:,} tokens"
    )

  def _say_noise_scale(self) -> None:
    if self.writers is None:
      return
    scale = metrics.noise_scale(metrics.read_rows(self.writers.path))
    if scale is not None:
      size = self.config.train.global_batch_size
      self.screen.say(
        f"gradient noise scale: about {scale:,.0f} sequences; a batch has "
        f"{size:,}, and batches much larger than the noise scale gain little"
      )

  def _sample(self, step: int, state) -> str | None:
    """Writes a continuation of sample.prompt; returns it, or None.

    Any failure prints a line, once, and the run goes on: samples only
    illustrate, and a run that ended here would end here again when resumed.
    """
    s = self.config.sample
    try:
      (text,) = texts.generate_text(
        self.model,
        self.model.attach(state.params, state.base),
        prompting(self.config, self.prepared.tokenizer),
        [s.prompt],
        s.num_tokens,
        generation.Sampling(temperature=s.temperature),
        seed=self.config.seed,
        is_prefix=config_lib.has_prefixes(self.config),
      )
      if self.writers is not None:
        path = os.path.join(self.workdir, "samples", f"step-{step:06d}.txt")
        files.write_text(path, self._join_sample(text))
    except Exception as error:
      why = " ".join(str(error).split()) or type(error).__name__
      if why != self.sample_fault:
        self.screen.say(f"step {step:,}: no sample of sample.prompt: {why}")
      self.sample_fault = why
      return None
    return text

  def _join_sample(self, text: str) -> str:
    """Returns sample.prompt and its continuation, or its answer below it."""
    tokenizer = prompting(self.config, self.prepared.tokenizer)
    between = "\n" if isinstance(tokenizer, ANSWERED) else ""
    return self.config.sample.prompt + between + text

  def _curve_path(self) -> str:
    return os.path.join(self.workdir, "plots", "loss.svg")

  def _plot(self) -> None:
    if self.writers is None:
      return
    rows = metrics.read_rows(self.writers.path)
    for name, svg in plot.draw_run(rows, self.prepared.valid).items():
      files.write_text(os.path.join(self.workdir, "plots", name), svg)

  def _write(self, step: int, values: dict) -> None:
    if self.writers is not None:
      self.writers.write(step, values | self.clock.row())
