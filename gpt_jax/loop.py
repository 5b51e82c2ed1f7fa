"""The training loop: prepare, compile, step, log, evaluate, save, report.

The order of events in a step is the protocol: the next batch is read and the
step dispatched before the result of the last one is fetched, so that the host
never keeps the device waiting; whatever needs the state itself (saving,
evaluating, sampling) first waits for it.
"""

import concurrent.futures
import dataclasses
import os
import signal
import time

import jax
import numpy as np

from gpt_jax import (
  checkpoint,
  console,
  decode,
  flops,
  metrics,
  optim,
  plot,
  score,
  sharding,
  tree,
)
from gpt_jax import (
  state as state_lib,
)
from gpt_jax import (
  step as step_lib,
)
from gpt_jax import (
  workdir as workdir_lib,
)
from gpt_jax.config import Config, InputError
from gpt_jax.data import pipeline, store
from gpt_jax.models import build_model

# A validation text up to this size is also compressed, for comparison.
YARDSTICK_BYTES = 64 << 20
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130
EXIT_DIVERGED = 3


class Stop:
  """Notes SIGINT and SIGTERM for the loop to see; a second one exits at once.

  Attributes:
    code: exit code to end with, or None while nothing has come.
  """

  def __init__(self):
    self.code = None
    self.old = {
      s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)
    }

  def _note(self, number, frame):
    code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED
    if self.code is not None:
      os._exit(code)
    self.code = code

  def close(self) -> None:
    """Puts the earlier handlers back."""
    for number, handler in self.old.items():
      signal.signal(number, handler)


def train(config: Config, workdir: str, command: str) -> int:
  """Runs or goes on with a run; returns the exit code.

  Args:
    config: frozen; model.vocab_size may still be None.
    workdir: the run's folder, made if absent.
    command: what to type to go on, shown when interrupted.

  Raises:
    InputError: see the sentences; nothing is half-written.
  """
  screen = console.Console(jax.process_index() == 0)
  started = time.perf_counter()
  mesh = sharding.make_mesh(config.mesh)
  check_batch(config, mesh)
  folder = os.path.join(workdir, "checkpoints")
  is_resumed = (
    checkpoint.choose_resume(folder, config.checkpoint.resume) == "restore"
  )
  if is_resumed:
    checkpoint.preload()

  # Data and model
  prepared = store.prepare(config.data, screen.say)
  config = resolve_vocab(config, prepared)
  if config.sample.every_steps:
    prompt = prepared.tokenizer.encode(config.sample.prompt)
    if not 0 < len(prompt) <= config.model.max_len:
      raise InputError(
        f"sample.prompt has {len(prompt)} tokens; it must have 1 to "
        f"model.max_len {config.model.max_len}"
      )
  for _, tokens in prepared.train:
    store.check_length(tokens, config.data.seq_len)
  record = os.path.join(workdir, "config.json")
  if os.path.exists(record):
    workdir_lib.check_same_run(workdir, config, prepared.fingerprint)
  model = build_model(config.model, config.mesh.rules)
  _, specs = model.abstract_params()
  tx = optim.build_optimizer(config.optim, specs)
  schedule = optim.build_schedule(config.optim, config.train.num_steps)
  abstract = state_lib.abstract_state(model, tx, config, mesh)
  if jax.process_index() == 0 and not os.path.exists(record):
    workdir_lib.write_config(workdir, config, prepared.fingerprint)
    workdir_lib.write_text(
      os.path.join(workdir, "tokenizer.json"), prepared.tokenizer.to_json()
    )
  screen.say(f"gpt_jax: training in {workdir}")
  screen.table(describe(config, mesh, abstract, prepared))

  # Compile while the state is made or read
  rows = pipeline_rows(config, mesh)
  batch_place = sharding.batch_sharding(mesh, config.mesh.rules)
  step_function = step_lib.make_train_step(model, tx, schedule, config)
  keeper = checkpoint.Checkpointer(
    folder,
    config.checkpoint,
    {"data_fingerprint": prepared.fingerprint},
    say=screen.say,
  )
  screen.say("compiling ...")
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    compiling = pool.submit(
      compile_step, step_function, abstract, config, mesh, batch_place
    )
    if is_resumed:
      state, _ = keeper.restore(abstract)
    else:
      state = state_lib.init_state(model, tx, config, mesh)
      if config.train.init_from is not None:
        params = checkpoint.restore_params(
          config.train.init_from, abstract.params, screen.say
        )
        state = state.replace(params=params)
    train_step, compile_seconds, peak = compiling.result()
  first, total = int(state.step), config.train.num_steps
  line = f"compiled in {compile_seconds:.1f} s"
  if peak:
    line += f"; the step needs {console.format_bytes(peak)} on each device"
  screen.say(line)
  if is_resumed:
    screen.say(f"going on from step {first:,}")
  if first >= total:
    screen.say(f"this run is finished: {first:,} of {total:,} steps are done")
    return 0

  # The loop
  writers = None
  if jax.process_index() == 0:
    writers = metrics.Writers(workdir, first, config.train.wandb_project)
  meter = metrics.Meter(
    config.train.global_batch_size * config.data.seq_len,
    flops.train_flops_per_token(config.model, config.data.seq_len),
    device_peak(mesh),
  )
  batches = pipeline.make_train_iterator(
    prepared,
    config.data,
    config.seed,
    config.train.global_batch_size,
    rows,
    first,
  )
  stop = Stop()
  run = _Run(
    config, workdir, screen, writers, meter, model, mesh, prepared, keeper
  )
  try:
    with jax.set_mesh(mesh):
      pending = None
      for index in range(first, total):
        waited = time.perf_counter()
        batch = place_batch(next(batches), config, batch_place, rows)
        meter.data_wait += time.perf_counter() - waited
        run.profile(index - first)
        state, result = train_step(state, batch)
        if pending is not None:
          run.finish(*pending)
        pending = (index + 1, result)

        done = index + 1
        if run.is_pause(done) or stop.code is not None:
          run.finish(*pending)
          pending = None
          code = run.pause(done, state, stop.code)
          if code is not None:
            keeper.wait()
            screen.close()
            screen.say(
              f"stopped at step {done:,} of {total:,}, saved; go on with: "
              f"{command}"
            )
            return code
    keeper.wait()
    run.report(state, time.perf_counter() - started)
    return 0
  except Diverged as error:
    screen.close()
    keeper.wait()
    screen.say(f"gpt_jax: {error}")
    return EXIT_DIVERGED
  finally:
    screen.close()
    stop.close()
    keeper.close()
    if writers is not None:
      writers.close()


