"""What is computed: `build_model` makes a model of its config.

The rest of the project depends on this door alone: abstract parameters with
their declarations, and pure functions of parameters and tokens. Linen stays
inside this room.
"""

import dataclasses

import jax
import jax.numpy as jnp

from gpt_jax.config import ModelConfig
from gpt_jax.models import attend, decoder, transformer
from gpt_jax.models.layers import Declared


@dataclasses.dataclass(frozen=True)
class Model:
  """A model as functions. Parameters are plain trees, stacked over layers.

  Attributes:
    config: its section, vocab_size filled in.
    rules: word of sharding.RULES.
    platform: cpu, gpu or tpu, what attention's kernel is chosen for.
  """

  config: ModelConfig
  rules: str
  platform: str

  def abstract_params(self):
    """Returns (tree of ShapeDtypeStruct, the same tree of ParamSpec)."""
    boxed = decoder.abstract_decoder(self.config)
    is_box = lambda x: isinstance(x, Declared)
    shapes = jax.tree.map(lambda b: b.value, boxed, is_leaf=is_box)
    specs = jax.tree.map(lambda b: b.spec, boxed, is_leaf=is_box)
    return shapes, specs

  def apply(self, params, tokens_BT, positions_BT=None, segments_BT=None, **kw):
    """Returns logits_BTV float32; `kw` are Decoder's other arguments."""
    c = self.config
    if not c.scan_layers:
      params = transformer.unstack_layers(params, c.num_layers)
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

    Layer by layer, and matrices in the type that they are multiplied in, as
    reading them is what a token takes. Not so on a CPU, where a product of one
    row in bfloat16 is slower than reading twice the bytes.
    """
    c = self.config
    cast = (
      {"hidden", "residual", "unembed"} if self.platform != "cpu" else set()
    )
    if cast and c.position != "learned":  # those are summed as they are kept
      cast.add("embed")
    params = jax.tree.map(
      lambda p, spec: p.astype(c.compute_dtype) if spec.role in cast else p,
      params,
      self.abstract_params()[1],
    )
    return transformer.unstack_layers(params, c.num_layers)

  def init_cache(self, batch_size: int, num_slots: int):
    """Returns an empty cache for `num_slots` tokens in each row."""
    return decoder.init_cache(self.config, batch_size, num_slots)

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


def build_model(
  config: ModelConfig, rules: str = "standard", platform: str = "cpu"
) -> Model:
  """Returns the model of a config whose vocab_size is known.

  Args:
    rules: word of sharding.RULES.
    platform: cpu, gpu or tpu, of the devices that it will run on.

  Raises:
    InputError: model.attention names a kernel of another platform.
  """
  attend.check(config, platform)
  return Model(config, rules, platform)
