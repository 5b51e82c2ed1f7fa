"""Values derived from the config: widths, layers, and each step's batch."""

import dataclasses

from gpt_jax.config.options import (
  CLASS_HEADS,
  FAMILIES,
  LAYER_KINDS,
  MLP_KINDS,
  OBJECTIVES,
  SOURCE_FIELDS,
  BatchRamp,
  TokenizerSpec,
)
from gpt_jax.config.schema import Config, ModelConfig, TrainConfig


def head_dim(model: ModelConfig) -> int:
  """Returns H, the width of a head."""
  return model.head_dim or model.model_dim // model.num_heads


# For model.position=relative, as in T5: the number of buckets of distances, and
# the distance beyond which all share one bucket.
RELATIVE_BUCKETS, RELATIVE_REACH = 32, 128


def stack_config(model: ModelConfig, name: str) -> ModelConfig:
  """Returns the config of a stack of layers, "blocks" or "encoder".

  The encoder of an encoder-decoder is built like a model of family encoder.
  """
  if name != "encoder":
    return model
  return dataclasses.replace(
    model,
    family="encoder",
    num_layers=model.num_encoder_layers or model.num_layers,
    num_encoder_layers=None,
  )


def stack_configs(model: ModelConfig) -> list[ModelConfig]:
  """Returns the config of each stack of layers."""
  names = ("encoder", "blocks") if has_source(model) else ("blocks",)
  return [stack_config(model, name) for name in names]


def num_sublayers(model: ModelConfig) -> int:
  """Returns the number of sublayers in a block: 3 with cross-attention."""
  return 3 if has_source(model) else 2


def has_score_bias(model: ModelConfig) -> bool:
  """Returns whether positions are distance biases on attention scores."""
  return model.position in ("alibi", "relative")


def has_embed_norm(model: ModelConfig) -> bool:
  """Returns whether the embeddings have a norm of their own."""
  return model.embed_norm and model.norm_placement in ("post", "output")


def value_dim(model: ModelConfig) -> int:
  """Returns the width of a head's values; H unless attention is latent."""
  return model.v_head_dim or head_dim(model)


def is_sinusoidal(model: ModelConfig) -> bool:
  """Returns whether positions are sines that are added to the embeddings."""
  return model.position in ("sinusoidal", "sinusoidal_halves")


def rope_dim(model: ModelConfig) -> int:
  """Returns the number of a head's dims that rope rotates."""
  return model.qk_rope_head_dim or int(head_dim(model) * model.rope_frac)


def cached_dims(model: ModelConfig) -> tuple[tuple[int, int], ...]:
  """Returns (heads, width) of each array that a layer caches for a token.

  The arrays are keys and values. With latent attention it is one array, which
  all heads share: the compressed vector, then the rotated part of the key.
  """
  if model.kv_lora_rank is not None:
    return ((1, model.kv_lora_rank + rope_dim(model)),)
  return ((num_kv_heads(model), head_dim(model)),) * 2


def num_kv_heads(model: ModelConfig) -> int:
  """Returns K, the number of key and value heads."""
  return model.num_kv_heads or model.num_heads


def vocab_size(model: ModelConfig) -> int:
  """Returns V, which the tokenizer must have set."""
  assert model.vocab_size is not None, "no tokenizer has given vocab_size"
  return model.vocab_size


def has_classes(model: ModelConfig) -> bool:
  """Returns whether the model scores classes, not the tokens of its V."""
  return model.head in CLASS_HEADS


def num_classes(model: ModelConfig) -> int:
  """Returns the number of classes, which the data must have set."""
  assert model.num_classes is not None, "no data has given num_classes"
  return model.num_classes


def num_scored(model: ModelConfig) -> int:
  """Returns the number of scores per target: one for each class or token."""
  return num_classes(model) if has_classes(model) else vocab_size(model)


def is_gated(model: ModelConfig) -> bool:
  """Returns whether the MLP has a gate, a third matrix."""
  return model.mlp in ("swiglu", "geglu", "geglu_tanh")