class Diverged(Exception):
  """Too many updates in a row were not finite."""


@dataclasses.dataclass
class _Run:
  """What happens around the steps of one run."""

  config: Config
  workdir: str
  screen: console.Console
  writers: metrics.Writers | None
  meter: metrics.Meter
  model: object
  mesh: jax.sharding.Mesh
  prepared: store.PreparedData
  keeper: checkpoint.Checkpointer

  def finish(self, step: int, result: dict) -> None:
    """Waits for the result of a step; logs it if it is its turn."""
    values = {k: float(v) for k, v in jax.device_get(result).items()}
    self.meter.mark()
    t = self.config.train
    if values["skipped_in_row"] > t.max_nonfinite_steps:
      steps = self.keeper.steps()
      kept = f"step {steps[-1]:,} is saved" if steps else "nothing was saved"
      raise Diverged(
        f"the last {values['skipped_in_row']:.0f} updates were not finite and "
        f"were skipped; stopped at step {step:,}, {kept}; try a lower "
        "optim.learning_rate or set optim.clip_norm"
      )
    if step % t.log_every_steps and step not in (1, t.num_steps):
      return
    row = {
      metrics.LOSS: values["loss"],
      metrics.GRAD_NORM: values["grad_norm"],
      metrics.LEARNING_RATE: values["learning_rate"],
      metrics.NUM_SKIPPED: values["num_skipped"],
      metrics.TOKENS: step * self.meter.tokens_per_step,
    }
    rates = self.meter.rates()
    self._write(step, row | rates)
    self.screen.progress(step, t.num_steps, values["loss"], rates)

  def is_pause(self, done: int) -> bool:
    """Returns whether something after this step needs the state itself."""
    c = self.config
    every = [c.eval.every_steps, c.sample.every_steps]
    return (
      done == c.train.num_steps
      or self.keeper.should_save(done)
      or any(n and done % n == 0 for n in every)
    )

  def pause(self, done: int, state, code: int | None) -> int | None:
    """Saves, evaluates and samples where it is time; returns `code`."""
    c, is_last = self.config, done == self.config.train.num_steps
    if self.keeper.should_save(done) or is_last or code is not None:
      self.keeper.save(done, state, force=True)
    if code is None and not is_last:
      if done % c.eval.every_steps == 0:
        for name, tokens in self.prepared.valid.items():
          result = self._score(state, tokens, c.eval.num_batches)
          self._write(done, {metrics.eval_name(name, "loss"): result["loss"]})
          self.screen.say(f"step {done:,}: {name} loss {result['loss']:.4f}")
      if c.sample.every_steps and done % c.sample.every_steps == 0:
        self._sample(done, state)
    self.meter.restart()
    return None if is_last else code

  def report(self, state, seconds: float) -> None:
    """Ends a run: whole validation set, sample, curve, where things are."""
    c, total = self.config, self.config.train.num_steps
    self.screen.close()
    self.screen.say(f"trained {total:,} steps; {seconds:.0f} s in all")
    for name, tokens in self.prepared.valid.items():
      if tokens.num_ids < 2:
        continue
      result = self._score(state, tokens, None)
      self._write(
        total, {metrics.eval_name(name, k): v for k, v in result.items()}
      )
      self.screen.say(
        f"{name}: loss {result['loss']:.4f}, perplexity "
        f"{result['perplexity']:.2f}, over all {result['num_tokens']:,} tokens"
      )
      self.screen.table(self._yardstick(result, tokens))
    if c.sample.every_steps:
      text = self._sample(total, state)
      self.screen.say("sample:")
      for line in (c.sample.prompt + text).strip("\n").splitlines():
        self.screen.say(f"  | {line}")
    self._plot()
    self.screen.say(f"everything is in {self.workdir}:")
    self.screen.table(
      [
        ("checkpoints/", f"the last is step {total:,}"),
        ("plots/loss.svg", "the loss curve"),
        ("metrics.jsonl", "every logged figure; also in tensorboard/"),
        ("samples/", "generated text"),
      ]
    )

  def profile(self, index: int) -> None:
    """Starts and stops the profiler around the steps asked for."""
    steps = self.config.train.profile_steps
    if not steps:
      return
    if index == 3:
      jax.profiler.start_trace(os.path.join(self.workdir, "profile"))
    elif index == 3 + steps:
      jax.profiler.stop_trace()
      self.screen.say(f"profile of {steps} steps is in {self.workdir}/profile")

  def _score(self, state, tokens, max_batches):
    c = self.config
    return score.score(
      self.model,
      state.params,
      tokens,
      seq_len=c.data.seq_len,
      batch_size=c.train.global_batch_size,
      packing=c.data.packing,
      mesh=self.mesh,
      max_batches=max_batches,
    )

  def _yardstick(self, result: dict, tokens) -> list[tuple[str, str]]:
    rows = [("bits per byte", f"{result['bits_per_byte']:.3f}")]
    if tokens.num_bytes <= YARDSTICK_BYTES:
      ids = tokens.read(0, tokens.num_ids)
      tokenizer = self.prepared.tokenizer
      text = tokenizer.decode_bytes(ids[ids != tokenizer.separator_id])
      for name, bits in score.compressed_bits_per_byte(text).items():
        rows.append((name, f"{bits:.3f} on the same text"))
    return rows

  def _sample(self, step: int, state) -> str:
    s = self.config.sample
    (text,) = decode.generate_text(
      self.model,
      state.params,
      self.prepared.tokenizer,
      [s.prompt],
      s.num_tokens,
      decode.Sampling(temperature=s.temperature),
      seed=self.config.seed,
    )
    if self.writers is not None:
      path = os.path.join(self.workdir, "samples", f"step-{step:06d}.txt")
      workdir_lib.write_text(path, s.prompt + text)
    return text

  def _plot(self) -> None:
    if self.writers is None:
      return
    rows = metrics.read_rows(self.writers.path)
    curve = lambda name: [(r["step"], r[name]) for r in rows if name in r]
    curves = {metrics.LOSS: curve(metrics.LOSS)}
    for name in self.prepared.valid:
      loss = metrics.eval_name(name, "loss")
      curves[loss] = curve(loss)
    svg = plot.draw_curves("loss, nats per token", "step", curves)
    workdir_lib.write_text(os.path.join(self.workdir, "plots", "loss.svg"), svg)

  def _write(self, step: int, values: dict) -> None:
    if self.writers is not None:
      finite = {k: v for k, v in values.items() if np.isfinite(v)}
      self.writers.write(step, finite)


