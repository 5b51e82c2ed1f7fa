"""A model as functions: what training, decoding and studies call.

A family is a Linen module (models/__init__.py) with these class attributes:
  STACKS        names of its stacks of layers: "blocks" and, if it reads a
                source, "encoder"; a stack is stored as several if its layers
                have different parameters (config.layer_stacks)
  OBJECTIVES    options of data.objective that it can be trained with
  can_generate  whether it continues a text; then its __call__ takes a cache,
                and it has a static method prepare(params, specs) -> (params,
                specs) in the form that decoding reads
  has_types     whether its __call__ takes types_BT, kinds of tokens
"""

import dataclasses
from typing import Any

import jax

from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import AdapterConfig, ModelConfig
from gpt_jax.machine import processor
from gpt_jax.models import adapters, attend, layers, stack
from gpt_jax.models import cache as cache_lib
from gpt_jax.models.declare import Declared
from gpt_jax.ops import matmul, quantized, visibility
from gpt_jax.ops.factored import Factored

# Roles of matrices. Tables are quantized to 8 bits at least: an error in a row
# affects every occurrence of its token.
TABLES = adapters.TABLES
MATRICES = ("hidden", "residual", *TABLES)
# What a compressed run stores in place of an array.
STORED = quantized.Quantized | Factored


