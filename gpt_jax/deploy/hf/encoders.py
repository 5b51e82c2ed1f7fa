"""Tables of the hub's encoders (bidirectional attention): BERT and others."""

from typing import Any

from gpt_jax import config as config_lib
from gpt_jax.config import InputError, ModelConfig
from gpt_jax.data.labels import MAX_CLASSES, Labels
from gpt_jax.deploy.hf.rows import (
  PADDING_ROWS,
  SIZES,
  Architecture,
  Key,
  Pattern,
  Row,
  rows_of,
)

# The problem_type of config.json by option of data.label.
PROBLEMS = {
  "single": "single_label_classification",
  "multi": "multi_label_classification",
  "number": "regression",
}
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
    Row("bert.pooler.dense.weight", ("pooler/dense",), is_optional=True),
    Row(
      "bert.pooler.dense.bias", ("pooler/dense_bias",), "same", is_optional=True
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
  # The head of next-sentence prediction is not imported.
  ignored=(
    *(".position_ids", "cls.predictions.decoder.bias"),
    *("cls.seq_relationship.weight", "cls.seq_relationship.bias"),
  ),
  renamed=((".gamma", ".weight"), (".beta", ".bias")),
  prefix="bert.",
  has_rope=False,
  held=(("pooler.dense.weight", "pooler"),),
)


def _roberta(name: str) -> str:
  """Returns RoBERTa's name for a tensor of BERT."""
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
  # Positions begin at pad_token_id + 1, so PADDING_ROWS holds for id 1 alone.
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
    # local_attention // 2 tokens on each side are visible; our window counts
    # one side and the token itself.
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
  """Returns the table of a model without a head that scores tokens.

  Its tensors' names have no prefix. In our model section its head is the tied
  embedding table, which was not trained as a head.
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


def _with_classes(found: Architecture, model_type: str, name: str, out: str):
  """Returns the table of a classifier of the first token, after its pooler.

  Args:
    out: name of the last matrix, whose outputs are scores of classes.
  """
  pooled = lambda row: row.ours[0].startswith("pooler/")
  # In our runs, the pooler may be a part of the classifier head instead.
  own = tuple(
    row._replace(ours=(row.ours[0].replace("pooler/", "classifier/"),))
    for row in filter(pooled, found.rows)
  )
  return found._replace(
    name=name,
    model_type=model_type,
    told={"architectures": [name]},
    keys=tuple(k for k in found.keys if k.ours != "tied_embeddings"),
    fixed=found.fixed | dict(head="first", tied_embeddings=True),
    rows=(
      *(r for r in found.rows if not r.ours[0].startswith("head/")),
      *own,
      Row(f"{out}.weight", ("classifier/out",), "same"),
      Row(f"{out}.bias", ("classifier/out_bias",), "same"),
    ),
    heads=(),
    more=(*found.more, "num_classes"),
    read=_read_classes,
    write=_write_classes,
  )


def _read_classes(stated: dict, model: dict, where: str) -> dict[str, Any]:
  return {"num_classes": read_labels(stated, where).num_scores}


def read_labels(stated: dict, where: str) -> Labels:
  """Returns the labels of a config.json.

  Raises:
    InputError: id2label does not name each class, or does not fit problem_type.
  """
  named = stated.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
  count = len(named) if isinstance(named, dict) else 0
  names = tuple(named.get(str(i)) for i in range(count))
  is_named = all(isinstance(name, str) and name.strip() for name in names)
  if not is_named or len(set(names)) != count or not 0 < count <= MAX_CLASSES:
    raise InputError(
      f"{where} has id2label {named!r:.80}; it must give each class, from 0 "
      "on, a name of its own"
    )
  problem = stated.get("problem_type")
  if problem not in (*PROBLEMS.values(), None):
    raise InputError(
      f"{where} has problem_type {problem!r:.60}; it must be "
      f"{' or '.join(PROBLEMS.values())}"
    )
  is_number = problem == PROBLEMS["number"] or (problem is None and count == 1)
  if is_number != (count == 1):
    raise InputError(
      f"{where} has problem_type {problem!r} and {count} labels; a number is "
      "one label, and classes are two or more"
    )
  if is_number:
    return Labels("number", ())
  kinds = {theirs: ours for ours, theirs in PROBLEMS.items()}
  return Labels(kinds.get(problem, "single"), names)


def _write_classes(model: ModelConfig, stated: dict) -> dict[str, Any]:
  names = tuple(f"LABEL_{i}" for i in range(config_lib.num_classes(model)))
  return write_labels(Labels("single", names))


def write_labels(labels: Labels) -> dict[str, Any]:
  """Returns the keys of a config.json that read_labels reads."""
  names = labels.classes or ("LABEL_0",)
  return {
    "problem_type": PROBLEMS[labels.kind],
    "id2label": {str(i): name for i, name in enumerate(names)},
    "label2id": {name: i for i, name in enumerate(names)},
  }


# By "model_type" of config.json, or an Architecture's own.
ENCODERS = {
  "bert_classes": _with_classes(
    BERT, "bert", "BertForSequenceClassification", "classifier"
  ),
  "roberta_classes": _with_classes(
    ROBERTA._replace(
      rows=tuple(
        row._replace(theirs=row.theirs.replace("roberta.pooler", "classifier"))
        for row in ROBERTA.rows
      ),
      ignored=(*ROBERTA.ignored, ".pooler.dense.weight", ".pooler.dense.bias"),
      held=(("classifier.dense.weight", "pooler"),),
    ),
    "roberta",
    "RobertaForSequenceClassification",
    "classifier.out_proj",
  ),
  "bert_bare": _without_head(BERT, "bert", "BertModel"),
  "roberta_bare": _without_head(ROBERTA, "roberta", "RobertaModel"),
  "modernbert_bare": _without_head(MODERNBERT, "modernbert", "ModernBertModel"),
  "bert": BERT,
  "roberta": ROBERTA,
  "modernbert": MODERNBERT,
}
