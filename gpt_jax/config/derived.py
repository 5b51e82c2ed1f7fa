"""What follows from the config: widths, and the batch of each step."""

import dataclasses

from gpt_jax.config.options import OBJECTIVES, BatchRamp, TokenizerSpec
from gpt_jax.config.schema import Config, DataConfig, ModelConfig, TrainConfig


def head_dim(model: ModelConfig) -> int:
  """Returns H, the width of a head."""
  return model.head_dim or model.model_dim // model.num_heads


def num_kv_heads(model: ModelConfig) -> int:
  """Returns K, the number of key and value heads."""
  return model.num_kv_heads or model.num_heads


def vocab_size(model: ModelConfig) -> int:
  """Returns V, which the tokenizer must have set."""
  assert model.vocab_size is not None, "no tokenizer has given vocab_size"
  return model.vocab_size


def is_gated(model: ModelConfig) -> bool:
  """Returns whether the MLP has a gate, a third matrix."""
  return model.mlp in ("swiglu", "geglu")


def padded_vocab_size(model: ModelConfig) -> int:
  """Returns the rows of the embedding: vocab_size rounded up to a multiple."""
  return -(-vocab_size(model) // model.vocab_multiple) * model.vocab_multiple


def layer_kinds(model: ModelConfig) -> tuple[str, ...]:
  """Returns the kind of each layer, global or local.

  A local layer sees model.sliding_window slots. With model.layer_pattern
  "uniform" all layers are local if there is a window, else global.
  """
  parts, depth = model.layer_pattern.parts, model.num_layers
  if not parts:
    parts = ((1, "global" if model.sliding_window is None else "local"),)
  kinds = [kind for count, kind in parts for _ in range(count)]
  return tuple(kinds[layer % len(kinds)] for layer in range(depth))


def layer_period(model: ModelConfig) -> int:
  """Returns the number of layers after which the kinds repeat."""
  kinds = layer_kinds(model)
  return next(
    n
    for n in range(1, len(kinds) + 1)
    if all(kinds[i] == kinds[i % n] for i in range(len(kinds)))
  )


def has_prefixes(data: DataConfig) -> bool:
  """Returns whether the objective gives each sequence a prefix."""
  return "slots" in OBJECTIVES[data.objective].fields


def tokenizer_spec(spec: str) -> tuple[str, str]:
  """Returns (kind, argument) of data.tokenizer, such as ("bpe", "4096").

  Raises:
    InputError: the kind is unknown, or its size or path is missing or wrong.
  """
  parsed = spec if isinstance(spec, TokenizerSpec) else TokenizerSpec(spec)
  return parsed.kind, parsed.argument


def batch_stages(train: TrainConfig) -> list[tuple[int, int]]:
  """Returns [(first step, batch size)] of each stage of train.batch_ramp."""
  stages, step = [], 0
  for divisor, steps in train.batch_ramp.parts:
    stages.append((step, train.global_batch_size // divisor))
    step += steps
  return [*stages, (step, train.global_batch_size)]


def count_sequences(train: TrainConfig, step: int) -> int:
  """Returns the number of sequences in the first `step` steps."""
  stages = batch_stages(train)
  ends = [first for first, _ in stages[1:]] + [step]
  return sum(
    size * max(0, min(step, end) - first)
    for (first, size), end in zip(stages, ends, strict=True)
  )


def at_step(config: Config, step: int) -> Config:
  """Returns the config at a step: without a ramp, with that batch size.

  Keeps a microbatch no larger than at the full batch size.
  """
  t = config.train
  size = [size for first, size in batch_stages(t) if first <= step][-1]
  parts = -(-t.num_microbatches * size // t.global_batch_size)
  parts = next(n for n in range(parts, size + 1) if size % n == 0)
  t = dataclasses.replace(
    t,
    global_batch_size=size,
    num_microbatches=parts,
    batch_ramp=BatchRamp("none"),
  )
  return dataclasses.replace(config, train=t)
