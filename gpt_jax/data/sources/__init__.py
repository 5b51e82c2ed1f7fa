"""Where text comes from: the table of sources, and mixtures of them.

A new source is a class with the interface of `document.Source`, and an entry in
SOURCES. Specs are parsed here and nowhere else.
"""

import math
import os
import re

from gpt_jax import files
from gpt_jax.data.sources import paths, unpack
from gpt_jax.data.sources.chat import ChatSource
from gpt_jax.data.sources.columns import ColumnSource
from gpt_jax.data.sources.digits import DigitSource
from gpt_jax.data.sources.document import Source
from gpt_jax.data.sources.hosted import TfdsSource
from gpt_jax.data.sources.hub import HubSource
from gpt_jax.data.sources.interpreter import InterpreterSource
from gpt_jax.data.sources.jsonl import SUFFIXES as JSON_SUFFIXES
from gpt_jax.data.sources.jsonl import JsonSource
from gpt_jax.data.sources.labelled import LabelledSource, spec_like
from gpt_jax.data.sources.pairs import PairSource
from gpt_jax.data.sources.parquet import SUFFIXES as PARQUET_SUFFIXES
from gpt_jax.data.sources.parquet import ParquetSource
from gpt_jax.data.sources.preference import PreferenceSource
from gpt_jax.data.sources.text import TextSource
from gpt_jax.data.sources.warc import WarcSource
from gpt_jax.exits import InputError

# {scheme: (class, form of the text after the colon; None if there is none)}
SOURCES = {
  "interpreter": (InterpreterSource, None),
  "text": (TextSource, "GLOB"),
  "jsonl": (JsonSource, "GLOB[#FIELD]"),
  "csv": (ColumnSource, "GLOB[#FIELD]"),
  "tsv": (ColumnSource, "GLOB[#FIELD]"),
  "parquet": (ParquetSource, "GLOB[#FIELD]"),
  "warc": (WarcSource, "GLOB"),
  "pairs": (PairSource, "GLOB[#SOURCE#TARGET]"),
  "digits": (DigitSource, "RULE[:FROM-TO]"),
  "labelled": (LabelledSource, "GLOB[#TEXT[#TEXT]#LABEL]"),
  "chat": (ChatSource, "GLOB"),
  "preference": (PreferenceSource, "GLOB"),
  "tfds": (TfdsSource, "NAME[:SPLIT]"),
  "hf": (HubSource, "NAME[@REVISION][:[CONFIG:]SPLIT][#FIELD]"),
}
# Schemes whose text is fetched by name; others read files, or need none.
HOSTED = ("tfds", "hf")
# Schemes whose documents alternate between sources and targets.
PAIRED = ("pairs", "digits")
# Schemes whose documents have labels.
LABELLED = ("labelled",)
# Schemes whose documents are dialogues.
CHATS = ("chat",)
# Schemes whose records are a prompt and one or two rated answers.
PREFERENCES = ("preference",)

_WEIGHT = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_WEIGHTED = re.compile(rf"\s*(?:(-?{_WEIGHT})\s*\*\s*)?(.*)", re.DOTALL)


def parse_mixture(mixture: str) -> list[tuple[float, str]]:
  """Returns [(weight, source spec)]; the weights sum to 1.

  Sources are separated by commas. A comma belongs to the path before it unless
  a known scheme follows. A source without a weight counts 1.

  Raises:
    InputError: a scheme is unknown or a weight is not positive.
  """
  parts = []
  border = re.compile(rf",(?=\s*(?:{_WEIGHT}\s*\*\s*)?{_beginnings()})")
  for part in border.split(mixture):
    found = _WEIGHTED.fullmatch(part)
    assert found is not None  # any text matches
    weight, spec = found.groups()
    spec = spec.strip()
    parse_spec(spec)
    value = 1.0 if weight is None else float(weight)
    if not 0 < value < math.inf:
      raise InputError(
        f"the weight of {spec!r} is {weight}; it must be above 0 and finite"
      )
    parts.append((value, spec))
  # Divide by the largest first: the sum of two weights of 1e308 is infinite.
  largest = max(weight for weight, _ in parts)
  total = sum(weight / largest for weight, _ in parts)
  shares = [(weight / largest / total, spec) for weight, spec in parts]
  if not all(share > 0 for share, _ in shares):
    raise InputError(f"the weights of {mixture!r} differ too much to be shares")
  return shares