def resolve_vocab(config: Config, prepared: store.PreparedData) -> Config:
  """Returns the config with model.vocab_size known and sufficient."""
  size = config.model.vocab_size
  if size is None:
    model = dataclasses.replace(config.model, vocab_size=prepared.vocab_size)
    return dataclasses.replace(config, model=model)
  if size < prepared.vocab_size:
    raise InputError(
      f"model.vocab_size is {size} and the tokenizer "
      f"{config.data.tokenizer!r} has {prepared.vocab_size} tokens; raise it, "
      "or leave it None to take the tokenizer's"
    )
  return config


def check_batch(config: Config, mesh) -> None:
  """Raises InputError unless batches divide over the mesh."""
  table = sharding.RULES[config.mesh.rules]
  part = config.train.global_batch_size // config.train.num_microbatches
  shards = int(np.prod([mesh.shape[a] for a in table["batch"]]))
  if part % shards:
    raise InputError(
      f"a microbatch has {part} sequences, which mesh data x fsdp = {shards} "
      "does not divide; change train.global_batch_size or "
      "train.num_microbatches"
    )
  pieces = int(np.prod([mesh.shape[a] for a in table["length"]]))
  if config.data.seq_len % pieces:
    raise InputError(
      f"data.seq_len is {config.data.seq_len}, which mesh.seq {pieces} does "
      "not divide"
    )