def padded_vocab_size(model: ModelConfig) -> int:
  """Returns the number of rows of the embedding: vocab_size, rounded up."""
  return -(-vocab_size(model) // model.vocab_multiple) * model.vocab_multiple


def expert_mlp_dim(model: ModelConfig) -> int:
  """Returns the width of an expert."""
  return model.expert_mlp_dim or model.mlp_dim


def layer_kinds(model: ModelConfig) -> tuple[str, ...]:
  """Returns the kind of each layer's attention, one of LAYER_KINDS.

  A local layer sees model.sliding_window slots. Where model.layer_pattern names
  no attention, all layers are local if there is a window, else global.
  """
  other = "global" if model.sliding_window is None else "local"
  return _words(model, LAYER_KINDS, other)


def mlp_kinds(model: ModelConfig) -> tuple[str, ...]:
  """Returns the kind of each layer's MLP, one of MLP_KINDS."""
  other = "dense" if model.num_experts is None else "moe"
  return _words(model, MLP_KINDS, other)


def _words(model: ModelConfig, words: tuple[str, ...], other: str):
  """Returns the one of `words` in each layer's kind; `other` if none is."""
  kinds = [k for n, kind in model.layer_pattern.parts for k in n * [kind]]
  pick = lambda kind: next((w for w in kind.split("/") if w in words), other)
  each = [pick(kind) for kind in kinds or [""]]
  return tuple(each[layer % len(each)] for layer in range(model.num_layers))


def layer_stacks(model: ModelConfig, name: str = "blocks") -> tuple[str, ...]:
  """Returns, for each layer, the stack that holds its parameters.

  If all layers have the same parameters, there is one stack, `name`. Otherwise
  there is one for each kind of MLP, such as blocks_dense and blocks_moe. A
  layer's index in its stack is the number of earlier layers in it.
  """
  differing = [kinds for kinds in (mlp_kinds(model),) if len(set(kinds)) > 1]
  if not differing:
    return (name,) * model.num_layers
  return tuple("_".join((name, *each)) for each in zip(*differing, strict=True))


def layer_cycle(model: ModelConfig) -> tuple[int, int]:
  """Returns (start, period): from layer `start` on, the kinds repeat.

  It is the pair for which a scan over periods traces the fewest layers: those
  before `start`, one period, and those left over at the end.
  """
  kinds = list(zip(layer_kinds(model), layer_stacks(model), strict=True))
  depth, cycles = len(kinds), []
  if len(set(kinds)) == 1:
    return 0, 1
  for start in range(depth):
    rest = kinds[start:]
    period = next(
      n
      for n in range(1, len(rest) + 1)
      if all(rest[i] == rest[i - n] for i in range(n, len(rest)))
    )
    num_traced = start + period + len(rest) % period
    cycles.append((num_traced, start, period))
  return min(cycles)[1:]


def has_source(model: ModelConfig) -> bool:
  """Returns whether the model reads a source beside the tokens it predicts."""
  return FAMILIES[model.family].has_source


def batch_fields(config: Config) -> tuple[str, ...]:
  """Returns the int32 fields of a batch besides tokens and targets."""
  is_packed = config.data.packing == "documents"
  found = ("segments", "positions") if is_packed else ()
  if not has_source(config.model):
    return (*found, *OBJECTIVES[config.data.objective].fields)
  return (*SOURCE_FIELDS, *(("positions", "source_positions") * is_packed))


def is_packed(config: Config) -> bool:
  """Returns whether a row holds documents that do not see each other."""
  how = OBJECTIVES[config.data.objective]
  return config.data.packing == "documents" or how.is_preference


def has_prefixes(config: Config) -> bool:
  """Returns whether the objective gives each sequence a prefix."""
  return "slots" in batch_fields(config)


def tokenizer_spec(spec: str) -> tuple[str, str]:
  """Returns (kind, argument) of data.tokenizer, such as ("bpe", "4096").

  Raises:
    InputError: the kind is unknown, or its size or path is missing or wrong.
  """
  parsed = spec if isinstance(spec, TokenizerSpec) else TokenizerSpec(spec)
  return parsed.kind, parsed.argument


def sample_steps(config: Config) -> int:
  """Returns N to write samples every N steps; 0 to write none.

  Encoders and classifiers cannot continue text, so for them it is always 0.
  """
  model = config.model
  can_continue = FAMILIES[model.family].is_causal and not has_classes(model)
  return config.sample.every_steps if can_continue else 0


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
  """Returns the config at a step: that stage's batch size, and no ramp.

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
