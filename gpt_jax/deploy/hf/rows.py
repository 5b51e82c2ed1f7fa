"""The types of which the tables of the hub's architectures are made."""

from collections.abc import Callable
from typing import Any, NamedTuple

REQUIRED = object()
# Number of unused rows before the first position in RoBERTa's and BART's table.
PADDING_ROWS = 2


class Key(NamedTuple):
  """A number or a switch that config.json and our model section both have.

  Attributes:
    theirs, ours: its key in config.json, and its field in our model section.
    default: value of a missing key. REQUIRED: the key must be there. None: our
      field has its own default.
    alias: its key in other versions of transformers.
    to_ours, to_theirs: convert the number, if the two count differently.
  """

  theirs: str
  ours: str
  default: Any = REQUIRED
  alias: str | None = None
  to_ours: Callable[[int], int] = lambda value: value
  to_theirs: Callable[[int], int] = lambda value: value


# The sizes that have the same keys in most architectures.
SIZES = (
  Key("hidden_size", "model_dim"),
  Key("intermediate_size", "mlp_dim"),
  Key("num_hidden_layers", "num_layers"),
  Key("num_attention_heads", "num_heads"),
  Key("max_position_embeddings", "max_len"),
  Key("vocab_size", "vocab_size"),
)


class Pattern(NamedTuple):
  """How config.json says which layers are local.

  Attributes:
    key: key of the period, used if "layer_types" is missing; None: the period
      is always `period`.
    period: the period if that key is missing: one layer of so many is global.
    is_first: whether the global layer is the first of a period, not the last.
    theta: key of the local layers' rotary base; None: all layers share one.
    scalar: whether "query_pre_attn_scalar" scales the attention scores.
  """

  key: str | None = None
  period: int = 2
  is_first: bool = False
  theta: str | None = None
  scalar: bool = True


class Row(NamedTuple):
  """A tensor of the hub's layout, or one of each layer and expert.

  Attributes:
    theirs: its name, with {layer} and {expert} if there are several.
    ours: paths of our parameters that it holds, concatenated along their
      outputs.
    form: how their array is stored: linear, (out, in) | turned, as linear, with
      RoPE rotating pairs of neighbouring dims | conv, (in, out) | heads, as
      linear, but concatenated within each head | same, as ours | flat, in one
      dim | offset, ours - 1 | padded, after PADDING_ROWS unused rows | row, in
      a matrix of one row.
    first: its name in layer 0, if that differs.
    is_optional: whether some models of this architecture, or some of their
      layers, lack it.
  """

  theirs: str
  ours: tuple[str, ...]
  form: str = "linear"
  first: str | None = None
  is_optional: bool = False


class Architecture(NamedTuple):
  """How models of one config.json "model_type" are read and written.

  Attributes:
    name: class of transformers.
    model_type: of config.json, if several tables share one; "": the table's own
      key in ARCHITECTURES.
    told: {key of config.json: value} that tells these models from others of the
      model_type; the first table whose values are all there is taken.
    keys: numbers and switches that both configs have.
    synonyms: {another name of a key in transformers: the key}.
    fixed: {field of our model section: value} that all these models have.
    wanted: {key of config.json: values that are supported}; the first is
      written, and is the meaning of a missing key.
    rows: the tensors.
    heads: rows of the output matrix, if it is not tied to the embedding.
    ignored: ends of names of tensors that hold no parameters of ours.
    copies: further names under which the embedding table is written, if it is
      not tied to the output matrix.
    zeros: names of tensors that must be zero, as we have no such parameters.
    renamed: (end of a name in older files, end of it now).
    prefix: of names; files of a model without its head lack it.
    has_rope: whether config.json has keys of RoPE.
    rope_frac: default fraction of a head that RoPE rotates; None: always all.
    pattern: how config.json says which layers are local; None: all layers are
      of one kind.
    rope_theta: default rotary base.
    has_dense: whether layers without experts may come before those with them.
    read: (config.json, fields read so far, path of the file) -> more fields of
      our model section, which no Key can express.
    write: (our model section, keys written so far) -> the keys that `read`
      reads.
    more: our fields that `read` may return and that have no Key.
    held: (end of a tensor's name, our switch that is on if there is such a
      tensor).
  """

  name: str
  keys: tuple[Key, ...]
  fixed: dict[str, Any]
  wanted: dict[str, tuple]
  rows: tuple[Row, ...]
  heads: tuple[Row, ...] = ()
  ignored: tuple[str, ...] = ()
  copies: tuple[str, ...] = ()
  zeros: tuple[str, ...] = ()
  renamed: tuple[tuple[str, str], ...] = ()
  prefix: str = "model."
  has_rope: bool = True
  rope_frac: float | None = None
  pattern: Pattern | None = None
  rope_theta: float = 10_000.0
  has_dense: bool = False
  read: Callable[[dict, dict, str], dict] | None = None
  write: Callable[[Any, dict], dict] | None = None
  more: tuple[str, ...] = ()
  model_type: str = ""
  told: dict[str, Any] = {}
  held: tuple[tuple[str, str], ...] = ()
  synonyms: dict[str, str] = {}


def rows_of(
  layer: str, stack: str = "blocks", **named: tuple[str, ...] | str
) -> tuple[Row, ...]:
  """Returns rows of a stack, from our_path=their_name or (their_name, form).

  In our path "__" stands for "/", and "___" separates several parameters.
  """
  found = []
  for ours, value in named.items():
    theirs, form = (value, "linear") if isinstance(value, str) else value
    paths = tuple(
      f"{stack}/{path.replace('__', '/')}" for path in ours.split("___")
    )
    found.append(Row(f"{layer}.{theirs}", paths, form))
  return tuple(found)
