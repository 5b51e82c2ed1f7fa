"""Tables of the hub's encoder-decoders: T5, BART and Marian."""

from gpt_jax.config import InputError
from gpt_jax.deploy.hf.rows import Architecture, Key, Row, rows_of


def _attention(layer: str, ours: str, theirs: str, stack: str = "blocks"):
  """Returns the rows of the four matrices of a T5 attention."""
  names = {f"{ours}__{x}": f"{theirs}.{x}.weight" for x in "qkvo"}
  return rows_of(layer, stack, **names)


T5_ENCODER, T5_DECODER = "encoder.block.{layer}", "decoder.block.{layer}"
BUCKETS = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
T5 = Architecture(
  name="T5ForConditionalGeneration",
  model_type="t5",
  keys=(
    Key("d_model", "model_dim"),
    Key("d_ff", "mlp_dim"),
    Key("d_kv", "head_dim"),
    Key("num_layers", "num_encoder_layers"),
    Key("num_decoder_layers", "num_layers", alias="num_layers"),
    Key("num_heads", "num_heads"),
    Key("n_positions", "max_len", 512),
    Key("vocab_size", "vocab_size"),
    Key("layer_norm_epsilon", "norm_eps", 1e-6),
    # Before transformers 5, tie_word_embeddings was the switch of both; now
    # all models that it writes are tied.
    Key("scale_decoder_outputs", "scaled_readout", True, "tie_word_embeddings"),
    Key(
      "scale_decoder_outputs", "tied_embeddings", True, "tie_word_embeddings"
    ),
  ),
  fixed=dict(
    family="encoder_decoder",
    norm="rmsnorm",
    position="relative",
    attn_scale=1.0,
    mlp="relu",
  ),
  wanted={
    "feed_forward_proj": ("relu",),
    # These keys, if they are there, take precedence over feed_forward_proj.
    "dense_act_fn": ("relu",),
    "is_gated_act": (False,),
    "is_encoder_decoder": (True,),
    "relative_attention_num_buckets": (32,),
    "relative_attention_max_distance": (128,),
  },
  rows=(
    Row("shared.weight", ("embed/tokens",), "same"),
    Row("encoder." + BUCKETS, ("encoder_relative",), "same"),
    Row("decoder." + BUCKETS, ("relative",), "same"),
    Row("encoder.final_layer_norm.weight", ("encoder_norm/scale",), "same"),
    Row("decoder.final_layer_norm.weight", ("final_norm/scale",), "same"),
    *_attention(T5_ENCODER, "attn", "layer.0.SelfAttention", "encoder"),
    *_attention(T5_DECODER, "attn", "layer.0.SelfAttention"),
    *_attention(T5_DECODER, "cross", "layer.1.EncDecAttention"),
    *rows_of(
      T5_ENCODER,
      "encoder",
      norm_attn__scale=("layer.0.layer_norm.weight", "same"),
      norm_mlp__scale=("layer.1.layer_norm.weight", "same"),
      mlp__in="layer.1.DenseReluDense.wi.weight",
      mlp__out="layer.1.DenseReluDense.wo.weight",
    ),
    *rows_of(
      T5_DECODER,
      norm_attn__scale=("layer.0.layer_norm.weight", "same"),
      norm_cross__scale=("layer.1.layer_norm.weight", "same"),
      norm_mlp__scale=("layer.2.layer_norm.weight", "same"),
      mlp__in="layer.2.DenseReluDense.wi.weight",
      mlp__out="layer.2.DenseReluDense.wo.weight",
    ),
  ),
  heads=(Row("lm_head.weight", ("unembed",), "same"),),
  ignored=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
  prefix="",
  has_rope=False,
  synonyms={
    "hidden_size": "d_model",
    "head_dim": "d_kv",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
  },
)


def _gated(row: Row) -> tuple[Row, ...]:
  """Returns a row of T5; for an MLP's input matrix, those of gate and input."""
  stem = row.theirs.removesuffix("wi.weight")
  if stem == row.theirs:
    return (row,)
  gate = row.ours[0].replace("/in", "/gate")
  return Row(stem + "wi_0.weight", (gate,)), Row(stem + "wi_1.weight", row.ours)


T5_GATED = T5._replace(
  told={"feed_forward_proj": "gated-gelu"},
  fixed=T5.fixed | dict(mlp="geglu_tanh"),
  wanted=T5.wanted
  | {
    "feed_forward_proj": ("gated-gelu",),
    "dense_act_fn": ("gelu_new",),
    "is_gated_act": (True,),
  },
  rows=tuple(each for row in T5.rows for each in _gated(row)),
)

SIDES = "encoder", "decoder"
BART_ENCODER = "model.encoder.layers.{layer}"
BART_DECODER = "model.decoder.layers.{layer}"


def _both(layer: str, stack: str, **named: str) -> tuple[Row, ...]:
  """Returns the rows of matrices or norms, and of their biases."""
  found: dict = {}
  for ours, theirs in named.items():
    is_norm = ours.startswith("norm")
    weight = ours + "__scale" if is_norm else ours
    bias = ours + ("__bias" if is_norm else "_bias")
    form = "same" if is_norm else "linear"
    found |= {weight: (theirs + ".weight", form)}
    found |= {bias: (theirs + ".bias", "same")}
  return rows_of(layer, stack, **found)


