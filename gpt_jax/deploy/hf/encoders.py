"""Tables of the hub's models that read a text both ways."""

from gpt_jax.deploy.hf.rows import (
  PADDING_ROWS,
  SIZES,
  Architecture,
  Key,
  Pattern,
  Row,
  rows_of,
)

BERT_LAYER = "bert.encoder.layer.{layer}"
BERT = Architecture(
  name="BertForMaskedLM",
  keys=(
    *SIZES,
    Key("type_vocab_size", "num_token_types", 2),
    Key("layer_norm_eps", "norm_eps", 1e-12),
    Key("tie_word_embeddings", "tied_embeddings", True),
  ),
  fixed=dict(
    family="encoder",
    norm="layernorm",
    norm_placement="post",
    embed_norm=True,
    position="learned",
    mlp="gelu",
    bias=True,
    head="transform",
  ),
  wanted={
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
  },
  rows=(
    Row("bert.embeddings.word_embeddings.weight", ("embed/tokens",), "same"),
    Row(
      "bert.embeddings.position_embeddings.weight",
      ("embed/positions",),
      "same",
    ),
    Row(
      "bert.embeddings.token_type_embeddings.weight", ("embed/types",), "same"
    ),
    Row("bert.embeddings.LayerNorm.weight", ("embed/norm/scale",), "same"),
    Row("bert.embeddings.LayerNorm.bias", ("embed/norm/bias",), "same"),
    *rows_of(
      BERT_LAYER,
      attn__q="attention.self.query.weight",
      attn__q_bias=("attention.self.query.bias", "same"),
      attn__k="attention.self.key.weight",
      attn__k_bias=("attention.self.key.bias", "same"),
      attn__v="attention.self.value.weight",
      attn__v_bias=("attention.self.value.bias", "same"),
      attn__o="attention.output.dense.weight",
      attn__o_bias=("attention.output.dense.bias", "same"),
      norm_attn__scale=("attention.output.LayerNorm.weight", "same"),
      norm_attn__bias=("attention.output.LayerNorm.bias", "same"),
      mlp__in="intermediate.dense.weight",
      mlp__in_bias=("intermediate.dense.bias", "same"),
      mlp__out="output.dense.weight",
      mlp__out_bias=("output.dense.bias", "same"),
      norm_mlp__scale=("output.LayerNorm.weight", "same"),
      norm_mlp__bias=("output.LayerNorm.bias", "same"),
    ),
    Row("cls.predictions.transform.dense.weight", ("head/dense",)),
    Row("cls.predictions.transform.dense.bias", ("head/dense_bias",), "same"),
    Row(
      "cls.predictions.transform.LayerNorm.weight",
      ("head/norm/scale",),
      "same",
    ),
    Row(
      "cls.predictions.transform.LayerNorm.bias", ("head/norm/bias",), "same"
    ),
    Row("cls.predictions.bias", ("head/bias",), "same"),
  ),
  heads=(Row("cls.predictions.decoder.weight", ("unembed",), "same"),),
  # The pooler and the next sentence's score are not read where tokens are.
  ignored=(
    *(".position_ids", "cls.predictions.decoder.bias"),
    *("bert.pooler.dense.weight", "bert.pooler.dense.bias"),
    *("cls.seq_relationship.weight", "cls.seq_relationship.bias"),
  ),
  renamed=((".gamma", ".weight"), (".beta", ".bias")),
  prefix="bert.",
  has_rope=False,
)


def _roberta(name: str) -> str:
  """Returns RoBERTa's name of a tensor of BERT."""
  for old, new in (
    ("bert.", "roberta."),
    ("cls.predictions.transform.LayerNorm", "lm_head.layer_norm"),
    ("cls.predictions.transform", "lm_head"),
    ("cls.predictions", "lm_head"),
  ):
    if name.startswith(old):
      return new + name.removeprefix(old)
  return name