@dataclasses.dataclass(frozen=True)
class Model:
  """A model as functions. Parameters are plain trees, stacked over layers.

  Attributes:
    module: the family's Linen module.
    config: model section of the config, vocab_size filled in.
    rules: key of sharding.RULES.
    platform: cpu, gpu or tpu, which the attention kernel is chosen for.
    weights: option of config.WEIGHTS, the format for decoding.
    adapter: adapter section of the config: only adapters are trained. None
      trains all parameters.
  """

  module: Any
  config: ModelConfig
  rules: str
  platform: str
  weights: str = "full"
  adapter: AdapterConfig | None = None

  @property
  def can_generate(self) -> bool:
    """Whether the model continues a text token by token."""
    return self.module.can_generate and not config_lib.has_classes(self.config)

  @property
  def has_types(self) -> bool:
    """Whether the model tells kinds of tokens apart."""
    return self.module.has_types and self.config.num_token_types is not None

  @property
  def stacks(self) -> tuple[str, ...]:
    """Names of the stacks of layers."""
    return tuple(stack.stack_sizes(self.module, self.config))

  def abstract_params(self):
    """Returns (tree of ShapeDtypeStruct, the same tree of ParamSpec)."""
    boxed = stack.abstract_params(self.module, self.config)
    is_box = lambda x: isinstance(x, Declared)
    shapes = jax.tree.map(lambda b: b.value, boxed, is_leaf=is_box)
    specs = jax.tree.map(lambda b: b.spec, boxed, is_leaf=is_box)
    return shapes, specs

  def abstract_learned(self):
    """Returns (shapes, ParamSpecs) of what is trained: adapters or parameters.

    Raises:
      InputError: adapter.rank does not fit the model.
    """
    shapes, specs = self.abstract_params()
    if self.adapter is None:
      return shapes, specs
    return adapters.abstract_adapters(self.adapter, shapes, specs)

  def abstract_base(self):
    """Returns (shapes, ParamSpecs) of the frozen base that `attach` takes."""
    shapes, specs = self.abstract_params()
    assert self.adapter is not None  # else there is no base
    if self.adapter.base == "full":
      return shapes, specs
    return adapters.abstract_rounded(self.adapter, shapes, specs)

  def round_base(self, params, specs=None):
    """Returns frozen parameters in the format of adapter.base, for `attach`.

    Args:
      specs: tree of ParamSpec of params; None if params is the whole tree.
    """
    assert self.adapter is not None  # else nothing is frozen
    if specs is None:
      specs = self.abstract_params()[1]
    return adapters.round_base(self.adapter, params, specs)

  def merge(self, params):
    """Merges what `attach` returned into one array for each parameter."""
    if self.adapter is None:
      return params
    whole = adapters.restore_base(params, *self.abstract_params())
    return adapters.merge(whole)

  def attach(self, learned, base):
    """Returns the parameters that `apply` reads.

    Args:
      learned: parameters, or adapters.
      base: frozen parameters, from round_base; None without adapters.
    """
    if self.adapter is None:
      return learned
    specs = self.abstract_params()[1]
    return adapters.attach(self.adapter, base, learned, specs)

  def unstack_layers(self, params):
    """Returns the parameters with a tree for each layer, unless scan_layers.

    `apply` takes both forms. Unstacking once before several calls shares the
    work between them, and the work of their gradients.
    """
    if self.config.scan_layers:
      return params
    return stack.unstack_layers(params, self.stacks)

  def stack_layers(self, unstacked):
    """Undoes unstack_layers."""
    if self.config.scan_layers:
      return unstacked
    return stack.stack_layers(unstacked, self.stacks)

  def apply(self, params, tokens_BT, positions_BT=None, segments_BT=None, **kw):
    """Returns logits_BTV float32; `kw` are the module's other arguments.

    Arguments that are None are not passed on, since a family may lack them.
    """
    is_stacked = self.config.scan_layers
    module = self.module(
      self.config, self.rules, is_stacked=is_stacked, platform=self.platform
    )
    params = self.unstack_layers(params)
    kw = {name: value for name, value in kw.items() if value is not None}
    return module.apply(
      {"params": params}, tokens_BT, positions_BT, segments_BT, **kw
    )

  def apply_tapped(self, params, tokens_BT, *args, **kw):
    """Returns (what apply returns, taps): activations that apply does not save.

    taps: embed and residual (before the last norm) of shape (B, T, D), attn
    and mlp (the sublayers' outputs) of (L, B, T, D), and score_max (L,), the
    largest attention score. With an encoder, also encoder_attn, encoder_mlp and
    encoder_score_max; with a pooler, pooled of (B, 1, D).
    """
    out, saved = self.apply(params, tokens_BT, *args, mutable=["taps"], **kw)
    saved = stack.stack_layers(saved["taps"], self.stacks)
    named = {"embed": saved["embed_out"], "residual": saved["residual_out"]}
    for name in self.module.STACKS:
      of = "" if name == "blocks" else f"{name}_"
      layers = stack.merge_stacks(saved, self.config, name)
      named[f"{of}attn"] = layers["attn_out"]
      named[f"{of}mlp"] = layers["mlp_out"]
      named[f"{of}score_max"] = layers["attn"]["score_max"]
    if "pooler" in saved:
      named["pooled"] = saved["pooler"]["pooled"]
    return out, {name: value for name, (value,) in named.items()}

  def can_reorder(self, length: int, is_dropping: bool) -> bool:
    """Returns whether to reorder tokens for balance when axis seq splits rows.

    Dense and bidirectional attention have nothing to balance, and dropout masks
    depend on a token's place.
    """
    word = attend.choose(
      self.config, self.platform, length, is_dropping=is_dropping
    )
    is_causal = visibility.rule_of(self.config).is_causal
    return is_causal and word != "dense" and not is_dropping

  def cap_logits(self, logits_BTV, ids_V):
    """Returns final logits from raw ones, x_BTD times rows `ids_V` of w_VD."""
    return layers.cap_logits(logits_BTV, ids_V, self.config)

  def prepare_for_decoding(self, params):
    """Returns the parameters in the form that apply_cached reads.

    A tree for each layer; matrices are in compute_dtype, int8 or int4, since
    the time per token is spent reading them. Adapters are merged.
    """
    c, params = self.config, self.merge(params)
    is_full = self.weights == "full"
    table = params["embed"]["tokens"]
    prepared, specs = params, self.abstract_params()[1]
    if sharding.axis_size("tensor") == 1:
      prepared, specs = self.module.prepare(params, specs)
    form = self._cast if is_full else self._quantize
    ready = _map_matrices(form, prepared, specs)
    has_sum = c.position == "learned" or config_lib.is_sinusoidal(c)
    if is_full and has_sum:
      # The input table keeps its dtype, in which positions are added to it.
      low = ready["embed"]["tokens"]
      ready["embed"] = params["embed"]
      if c.tied_embeddings and low.dtype != table.dtype:
        ready["unembed"] = low
    return stack.unstack_layers(ready, self.stacks)

  def _cast(self, p, spec, is_stacked: bool):
    if isinstance(p, Factored):
      cast = lambda x: x.astype(self.config.compute_dtype)
      return jax.tree.map(cast, p)
    p = p.astype(self.config.compute_dtype)
    is_projection = spec.role in ("hidden", "residual")
    if not is_projection or {"latent", "experts"} & set(spec.axes):
      return p
    if self.platform != "cpu" or not processor.is_intel():
      return p
    num_in = 1 if spec.role == "hidden" else p.ndim - is_stacked - 1
    one = lambda w: matmul.transpose(w, num_in)
    return jax.vmap(one)(p) if is_stacked else one(p)

  def round_weights(self, params):
    """Returns the parameters quantized to `weights` and restored to arrays."""
    if self.weights == "full":
      return params

    return self.restore_matrices(self.round_matrices(params))

  def round_matrices(self, params):
    """Returns the parameters with a Quantized in place of each matrix."""

    def form(p, spec, is_stacked):
      small = self._quantize(p, spec, is_stacked)
      return small if isinstance(small, quantized.Quantized) else p

    return _map_matrices(form, params, self.abstract_params()[1])

  def restore_matrices(self, params):
    """Returns the parameters with an array for each Quantized and Factored."""
    return adapters.restore_base(params, *self.abstract_params())

  def abstract_rounded(self):
    """Returns (shapes, ParamSpecs) of what round_matrices returns."""
    shapes, specs = self.abstract_params()
    rounded = jax.eval_shape(self.round_matrices, shapes)
    return rounded, jax.tree.map(adapters.specify_rounded, specs, rounded)

  def abstract_factored(self, percent: int):
    """Returns (shapes, ParamSpecs) with a Factored for each layer matrix."""
    return adapters.abstract_factored(percent, *self.abstract_params())

  def _quantize(self, p, spec, is_stacked: bool):
    if isinstance(p, STORED):  # as the run stores it
      return p
    if "latent" in spec.axes:  # decoding multiplies these head by head
      return p.astype(self.config.compute_dtype)
    num_bits = 8 if spec.role in TABLES else int(self.weights[3:])
    one = lambda w: quantized.quantize(w, spec.role, num_bits, self.platform)
    return jax.vmap(one)(p) if is_stacked else one(p)

  def init_cache(self, batch_size: int, num_slots: int):
    """Returns an empty cache for `num_slots` tokens in each row.

    The first dim of every array is the row: beam search gathers along it.
    """
    # A CPU multiplies with a cache in float32, whatever its dtype.
    is_wide = self.platform == "cpu"
    dtype = "float32" if is_wide else self.config.compute_dtype
    return cache_lib.init_cache(self.config, batch_size, num_slots, dtype)

  def apply_cached(
    self, prepared, tokens_BT, cache, start_B, only_B=None, slots_BT=None, **kw
  ):
    """Returns (logits_BTV, cache) for tokens that follow the cached ones.

    Args:
      prepared: parameters from prepare_for_decoding.
      tokens_BT: the next T tokens of every row.
      cache: from init_cache or an earlier call.
      start_B: int32, how many tokens each row has cached.
      only_B: int32, the one token of each row whose logits are wanted.
      slots_BT: as Decoder's, for the prompt of a prefix language model.
      kw: sources_BS and source_segments_BS, which a family that has a source
        reads with the first tokens; filled, as Decoder's.
    """
    module = self.module(self.config, self.rules, is_stacked=False)
    kw["slots_BT"] = slots_BT
    kw = {name: value for name, value in kw.items() if value is not None}
    return module.apply(
      {"params": prepared},
      tokens_BT,
      cache=cache,
      start_B=start_B,
      only_B=only_B,
      **kw,
    )


def _map_matrices(form, params, specs):
  def one(p, spec):
    is_stacked = spec.axes[0] == "layers"
    return form(p, spec, is_stacked) if spec.role in MATRICES else p

  is_leaf = lambda x: isinstance(x, STORED)
  return jax.tree.map(one, params, specs, is_leaf=is_leaf)
