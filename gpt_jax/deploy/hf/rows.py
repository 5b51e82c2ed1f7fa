"""What a table of an architecture of the hub consists of."""

from typing import Any, NamedTuple

REQUIRED = object()


class Key(NamedTuple):
  """A number or a switch that both configs have.

  Attributes:
    theirs, ours: its names; ours is a field of the model section.
    default: what theirs is where it is missing; REQUIRED where it must be
      there, None leaves ours to its own default.
    alias: its name in other versions of transformers.
  """

  theirs: str
  ours: str
  default: Any = REQUIRED
  alias: str | None = None


class Row(NamedTuple):
  """A tensor of theirs.

  Attributes:
    theirs: its name, with {layer} and {expert} where there are several.
    ours: paths of the parameters that it holds, one after the other along
      their outputs.
    form: linear (out, in) | conv (in, out) | heads, as linear but head by head
      with all parts of each | same | flat, in one dim | offset, the same less
      one.
  """

  theirs: str
  ours: tuple[str, ...]
  form: str = "linear"


class Architecture(NamedTuple):
  """How models of one config.json "model_type" are read and written.

  Attributes:
    name: of their class.
    model_type: theirs, where several are of one; "" is the table's own key.
    told: {key of theirs: value} that these models have among several; the first
      of a model_type that has them is taken.
    keys: what both configs state.
    fixed: fields of our model section that all these models have.
    wanted: {key of theirs: values that can be represented}; the first is
      written, and is what a missing key means.
    needed: those of these keys whose absence means something else.
    rows: their tensors.
    heads: rows of models whose output matrix is not that of the embedding.
    ignored: ends of names of tensors that hold no parameters of ours.
    renamed: (end of a name in older files, end of it now).
    prefix: of names, which a model without its head was saved without.
    has_rope: whether config.json says how positions turn.
    rope_frac: part of a head that turns where config.json does not say; None:
      all of it in all these models.
    has_pattern: whether it says which layers are local.
  """

  name: str
  keys: tuple[Key, ...]
  fixed: dict[str, Any]
  wanted: dict[str, tuple]
  rows: tuple[Row, ...]
  heads: tuple[Row, ...] = ()
  ignored: tuple[str, ...] = ()
  renamed: tuple[tuple[str, str], ...] = ()
  prefix: str = "model."
  has_rope: bool = True
  rope_frac: float | None = None
  has_pattern: bool = False
  needed: tuple[str, ...] = ()
  model_type: str = ""
  told: dict[str, Any] = {}


def rows_of(
  layer: str, stack: str = "blocks", **named: tuple[str, ...] | str
) -> tuple[Row, ...]:
  """Returns rows of a stack: {name of ours, "/" as "__": theirs and form}."""
  found = []
  for ours, value in named.items():
    theirs, *form = (value,) if isinstance(value, str) else value
    paths = tuple(
      f"{stack}/{path.replace('__', '/')}" for path in ours.split("___")
    )
    found.append(Row(f"{layer}.{theirs}", paths, *form))
  return tuple(found)