def describe(config: Config, mesh, abstract, prepared) -> list[tuple[str, str]]:
  """Returns the rows of the table that a run starts with."""
  c = config
  count = sum(flops.count_parameters(c.model).values())
  state_bytes = tree.count_bytes(abstract)
  local = sum(
    int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64))
    * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(abstract)
  )
  tokens = c.train.num_steps * c.train.global_batch_size * c.data.seq_len
  per_token = flops.train_flops_per_token(c.model, c.data.seq_len)
  replicas = int(np.prod([mesh.shape[a] for a in ("data", "fsdp", "seq")]))
  micro = c.train.global_batch_size // c.train.num_microbatches
  passing = flops.estimate_passing_bytes(
    c.model, micro * c.data.seq_len // replicas
  )
  train_ids = sum(t.num_ids for _, t in prepared.train)
  size = console.format_bytes
  return [
    (
      "parameters",
      f"{count:,} ({size(tree.count_bytes(abstract.params))} "
      f"{c.model.param_dtype})",
    ),
    (
      "state",
      f"{size(state_bytes)} with moments; {size(local)} on each device",
    ),
    (
      "data",
      f"{train_ids:,} tokens to train on, vocabulary {c.model.vocab_size:,}, "
      f"{c.data.packing} of {c.data.seq_len}",
    ),
    (
      "run",
      f"{c.train.num_steps:,} steps x {c.train.global_batch_size} sequences ="
      f" {tokens:,} tokens ({tokens / train_ids:.2f} epochs)",
    ),
    (
      "compute",
      f"{console.format_count(per_token)} FLOPs a token, "
      f"{per_token * tokens:.2e} in all",
    ),
    (
      "mesh",
      f"{sharding.describe_mesh(mesh)} ({mesh.devices.flat[0].device_kind})",
    ),
    ("memory", f"about {size(local + passing)} on each device"),
  ]


def compile_step(step_function, abstract, config: Config, mesh, batch_place):
  """Returns (compiled step, seconds, peak bytes on a device or 0)."""
  shape = (config.train.global_batch_size, config.data.seq_len)
  leaf = lambda dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_place)
  batch = {"tokens": leaf(np.int32), "targets": leaf(np.int32)}
  batch["mask"] = leaf(np.float32)
  if config.data.packing == "documents":
    batch |= {"segments": leaf(np.int32), "positions": leaf(np.int32)}
  start = time.perf_counter()
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  with jax.set_mesh(mesh):
    jitted = jax.jit(
      step_function, donate_argnums=0, out_shardings=(shardings, None)
    )
    compiled = jitted.lower(abstract, batch).compile()
  seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  peak = 0
  if memory is not None:
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
  return compiled, seconds, peak


def pipeline_rows(config: Config, mesh) -> np.ndarray:
  """Returns the rows of a global batch that this process reads."""
  shape = (config.train.global_batch_size, config.data.seq_len)
  place = sharding.batch_sharding(mesh, config.mesh.rules)
  mine = place.addressable_devices_indices_map(shape).values()
  rows = {r for index in mine for r in range(*index[0].indices(shape[0]))}
  return np.array(sorted(rows))


def place_batch(batch: dict, config: Config, place, rows: np.ndarray) -> dict:
  """Returns this process's rows as parts of global arrays."""
  if jax.process_count() == 1:
    return jax.device_put(batch, place)
  size = config.train.global_batch_size

  def put(local):
    pick = lambda index: local[
      np.searchsorted(rows, np.arange(*index[0].indices(size)))
    ][:, index[1]]
    shape = (size, *local.shape[1:])
    return jax.make_array_from_callback(shape, place, pick)

  return jax.tree.map(put, batch)


def device_peak(mesh) -> float:
  """Returns the peak FLOP/s of all devices of the mesh together."""
  device = mesh.devices.flat[0]
  if device.platform == "cpu":
    return metrics.measure_cpu_peak()
  known = flops.PEAK_TFLOPS.get(device.device_kind)
  return (known * 1e12 if known else float("inf")) * mesh.size
