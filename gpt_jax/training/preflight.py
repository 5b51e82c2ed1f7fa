"""What is checked and printed before a run starts."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import encryption, flops, sharding, tree
from gpt_jax.config import Config, InputError, ModelConfig
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.machine import chips, console, processes, runtime
from gpt_jax.runs import metrics, restore, rounded
from gpt_jax.runs import workdir as workdir_lib

# An eps below these does not protect float32 from dividing by almost zero.
TINY_EPS, TINY_NORM_EPS = 1e-20, 1e-12


def check_prompt(
  config: Config, tokenizer: Tokenizer, say: Callable[[str], None]
) -> None:
  """Raises InputError unless sample.prompt fits the model's positions.

  Design choice: for a prompt that the vocabulary cannot encode, and for a model
  that continues no text, `say` gets a warning and the run goes on. The prompt
  and sample.every_steps may come from the config file, and samples are not
  worth refusing a run.
  """
  every, text = config.sample.every_steps, config.sample.prompt
  if not every:
    return
  if not config_lib.sample_steps(config):
    key = "head" if config_lib.has_classes(config.model) else "family"
    say(
      f"no samples will be written: sample.every_steps is {every}, and "
      f"model.{key} is {getattr(config.model, key)}, which continues no text; "
      "set it to 0"
    )
    return
  try:
    size = len(tokenizer.encode(text))
  except InputError as error:
    say(f"no samples will be written: sample.prompt is {text!r}, and {error}")
    return
  if not 0 < size <= config.model.max_len:
    raise InputError(
      f"sample.prompt has {size} tokens; it must have 1 to model.max_len "
      f"{config.model.max_len}"
    )


def check_init(workdir: str, tokenizer: Tokenizer, model: ModelConfig) -> None:
  """Raises InputError unless `workdir` has a checkpoint for this tokenizer.

  Shapes alone do not tell: tables of different vocabularies of one size have
  the same shape.

  Args:
    model: model section of the run that starts. A classifier needs only the
      other run's table of embeddings, not its objective's special tokens.
  """
  if not restore.list_steps(restore.checkpoints_of(workdir)):
    raise InputError(
      f"train.init_from is {workdir!r}, which holds no checkpoint; give the "
      "workdir of a run that has saved one"
    )
  there = workdir_lib.read_tokenizer(workdir)
  if there.fingerprint() != tokenizer.fingerprint():
    raise InputError(
      f"train.init_from is {workdir!r}, which was trained with another "
      f"tokenizer ({there.name}, {there.vocab_size} tokens there; "
      f"{tokenizer.name}, {tokenizer.vocab_size} here); set "
      f"data.tokenizer=hf:{workdir}/tokenizer.json to keep its vocabulary"
    )

  run = workdir_lib.read_config(workdir)
  if run.adapter.rank.parts:
    raise InputError(
      f"train.init_from is {workdir!r}, a run of adapters alone; make it one "
      "model first, by python -m gpt_jax.deploy.merge"
    )
  word = rounded.stored_weights(workdir, workdir_lib.read_record(workdir))
  if word != "full":
    raise InputError(
      f"train.init_from is {workdir!r}, which stores its matrices as {word}; "
      "give the run that it was made of"
    )
  there = run.model
  rows, wanted = (config_lib.padded_vocab_size(m) for m in (model, there))
  if config_lib.has_classes(model) and rows != wanted:
    raise InputError(
      f"train.init_from is {workdir!r}, whose model.vocab_size is "
      f"{there.vocab_size}, and here it is {model.vocab_size}; give "
      f"--config.model.vocab_size={there.vocab_size}"
    )


def check_batch(config: Config, mesh: jax.sharding.Mesh) -> None:
  """Raises InputError unless batches divide over the mesh."""
  table = sharding.RULES[config.mesh.rules]
  where = ""
  if jax.process_count() > 1:
    where = f", on {mesh.size} devices of {jax.process_count()} processes,"
  part = config.train.global_batch_size // config.train.num_microbatches
  shards = int(np.prod([mesh.shape[a] for a in table["batch"]]))
  axes = " x ".join(table["batch"])
  if part % shards:
    raise InputError(
      f"a microbatch has {part} sequences, which mesh {axes} = {shards}"
      f"{where} does not divide; change train.global_batch_size or "
      "train.num_microbatches"
    )
  pieces = int(np.prod([mesh.shape[a] for a in table["length"]]))
  if config.data.seq_len % pieces:
    raise InputError(
      f"data.seq_len is {config.data.seq_len}, which mesh.seq {pieces} does "
      "not divide"
    )
  for length in config_lib.row_lengths(config):
    if length is not None and length % pieces:
      raise InputError(
        f"data.objective {config.data.objective} makes rows of {length} of "
        f"data.seq_len {config.data.seq_len}, which mesh.seq {pieces} does not "
        "divide"
      )


def suggest_finite(config: Config) -> str:
  """Returns what to change where updates are not finite, likeliest first."""
  c = config
  if c.model.norm_eps < TINY_NORM_EPS:
    return (
      f"model.norm_eps=1e-5: it is {c.model.norm_eps:g}, and a row of zeros is "
      "divided by its root"
    )
  if c.optim.optimizer in config_lib.ADAMS and c.optim.eps < TINY_EPS:
    return (
      f"optim.eps=1e-8: it is {c.optim.eps:g}, and moments that small are "
      "divided by it"
    )
  found = [f"an optim.learning_rate below {c.optim.learning_rate:g}"]
  if c.optim.clip_norm is None:
    found.append("optim.clip_norm set")
  if c.optim.weight_decay * c.optim.learning_rate > 1:
    found.append(f"an optim.weight_decay below {c.optim.weight_decay:g}")
  if "bfloat16" in (c.model.compute_dtype, c.model.grad_dtype):
    found.append("model.compute_dtype and model.grad_dtype float32")
  *most, last = found
  return f"{', '.join(most)} or {last}" if most else last


def describe_lost_updates(config: Config) -> str | None:
  """Returns a warning where bfloat16 parameters are too coarse for the rate.

  Half a unit in bfloat16's last place is at least 2^-9 of a number; a smaller
  update is rounded away each time. Optimizers other than sgd move a parameter
  by about the learning rate.
  """
  c, rate = config, config.optim.learning_rate
  # Adapters are float32.
  is_coarse = c.model.param_dtype == "bfloat16" and not c.adapter.rank.parts
  is_coarse &= c.optim.optimizer != "sgd"
  least = c.model.init_std / 2**9
  if not is_coarse or not rate or rate >= least:
    return None
  return (
    f"model.param_dtype is bfloat16, which rounds away updates below 1/512 of "
    f"a parameter: at optim.learning_rate {rate:g} parameters as large as "
    f"model.init_std {c.model.init_std:g} do not move (they do from "
    f"{least:.1g} on); float32 has no such limit"
  )


def check_memory(
  config: Config, mesh: jax.sharding.Mesh, abstract: Any
) -> None:
  """Raises InputError where a step cannot fit, before anything is allocated.

  Counts only what no setting avoids: the state, the gradients, the batch, and
  the input of each block. The compiler's figure is larger.

  Args:
    abstract: state_lib.abstract_state on that mesh.
  """
  there, devices = runtime.memory_bytes(mesh)
  if there is None:
    return
  shard = lambda leaf: int(
    np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.float64)
  )
  sizes = lambda t: [shard(x) * x.dtype.itemsize for x in jax.tree.leaves(t)]
  state, grads = sum(sizes(abstract)), sum(sizes(abstract.params))
  c, table = config, sharding.RULES[config.mesh.rules]
  parts = [mesh.shape[a] for a in (*table["batch"], *table["length"])]
  tokens = c.train.global_batch_size * c.data.seq_len // math.prod(parts)
  inputs = tokens // c.train.num_microbatches * c.model.num_layers
  inputs *= c.model.model_dim * np.dtype(c.model.compute_dtype).itemsize
  needed = (state + grads + inputs + 12 * tokens) * devices
  if needed > there:
    size = console.format_bytes
    where = "this machine" if devices > 1 or _is_cpu(mesh) else "a device"
    raise InputError(
      f"a step needs {size(needed)} or more ({size(state * devices)} of state, "
      f"{size(12 * tokens * devices)} of ids, {size(inputs * devices)} of "
      f"activations) and {where} has {size(there)}; take a smaller "
      "train.global_batch_size, more train.num_microbatches, a smaller model "
      "or a larger mesh"
    )


def _is_cpu(mesh) -> bool:
  return mesh.devices.flat[0].platform == "cpu"


def describe(
  config: Config, mesh: jax.sharding.Mesh, abstract: Any, prepared: Any
) -> list[tuple[str, str]]:
  """Returns the rows of the table that is printed when a run starts."""
  c = config
  state_bytes = tree.count_bytes(abstract)
  local = sum(
    int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64))
    * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(abstract)
  )
  sequences = config_lib.count_sequences(c.train, c.train.num_steps)
  tokens = sequences * c.data.seq_len
  ramp = "up to " if c.train.batch_ramp != "none" else ""
  per_token = flops.train_flops_of(c)
  table = sharding.RULES[c.mesh.rules]
  splits = [mesh.shape[a] for a in (*table["batch"], *table["length"])]
  micro = c.train.global_batch_size // c.train.num_microbatches
  passing = flops.estimate_temporary_bytes(
    c.model, micro * c.data.seq_len // int(np.prod(splits))
  )
  train_ids = sum(t.num_ids for _, t in prepared.train)
  texts, epochs = f"{train_ids:,} tokens", tokens / train_ids
  rows = c.data.packing
  if prepared.labels is not None:
    num_texts = sum(t.num_documents for _, t in prepared.train)
    texts, epochs = f"{num_texts:,} texts", sequences / num_texts
    rows = "rows"
    if prepared.labels.classes:
      texts += f" of {len(prepared.labels.classes)} classes"
  size = console.format_bytes
  return [
    *_describe_parameters(c, abstract),
    (
      "state",
      f"{size(state_bytes)} with moments; {size(local)} on each device",
    ),
    (
      "data",
      f"{texts} to train on, vocabulary {c.model.vocab_size:,}, "
      f"{rows} of {c.data.seq_len}",
    ),
    (
      "run",
      f"{c.train.num_steps:,} steps x {ramp}{c.train.global_batch_size} "
      "sequences ="
      f" {tokens:,} tokens ({epochs:.2f} epochs)",
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


def _describe_parameters(c: Config, abstract: Any) -> list[tuple[str, str]]:
  count, active = sum(flops.count_parameters(c.model).values()), ""
  if c.model.num_experts is not None:
    num_active = sum(flops.count_active_parameters(c.model).values())
    active = f", {num_active:,} for each token"
  sized = lambda t: console.format_bytes(tree.count_bytes(t))
  is_adapted = abstract.base is not None
  params = abstract.base if is_adapted else abstract.params
  kind = c.adapter.base if c.adapter.base != "full" else c.model.param_dtype
  rows, padding = config_lib.padded_vocab_size(c.model), ""
  if rows > config_lib.vocab_size(c.model):  # in the bytes, not in the count
    padding = f", vocabulary padded to {rows:,}"
  row = f"{count:,} ({sized(params)} {kind}{padding}){active}"
  if not is_adapted:
    return [("parameters", row)]
  count = tree.count_elements(abstract.params)
  learned = f"{count:,} ({sized(abstract.params)} float32), {c.adapter.rank}"
  return [("parameters", f"{row}, frozen"), ("adapters", learned)]


def check_processes(config: Config) -> None:
  """Raises InputError if answers are sampled by several processes."""
  word, count = config.data.objective, processes.count()
  if config_lib.OBJECTIVES[word].is_sampled and count > 1:
    raise InputError(
      f"data.objective is {word}, of which one process samples, and there are "
      f"{count}; start one"
    )


def device_peak(mesh: jax.sharding.Mesh) -> float | None:
  """Returns the peak FLOP/s of all devices of the mesh, None if unknown."""
  device = mesh.devices.flat[0]
  if device.platform == "cpu":
    return metrics.measure_cpu_peak()
  known = chips.peak_flops(device.device_kind)
  return known * mesh.size if known else None


def read_key(config: Config) -> encryption.Key | None:
  """Returns the key of a run's checkpoints; None if they are not encrypted.

  Raises:
    InputError: it cannot be read, or the run has several processes.
  """
  if config.data.key is None:
    return None
  if jax.process_count() > 1:
    raise InputError(
      f"data.key is set and the run has {jax.process_count()} processes; "
      "encrypted checkpoints are written by one: leave it None, and give a "
      "--workdir on an encrypted disk"
    )
  return encryption.read_key(config.data.key)