def _biased(layer: str, stack: str, ours: str, theirs: str):
  """Returns the rows of a BART attention, and of the norm after it."""
  names = {f"{ours}__{x}": f"{theirs}.{x}_proj" for x in "qkv"}
  names |= {f"{ours}__o": f"{theirs}.out_proj"}
  return _both(
    layer, stack, **names, **{f"norm_{ours}": f"{theirs}_layer_norm"}
  )


def _embedding(layer: str, embed: str) -> tuple[Row, ...]:
  """Returns the rows of BART's positions, and of the norm after their sum."""
  whole = layer.removesuffix(".layers.{layer}")
  norm = whole + ".layernorm_embedding"
  return (
    Row(whole + ".embed_positions.weight", (f"{embed}/positions",), "padded"),
    Row(norm + ".weight", (f"{embed}/norm/scale",), "same"),
    Row(norm + ".bias", (f"{embed}/norm/bias",), "same"),
  )


def _stack(layer: str, stack: str) -> tuple[Row, ...]:
  """Returns the rows that both stacks of BART and Marian have."""
  return (
    *_biased(layer, stack, "attn", "self_attn"),
    *_both(
      layer, stack, mlp__in="fc1", mlp__out="fc2", norm_mlp="final_layer_norm"
    ),
  )


def _read_bart(stated: dict, model: dict, where: str) -> dict:
  for name in ("attention_heads", "ffn_dim"):
    own, other = (stated.get(f"{side}_{name}") for side in SIDES)
    if own != other:
      raise InputError(
        f"{where} has encoder_{name} {own!r:.60} and decoder_{name} "
        f"{other!r:.60}, which is not supported; they must be equal"
      )
  return {}


def _read_marian(stated: dict, model: dict, where: str) -> dict:
  if "activation_function" not in stated:
    raise InputError(
      f"{where} has no activation_function, which its class takes for 'gelu'; "
      "only 'swish' is supported"
    )
  return _read_bart(stated, model, where)


BART_LAYERS = (
  *_stack(BART_ENCODER, "encoder"),
  *_stack(BART_DECODER, "blocks"),
  *_biased(BART_DECODER, "blocks", "cross", "encoder_attn"),
)
BART = Architecture(
  name="BartForConditionalGeneration",
  keys=(
    Key("d_model", "model_dim"),
    Key("encoder_ffn_dim", "mlp_dim"),
    Key("encoder_layers", "num_encoder_layers"),
    Key("decoder_layers", "num_layers"),
    Key("encoder_attention_heads", "num_heads"),
    Key("max_position_embeddings", "max_len", 1024),
    Key("vocab_size", "vocab_size"),
    Key("scale_embedding", "scaled_embeddings", False),
    Key("tie_word_embeddings", "tied_embeddings", True),
  ),
  fixed=dict(
    family="encoder_decoder",
    norm="layernorm",
    norm_placement="post",
    norm_eps=1e-5,
    embed_norm=True,
    source_embed="own",
    position="learned",
    mlp="gelu",
    bias=True,
  ),
  wanted={
    "activation_function": ("gelu",),
    "is_encoder_decoder": (True,),
    # Keys that only the first, pretrained models have.
    "normalize_before": (False,),
    "add_final_layer_norm": (False,),
    "normalize_embedding": (True,),
    "static_position_embeddings": (False,),
  },
  rows=(
    Row("model.shared.weight", ("embed/tokens",), "same"),
    *_embedding(BART_ENCODER, "source_embed"),
    *_embedding(BART_DECODER, "embed"),
    *BART_LAYERS,
  ),
  heads=(Row("lm_head.weight", ("unembed",), "same"),),
  ignored=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
  # Unlike here, T5's encoder and decoder share one table even if it is untied
  # from the output matrix.
  copies=(
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
  ),
  zeros=("final_logits_bias",),
  has_rope=False,
  synonyms={
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
  },
  read=_read_bart,
  write=lambda model, stated: {
    f"decoder_{name}": stated[f"encoder_{name}"]
    for name in ("attention_heads", "ffn_dim")
  },
)

MARIAN = BART._replace(
  name="MarianMTModel",
  fixed=dict(
    family="encoder_decoder",
    norm="layernorm",
    norm_placement="post",
    norm_eps=1e-5,
    position="sinusoidal_halves",
    mlp="silu",
    bias=True,
    head="biased",
  ),
  wanted={
    "activation_function": ("swish",),
    "is_encoder_decoder": (True,),
    "share_encoder_decoder_embeddings": (True,),
    # Keys that were converted from Marian's own files.
    "normalize_before": (False,),
    "add_final_layer_norm": (False,),
    "normalize_embedding": (False,),
    "static_position_embeddings": (True,),
  },
  rows=(
    Row("model.shared.weight", ("embed/tokens",), "same"),
    Row("final_logits_bias", ("head/bias",), "row"),
    *BART_LAYERS,
  ),
  # Sinusoidal positions are computed, so a stored table is ignored.
  ignored=(*BART.ignored, "embed_positions.weight"),
  zeros=(),
  read=_read_marian,
)

# By "model_type" of config.json, or an Architecture's own.
ENCODER_DECODERS = {
  "t5_gated": T5_GATED,
  "t5": T5,
  "bart": BART,
  "marian": MARIAN,
}
