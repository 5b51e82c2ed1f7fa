"""What a table of an architecture of the hub consists of."""

from collections.abc import Callable
from typing import Any, NamedTuple

REQUIRED = object()
# Rows of RoBERTa's positions before the first: of padding, and none.
PADDING_ROWS = 2


class Key(NamedTuple):
  """A number or a switch that both configs have.

  Attributes:
    theirs, ours: its names; ours is a field of the model section.
    default: what theirs is where it is missing; REQUIRED where it must be
      there, None leaves ours to its own default.
    alias: its name in other versions of transformers.
    to_ours, to_theirs: functions of the number, where it means another.
  """

  theirs: str
  ours: str
  default: Any = REQUIRED
  alias: str | None = None
  to_ours: Callable[[int], int] = lambda value: value
  to_theirs: Callable[[int], int] = lambda value: value


# The sizes that most tables name alike.
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
    key: of the number of layers to a global one, where "layer_types" is
      missing; None where it never is anything but `period`.
    period: what it is where it is missing.
    is_first: whether the global layer is the first of a period, not the last.
    theta: key of the rope base of local layers; None is that of all.
    scalar: whether "query_pre_attn_scalar" scales the scores.
  """

  key: str | None = None
  period: int = 2
  is_first: bool = False
  theta: str | None = None
  scalar: bool = True


class Row(NamedTuple):
  """A tensor of theirs.

  Attributes:
    theirs: its name, with {layer} and {expert} where there are several.
    ours: paths of the parameters that it holds, one after the other along
      their outputs.
    form: linear (out, in) | turned, as linear, with dims that are rotated in
      pairs of neighbours | conv (in, out) | heads, as linear but head by head,
      with all parts of each | same | flat, in one dim | offset, the same less
      one | padded, after PADDING_ROWS rows that nothing reads.
    first: its name in layer 0, where that has another.
    is_optional: whether some of these models, or of their layers, lack it.
  """

  theirs: str
  ours: tuple[str, ...]
  form: str = "linear"
  first: str | None = None
  is_optional: bool = False


class Architecture(NamedTuple):
  """How models of one config.json "model_type" are read and written.

  Attributes:
    name: of their class.
    model_type: theirs, where several are of one; "" is the table's own key.
    told: {key of theirs: value} that these models have among several; the first
      of a model_type that has them is taken.
    keys: what both configs state.
    synonyms: {another name of a key in transformers: the key}.
    fixed: fields of our model section that all these models have.
    wanted: {key of theirs: values that can be represented}; the first is
      written, and is what a missing key means.
    rows: their tensors.
    heads: rows of models whose output matrix is not that of the embedding.
    ignored: ends of names of tensors that hold no parameters of ours.
    copies: names of the table of tokens that are written as well where it is
      not the output matrix.
    zeros: names of tensors that hold parameters that we have not, which must be
      zero.
    renamed: (end of a name in older files, end of it now).
    prefix: of names, which a model without its head was saved without.
    has_rope: whether config.json says how positions turn.
    rope_frac: part of a head that turns where config.json does not say; None:
      all of it in all these models.
    pattern: how it says which layers are local; None where none is, or all are.
    rope_theta: the rotary base where it does not say.
    has_dense: whether layers without experts come before those with them.
    read: returns more fields of our model section, of their config, those read
      so far and the path of the file: what no Key can say.
    write: returns what `read` reads, of our model section and what is stated
      so far.
    more: fields of ours that `read` may return and that have no Key.
    held: (end of a tensor's name, switch of ours that is on where it is there).
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
  """Returns rows of a stack: {name of ours, "/" as "__": theirs and form}."""
  found = []
  for ours, value in named.items():
    theirs, form = (value, "linear") if isinstance(value, str) else value
    paths = tuple(
      f"{stack}/{path.replace('__', '/')}" for path in ours.split("___")
    )
    found.append(Row(f"{layer}.{theirs}", paths, form))
  return tuple(found)