def parse_spec(spec: str) -> tuple[str, str]:
  """Returns (scheme, argument) of the spec of one source.

  Raises:
    InputError: the scheme is unknown or its argument is missing.
  """
  scheme, colon, argument = spec.partition(":")
  if scheme in SOURCES:
    has_argument = SOURCES[scheme][1] is not None
    if bool(argument) == bool(colon) == has_argument:
      return scheme, argument
  raise _unknown(spec)


def open_source(spec: str) -> Source:
  """Returns the source of one spec (not of a mixture).

  Raises:
    InputError: the spec is wrong, or nothing is where it points.
  """
  scheme, argument = parse_spec(spec)
  kind, _ = SOURCES[scheme]
  return kind(spec, argument)


def is_spec(text: str) -> bool:
  """Returns whether a text begins as a spec does, rather than as a path."""
  return re.match(_beginnings(), text) is not None


def spec_of(text: str, records: str = "jsonl") -> str:
  """Returns a spec unchanged, or the spec of the file at a plain path.

  The file's name decides, without the suffix of a compressed file: records such
  as .jsonl get the scheme `records`, .tsv gets pairs, .csv and .parquet their
  own, and all others text.
  """
  if is_spec(text):
    return text
  name = unpack.bare_name(text if os.path.lexists(text) else text.split("#")[0])
  kinds = {
    records: JSON_SUFFIXES,
    "pairs": (".tsv",),
    "csv": (".csv",),
    "parquet": PARQUET_SUFFIXES,
  }
  found = (kind for kind, ends in kinds.items() if name.endswith(ends))
  return f"{next(found, 'text')}:{text}"


def labelled_spec(text: str, like: str) -> str:
  """Returns a spec unchanged, or a path as a spec with the fields of `like`."""
  if is_spec(text):
    return text
  return spec_like(text, parse_spec(like)[1])


def is_paired(spec: str) -> bool:
  """Returns whether the documents of a source are pairs."""
  return parse_spec(spec)[0] in PAIRED


def is_labelled(spec: str) -> bool:
  """Returns whether the documents of a source have labels."""
  return parse_spec(spec)[0] in LABELLED


def is_chat(spec: str) -> bool:
  """Returns whether the documents of a source are dialogues."""
  return parse_spec(spec)[0] in CHATS


def is_preference(spec: str) -> bool:
  """Returns whether the documents of a source are preferences."""
  return parse_spec(spec)[0] in PREFERENCES


def content_identity(source: Source) -> str:
  """Returns a digest of the text of a source, the same on every machine.

  It reads files whole, so unlike `fingerprint` it does not depend on their
  dates. Sources without files are identified by their versions.
  """
  if not source.files:
    return source.fingerprint()
  return paths.identify_content(source.files)


def _beginnings() -> str:
  """Returns a regular expression for the beginning of a spec."""
  words = [
    rf"{name}\b" if form is None else f"{name}:"
    for name, (_, form) in SOURCES.items()
  ]
  return f"(?:{'|'.join(words)})"


def _unknown(spec: str) -> InputError:
  """Returns the error for a text that is no spec, with a guess at a spec."""
  schemes = ", ".join(
    name if form is None else f"{name}:{form}"
    for name, (_, form) in SOURCES.items()
  )
  hint = ""
  if files.is_address(spec):
    hint = f" but an address (did you mean {spec_of(spec)}?)"
  elif os.path.isdir(os.path.expanduser(spec)):
    hint = (
      f" but a folder (did you mean text:{os.path.join(spec, '**/*.txt')}?)"
    )
  elif os.path.isfile(os.path.expanduser(spec)):
    hint = f" but a file (did you mean {spec_of(spec)}?)"
  return InputError(
    f"{spec!r} is not a source of text{hint}; it must be one of {schemes}, "
    "with WEIGHT* before each of several"
  )
