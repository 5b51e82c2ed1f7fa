"""What is computed: `build_model` makes a model of its config.

The rest of the project depends on this door alone: abstract parameters with
their declarations, and pure functions of parameters and tokens. Linen stays
inside this room.
"""

import dataclasses

import jax
import jax.numpy as jnp

from gpt_jax import sharding
from gpt_jax.config import InputError, ModelConfig
from gpt_jax.models import attend, attention, decoder, layers, transformer
from gpt_jax.ops import quantized

# Roles of matrices; what is a table too stays in 8 bits, where an error would
# be one of every token that is rare.
TABLES = ("embed", "unembed")
MATRICES = ("hidden", "residual", *TABLES)


@dataclasses.dataclass(frozen=True)
class Model:
  """A model as functions. Parameters are plain trees, stacked over layers.

  Attributes:
    config: its section, vocab_size filled in.
    rules: word of sharding.RULES.
    platform: cpu, gpu or tpu, what attention's kernel is chosen for.
    weights: word of config.WEIGHTS, of what unstack returns.
  """

  config: ModelConfig
  rules: str
  platform: str
  weights: str = "full"

  def abstract_params(self):
    """Returns (tree of ShapeDtypeStruct, the same tree of ParamSpec)."""
    boxed = decoder.abstract_decoder(self.config)
    is_box = lambda x: isinstance(x, layers.Declared)
    shapes = jax.tree.map(lambda b: b.value, boxed, is_leaf=is_box)
    specs = jax.tree.map(lambda b: b.spec, boxed, is_leaf=is_box)
    return shapes, specs

  def take_apart(self, params):
    """Returns the parameters as apply makes them first; it takes both forms.

    Where layers are not scanned each has a tree of its own. Taken apart once,
    they serve several calls, and so do their gradients.
    """
    c = self.config
    if c.scan_layers or "blocks" not in params:
      return params
    return transformer.unstack_layers(params, c.num_layers)

  def put_together(self, apart):
    """Returns what take_apart was given."""
    c = self.config
    return (
      apart if c.scan_layers else transformer.stack_layers(apart, c.num_layers)
    )

  def apply(self, params, tokens_BT, positions_BT=None, segments_BT=None, **kw):
    """Returns logits_BTV float32; `kw` are Decoder's other arguments."""
    c = self.config
    params = self.take_apart(params)
    model = decoder.Decoder(
      c, self.rules, is_stacked=c.scan_layers, platform=self.platform
    )
    return model.apply(
      {"params": params}, tokens_BT, positions_BT, segments_BT, **kw
    )

  def apply_tapped(self, params, tokens_BT, *args, **kw):
    """Returns (what apply returns, taps); apply itself keeps none of them.

    taps: embed and residual (before the last norm) of shape (B, T, D), attn
    and mlp (what the sublayers put out, as they do) of (L, B, T, D), and
    score_max (L,), the largest attention score.
    """
    c = self.config
    out, kept = self.apply(params, tokens_BT, *args, mutable=["taps"], **kw)
    kept = kept["taps"]
    if c.scan_layers:
      blocks = kept["blocks"]
    else:
      each = [kept[f"blocks_{layer}"] for layer in range(c.num_layers)]
      blocks = jax.tree.map(lambda *x: jnp.stack(x), *each)
    named = {"embed": kept["embed_out"], "residual": kept["residual_out"]}
    named |= {"attn": blocks["attn_out"], "mlp": blocks["mlp_out"]}
    named["score_max"] = blocks["attn"]["score_max"]
    return out, {name: value for name, (value,) in named.items()}

  def can_reorder(self, length: int, is_dropping: bool) -> bool:
    """Returns whether rows are worth reordering where they are split.

    Dense attention has nothing to balance, and dropout draws by place.
    """
    word = attend.choose(
      self.config, self.platform, length, is_dropping=is_dropping
    )
    return word != "dense" and not is_dropping

  def cap_logits(self, logits_BTV, ids_V):
    """Returns what becomes of x_BTD times rows `ids_V` of w_VD."""
    return decoder.cap_logits(logits_BTV, ids_V, self.config)

  def unstack(self, params):
    """Returns the parameters in the form that apply_cached reads.

    Layer by layer, and matrices in the type that they are multiplied in, or
    in few bits, as reading them is what a token takes.
    """
    c = self.config
    is_full = self.weights == "full"
    cast = lambda p, spec, is_stacked: p.astype(c.compute_dtype)
    specs = self.abstract_params()[1]
    if sharding.axis_size("tensor") == 1:
      params = _lay_wide(params, lambda ws: layers.lay_together(ws, axis=1))
      specs = _lay_wide(specs, lambda each: each[0])
    ready = _map_matrices(cast if is_full else self._quantize, params, specs)
    if is_full and c.position == "learned":
      # Rows of the table are summed with positions as they are kept.
      table = ready["embed"]["tokens"]
      ready["embed"] = params["embed"]
      if c.tied_embeddings and table.dtype != params["embed"]["tokens"].dtype:
        ready["unembed"] = table
    return transformer.unstack_layers(ready, c.num_layers)

  def round_weights(self, params):
    """Returns the parameters rounded to `weights`, kept as they were."""
    if self.weights == "full":
      return params

    def form(p, spec, is_stacked):
      restore = lambda w: quantized.restore(w, spec.role, p.shape[is_stacked:])
      small = self._quantize(p, spec, is_stacked)
      whole = jax.vmap(restore)(small) if is_stacked else restore(small)
      return whole.astype(p.dtype)

    return _map_matrices(form, params, self.abstract_params()[1])

  def _quantize(self, p, spec, is_stacked: bool):
    num_bits = 8 if spec.role in TABLES else int(self.weights[3:])
    one = lambda w: quantized.quantize(w, spec.role, num_bits)
    return jax.vmap(one)(p) if is_stacked else one(p)

  def init_cache(self, batch_size: int, num_slots: int):
    """Returns an empty cache for `num_slots` tokens in each row."""
    # A CPU makes its products with a cache in float32 whatever it holds.
    is_wide = self.platform == "cpu"
    dtype = "float32" if is_wide else self.config.compute_dtype
    return decoder.init_cache(self.config, batch_size, num_slots, dtype)

  def apply_cached(self, unstacked, tokens_BT, cache, start_B, only_B=None):
    """Returns (logits_BTV, cache) for tokens that follow what is cached.

    Args:
      unstacked: parameters from `unstack`.
      tokens_BT: the next T tokens of every row.
      cache: from init_cache or an earlier call.
      start_B: int32, how many tokens each row has cached.
      only_B: int32, the one token of each row whose logits are wanted.
    """
    model = decoder.Decoder(self.config, self.rules, is_stacked=False)
    return model.apply(
      {"params": unstacked},
      tokens_BT,
      cache=cache,
      start_B=start_B,
      only_B=only_B,
    )


