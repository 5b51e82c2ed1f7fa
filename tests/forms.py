"""The forms of models that the battery of families tries."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from gpt_jax import config as config_lib
from gpt_jax.models import build_model

T = 16
SMALL = dict(
  num_layers=2,
  model_dim=32,
  num_heads=4,
  mlp_dim=48,
  max_len=T,
  vocab_size=61,
  vocab_multiple=8,
)
FORMS = {
  "gpt2": dict(bias=True),
  "llama": dict(
    num_layers=3,
    norm="rmsnorm",
    position="rope",
    mlp="swiglu",
    num_kv_heads=2,
    tied_embeddings=False,
  ),
  "post_norm": dict(norm_placement="post", bias=True, mlp="gelu"),
  "sandwich": dict(
    num_layers=3,
    norm="rmsnorm",
    norm_placement="sandwich",
    position="rope",
    mlp="geglu",
    qk_norm=True,
    num_kv_heads=1,
    layer_pattern="2*local+global",
    sliding_window=4,
  ),
  "alibi": dict(position="alibi", num_heads=6, head_dim=8, num_kv_heads=3),
  "no_positions": dict(position="none", mlp="relu_squared"),
  "qk_norm": dict(qk_norm=True, position="rope", norm="rmsnorm"),
  "qk_norm_heads": dict(
    qk_norm=True,
    qk_norm_over="heads",
    position="rope",
    norm="rmsnorm",
    norm_placement="output",
    num_kv_heads=2,
  ),
  "output_norm": dict(norm_placement="output", embed_norm=True, bias=True),
  "neox": dict(
    parallel_residual=True,
    bias=True,
    mlp="gelu",
    position="rope",
    rope_frac=0.25,
    tied_embeddings=False,
  ),
  "qkv_bias": dict(qkv_bias=True, position="rope", num_kv_heads=2),
  "softcaps": dict(attn_softcap=5.0, logit_softcap=3.0),
  "window": dict(sliding_window=4, position="rope", num_kv_heads=1),
  "rope_linear": dict(position="rope", rope_scaling="linear:2"),
  "rope_llama3": dict(position="rope", rope_scaling="llama3:8:16"),
  "rope_long": dict(position="rope", rope_scaling="longrope:1.1:1:1.5:2:4"),
  "rope_yarn": dict(position="rope", rope_scaling="yarn:4:8:1.1"),
  "blocks": dict(attention="blocks", position="rope", num_kv_heads=2),
  "blocks_window": dict(
    attention="blocks", sliding_window=4, attn_softcap=5.0, num_kv_heads=1
  ),
  # Two periods and a layer that is left over.
  "local_global": dict(
    num_layers=5,
    layer_pattern="local+global",
    sliding_window=4,
    position="rope",
    local_rope_theta=100.0,
    num_kv_heads=2,
  ),
  "local_global_blocks": dict(
    num_layers=4,
    layer_pattern="2*local+global",
    sliding_window=5,
    attention="blocks",
    num_experts=3,
  ),
  "bert": dict(
    family="encoder",
    norm_placement="post",
    embed_norm=True,
    num_token_types=2,
    mlp="gelu",
    bias=True,
    head="transform",
  ),
  "modernbert": dict(
    family="encoder",
    num_layers=4,
    layer_pattern="global+2*local",
    sliding_window=3,
    position="rope",
    local_rope_theta=100.0,
    mlp="geglu",
    embed_norm=True,
    head="transform",
  ),
  "encoder_blocks": dict(
    family="encoder", attention="blocks", num_kv_heads=2, position="rope"
  ),
  "relative": dict(position="relative", num_kv_heads=2),
  "encoder_relative": dict(family="encoder", position="relative"),
  "sines": dict(position="sinusoidal", scaled_embeddings=True, attn_scale=0.5),
  "attention": dict(
    family="encoder_decoder",
    num_layers=2,
    num_encoder_layers=3,
    norm_placement="post",
    position="sinusoidal",
    scaled_embeddings=True,
    mlp="relu",
    bias=True,
  ),
  "t5": dict(
    family="encoder_decoder",
    norm="rmsnorm",
    position="relative",
    mlp="geglu_tanh",
    attn_scale=1.0,
    tied_embeddings=False,
  ),
  "t5_tied": dict(
    family="encoder_decoder",
    norm="rmsnorm",
    position="relative",
    mlp="relu",
    attn_scale=1.0,
    scaled_readout=True,
  ),
  "marian": dict(
    family="encoder_decoder",
    num_encoder_layers=1,
    norm_placement="post",
    position="sinusoidal_halves",
    scaled_embeddings=True,
    mlp="silu",
    bias=True,
    head="biased",
  ),
  "bart": dict(
    family="encoder_decoder",
    num_encoder_layers=1,
    norm_placement="post",
    embed_norm=True,
    source_embed="own",
    mlp="gelu",
    bias=True,
  ),
  # Mechanisms of the other families, in both stacks.
  "encoder_decoder_blocks": dict(
    family="encoder_decoder",
    num_layers=4,
    num_encoder_layers=2,
    attention="blocks",
    position="rope",
    num_kv_heads=2,
    qk_norm=True,
    qkv_bias=True,
    attn_softcap=5.0,
    layer_pattern="local+global",
    sliding_window=4,
  ),
  "latent": dict(
    position="rope",
    head_dim=8,
    kv_lora_rank=8,
    qk_rope_head_dim=4,
    v_head_dim=4,
  ),
  "latent_queries": dict(
    position="rope",
    head_dim=12,
    kv_lora_rank=20,
    q_lora_rank=24,
    qk_rope_head_dim=4,
    v_head_dim=10,
    attention="blocks",
    bias=True,
  ),
  "latent_window": dict(
    num_layers=3,
    position="rope",
    kv_lora_rank=16,
    qk_rope_head_dim=4,
    sliding_window=4,
    layer_pattern="2*local+global",
  ),
  "bfloat16": dict(compute_dtype="bfloat16", bias=True),
  "moe": dict(
    norm="rmsnorm",
    position="rope",
    mlp="swiglu",
    tied_embeddings=False,
    num_experts=4,
  ),
  "moe_alone": dict(num_experts=3, experts_per_token=1, bias=True),
  "moe_post_norm": dict(num_experts=6, norm_placement="post"),
  # A period of several kinds with different parameters, and what is left over.
  "moe_second": dict(
    num_layers=6,
    layer_pattern="dense+local/moe+2*global/dense",
    sliding_window=5,
    num_experts=4,
    expert_mlp_dim=12,
    num_shared_experts=2,
    mlp="swiglu",
  ),
  # Both stacks have layers before the scan, which is over the last two.
  "moe_first_dense": dict(
    num_layers=5,
    layer_pattern="dense+moe+dense+2*moe",
    num_experts=4,
    expert_mlp_dim=12,
    bias=True,
  ),
  "moe_sigmoid": dict(
    num_experts=4,
    num_shared_experts=1,
    router_score="sigmoid",
    router_bias_rate=0.01,
    router_z_weight=0.01,
  ),
  "moe_scaled": dict(
    num_experts=4, router_normalized=False, router_scale=2.5, mlp="swiglu"
  ),
  # With room for all, as cached tokens have.
  "moe_groups": dict(
    num_experts=6,
    router_groups=3,
    router_groups_per_token=1,
    router_normalized=False,
    mlp="swiglu",
  ),
  "moe_capacity": dict(
    num_experts=4, expert_capacity_factor=4.0, mlp="swiglu", position="rope"
  ),
  "mup": dict(parametrization="mup", base_dim=8, tied_embeddings=False),
  "completep": dict(
    parametrization="completep",
    base_dim=16,
    base_layers=2,
    base_head_dim=4,
    bias=True,
  ),
}

# Forms with a head of classes.
CLASS_FORMS = {
  "bert_first": FORMS["bert"] | dict(head="first", num_classes=3),
  "bert_pooled": FORMS["bert"] | dict(head="first", num_classes=3, pooler=True),
  "modernbert_mean": FORMS["modernbert"] | dict(head="mean", num_classes=5),
  "encoder_blocks_each": FORMS["encoder_blocks"]
  | dict(head="each", num_classes=4),
  "encoder_last": FORMS["encoder_blocks"]
  | dict(attention="dense", head="last", num_classes=2),
  "gpt2_last": FORMS["gpt2"] | dict(head="last", num_classes=3),
  "llama_mean": FORMS["llama"] | dict(head="mean", num_classes=1),
  "window_each": FORMS["window"] | dict(head="each", num_classes=3),
  "moe_last": FORMS["moe"] | dict(head="last", num_classes=2),
  "latent_last": FORMS["latent"] | dict(head="last", num_classes=2),
  "t5_last": FORMS["t5"] | dict(head="last", num_classes=3),
  "attention_mean": FORMS["attention"] | dict(head="mean", num_classes=2),
}

# Families whose tokens see later ones; these continue no text.
BOTH_WAYS = ("encoder",)
CAUSAL = [f for f in FORMS if FORMS[f].get("family") not in BOTH_WAYS]


def model_config(**changes) -> config_lib.ModelConfig:
  config = config_lib.freeze(base.get_config()).model
  return dataclasses.replace(config, **{**SMALL, **changes})


def draw_model(seed: int, spread: float = 0.3, **changes):
  """Returns (a model of changes, parameters of that standard deviation)."""
  small = dict(num_layers=2, model_dim=32, num_heads=4, mlp_dim=64)
  config = config_lib.freeze(base.get_config()).model
  model = build_model(dataclasses.replace(config, **small | changes))
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda leaf: jnp.asarray(
      rng.normal(0, spread, leaf.shape).astype(leaf.dtype)
    ),
    model.abstract_params()[0],
  )
  return model, params


@functools.cache
def make(form: str):
  model = build_model(model_config(**(FORMS | CLASS_FORMS)[form]))

  shapes, specs = model.abstract_params()
  rng = np.random.default_rng(0)

  # Norms and biases away from one and zero, so that they are tested too.
  def fill(leaf, spec):
    noise = rng.normal(0, 0.05, leaf.shape) + (spec.role == "norm")
    return jnp.asarray(noise.astype(leaf.dtype))

  return model, jax.tree.map(fill, shapes, specs)


def tokens_of(seed: int = 0, rows: int = 2, length: int = T):
  ids = np.random.default_rng(seed).integers(0, 61, (rows, length))
  return ids.astype(np.int32)  # not traced where first made inside a jit


# Tokens of a source, and of the first of two that share a row.
S, S_FIRST = 12, 5


def source_of(model, rows: int = 2, documents: str = "whole") -> dict:
  """Returns the source that a model reads beside its tokens, as arguments.

  Its ids are 20, 21, ...: other than those of the tokens 0 to T - 1.

  Args:
    documents: "whole"; "packed", two documents; or "second", that one alone.
  """
  if not config_lib.has_source(model.config):
    return {}
  ids = np.arange(20, 20 + rows * S, dtype=np.int32).reshape(rows, S)
  first, second = np.arange(S_FIRST), np.arange(S - S_FIRST)
  tile = lambda x: np.tile(x.astype(np.int32), (rows, 1))
  return {
    "whole": {"sources_BS": ids},
    "second": {"sources_BS": ids[:, S_FIRST:]},
    "packed": {
      "sources_BS": ids,
      "source_segments_BS": tile(np.append(0 * first, 0 * second + 1)),
      "source_positions_BS": tile(np.append(first, second)),
    },
  }[documents]


def apply(model, params, tokens, *args, **kwargs):
  if "sources_BS" not in kwargs:
    kwargs = source_of(model, len(tokens)) | kwargs
  return _apply(model, params, tokens, *args, **kwargs)


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, *args, **kwargs):
  return model.apply(*args, **kwargs)


@functools.partial(jax.jit, static_argnums=0)
def apply_cached(model, *args, **kwargs):
  return model.apply_cached(*args, **kwargs)


@functools.partial(jax.jit, static_argnums=0)
def prepare_for_decoding(model, params):
  return model.prepare_for_decoding(params)


# Row 0 is tokens 0, 1, 2, ...; logits from UNREAD on are of ids that neither it
# nor a source has, so that a tied table gets no gradient by the output side.
TEXT = np.stack([np.arange(T, dtype=np.int32), tokens_of()[1]])
UNREAD = 32


def mean_loss(logits, tokens):
  picked = jnp.take_along_axis(
    jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1
  )
  return -picked.mean()


@functools.partial(jax.jit, static_argnums=0)
def _gradient(model, params, weight, squared_T, packing):
  """One program for every gradient of a form: tracing is what tests pay for."""

  def score(params):
    logits = model.apply(params, TEXT, **packing)
    squares_T = jnp.square(logits[0, :, UNREAD:61]).sum(-1)
    return weight * mean_loss(logits, TEXT) + squared_T @ squares_T

  return jax.grad(score)(params)


def loss_gradient(model, params) -> dict:
  """Returns the gradient of the mean loss of TEXT, which has a source."""
  return _gradient(
    model, params, np.float32(1), np.zeros(T, np.float32), source_of(model)
  )


def embedded_gradient(model, params, to_slot, packing) -> np.ndarray:
  """d (squared logits of row 0 at to_slot) / d embeddings.

  Args:
    packing: further arguments of `apply`, of one row or of two.
  """
  packing = {
    name: np.broadcast_to(x, (2, *x.shape[1:])) for name, x in packing.items()
  }
  squared_T = np.float32(np.arange(T) == to_slot)
  grads = _gradient(model, params, np.float32(0), squared_T, packing)
  return np.asarray(grads["embed"]["tokens"])


def embedded_influence(model, params, from_slot, to_slot, **packing):
  """How much the token at from_slot moves the logits at to_slot.

  That of a source at slot s is 20 + s.
  """
  documents = "packed" if "segments_BT" in packing else "whole"
  packing |= source_of(model, 1, documents)
  grad = embedded_gradient(model, params, to_slot, packing)
  return float(np.abs(grad[from_slot]).sum())