ROBERTA = BERT._replace(
  name="RobertaForMaskedLM",
  keys=(
    *(key for key in BERT.keys if key.ours != "max_len"),
    Key(
      "max_position_embeddings",
      "max_len",
      to_ours=lambda count: count - PADDING_ROWS,
    ),
  ),
  # Positions begin after it.
  wanted=BERT.wanted | {"pad_token_id": (1,)},
  rows=tuple(
    row._replace(
      theirs=_roberta(row.theirs),
      form="padded" if row.ours == ("embed/positions",) else row.form,
    )
    for row in BERT.rows
  ),
  heads=tuple(row._replace(theirs=_roberta(row.theirs)) for row in BERT.heads),
  ignored=tuple(map(_roberta, BERT.ignored)),
  renamed=(),
  prefix="roberta.",
)
MODERN_LAYER = "model.layers.{layer}"
MODERNBERT = Architecture(
  name="ModernBertForMaskedLM",
  keys=(
    *SIZES,
    Key("norm_eps", "norm_eps", 1e-5),
    # Theirs has as many tokens on each side as half of it, and the middle one.
    Key(
      "local_attention",
      "sliding_window",
      128,
      to_ours=lambda width: width // 2 + 1,
      to_theirs=lambda width: 2 * (width - 1),
    ),
    Key("tie_word_embeddings", "tied_embeddings", True),
  ),
  fixed=dict(
    family="encoder",
    norm="layernorm",
    embed_norm=True,
    position="rope",
    mlp="geglu",
    head="transform",
  ),
  wanted={
    "hidden_activation": ("gelu",),
    "classifier_activation": ("gelu",),
    "norm_bias": (False,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "classifier_bias": (False,),
    "decoder_bias": (True,),
  },
  rows=(
    Row("model.embeddings.tok_embeddings.weight", ("embed/tokens",), "same"),
    Row("model.final_norm.weight", ("final_norm/scale",), "same"),
    Row(
      MODERN_LAYER + ".attn_norm.weight",
      ("blocks/norm_attn/scale",),
      "same",
      first="model.embeddings.norm.weight",
    ),
    *rows_of(
      MODERN_LAYER,
      attn__q___attn__k___attn__v="attn.Wqkv.weight",
      attn__o="attn.Wo.weight",
      norm_mlp__scale=("mlp_norm.weight", "same"),
      mlp__gate___mlp__in="mlp.Wi.weight",
      mlp__out="mlp.Wo.weight",
    ),
    Row("head.dense.weight", ("head/dense",)),
    Row("head.norm.weight", ("head/norm/scale",), "same"),
    Row("decoder.bias", ("head/bias",), "same"),
  ),
  heads=(Row("decoder.weight", ("unembed",), "same"),),
  pattern=Pattern(
    "global_attn_every_n_layers",
    3,
    is_first=True,
    theta="local_rope_theta",
    scalar=False,
  ),
  rope_theta=160_000.0,
)


def _without_head(found: Architecture, model_type: str, name: str):
  """Returns the table of a model without its head of tokens.

  Its tensors are named without a prefix. What we call its head is the table of
  tokens, which nothing has trained as one.
  """
  bare = lambda word: word.removeprefix(found.prefix)
  return found._replace(
    name=name,
    model_type=model_type,
    told={"architectures": [name]},
    keys=tuple(k for k in found.keys if k.ours != "tied_embeddings"),
    fixed=found.fixed | dict(head="linear", tied_embeddings=True),
    rows=tuple(
      row._replace(theirs=bare(row.theirs), first=row.first and bare(row.first))
      for row in found.rows
      if not row.ours[0].startswith("head/")
    ),
    heads=(),
    ignored=tuple(map(bare, found.ignored)),
    prefix="",
  )


# By "model_type" of config.json, or an Architecture's own.
ENCODERS = {
  "bert_bare": _without_head(BERT, "bert", "BertModel"),
  "roberta_bare": _without_head(ROBERTA, "roberta", "RobertaModel"),
  "modernbert_bare": _without_head(MODERNBERT, "modernbert", "ModernBertModel"),
  "bert": BERT,
  "roberta": ROBERTA,
  "modernbert": MODERNBERT,
}