def _map_matrices(form, params, specs):
  def one(path, p, spec):
    is_stacked = path[0].key == "blocks"
    return form(p, spec, is_stacked) if spec.role in MATRICES else p

  return jax.tree_util.tree_map_with_path(one, params, specs)


def _lay_wide(tree, join):
  """Returns a tree of parameters with what q, k and v join into in one."""
  blocks = dict(tree["blocks"])
  attn = dict(blocks["attn"])
  attn[attention.WIDE] = join([attn.pop(name) for name in "qkv"])
  blocks["attn"] = attn
  return {**tree, "blocks": blocks}


def build_model(
  config: ModelConfig,
  rules: str = "standard",
  platform: str = "cpu",
  weights: str = "full",
) -> Model:
  """Returns the model of a config whose vocab_size is known.

  Args:
    rules: word of sharding.RULES.
    platform: cpu, gpu or tpu, of the devices that it will run on.
    weights: word of config.WEIGHTS.

  Raises:
    InputError: model.attention names a kernel of another platform, or experts
      are asked for in few bits.
  """
  attend.check(config, platform)
  if weights != "full" and config.num_experts is not None:
    raise InputError(
      f"weights in {weights} are for models without experts, and "
      f"model.num_experts is {config.num_experts}; leave them full"
    )
  return Model(config, rules, platform, weights)
