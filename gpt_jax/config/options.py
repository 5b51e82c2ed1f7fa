"""Options that consist of parts, such as "save:qkv+attn", parsed once.

Each is a str, so that config.json, fingerprints and comparisons see the text
as written. The parts are attributes, parsed when the config section is built;
nothing else in the package parses the text again.
"""

import difflib
import math
import re
from typing import NamedTuple

from gpt_jax import files
from gpt_jax.exits import InputError

# The largest float32.
MAX_FLOAT32 = 3.4028234e38
# Names in model.remat: activations of a block that the backward pass needs.
REMAT_NAMES = ("block", "qkv", "attn", "mlp")
# Kinds of a layer in model.layer_pattern: of its attention, and of its MLP.
LAYER_KINDS = ("global", "local")
MLP_KINDS = ("dense", "moe")
# Kinds of data.tokenizer, and what follows the colon.
TOKENIZERS = {
  "bytes": None,
  "chars": None,
  "bpe": "SIZE",
  "gpt2": "PATH",
  "hf": "PATH",
}
# Templates of data.template; data/templates.py implements them.
TEMPLATES = ("chatml", "llama3", "gemma")


class Family(NamedTuple):
  """Properties of a family of models.

  Attributes:
    is_causal: a predicted token attends to no later ones.
    has_source: an encoder reads a source, to which the tokens attend.
  """

  is_causal: bool
  has_source: bool = False


# Options of model.family.
FAMILIES = {
  "decoder": Family(True),
  "encoder": Family(False),
  "encoder_decoder": Family(True, has_source=True),
}


class Objective(NamedTuple):
  """How an objective turns a window of ids into a batch.

  Attributes:
    fields: int32 fields of its batches besides tokens, targets and mask; a
      family that reads a source has SOURCE_FIELDS in their place.
    predicts_all: every id except the first is predicted exactly once, so that
      the losses over a text add up to its bits per byte.
    num_marks: number of ids that it adds after the tokenizer's.
    has_labels: a row is one text with a label, and model.head is one of
      CLASS_HEADS.
    is_preference: a row is two answers: a better and a worse one; or, for kto,
      one that is good or bad, and another one to estimate the KL divergence.
    is_sampled: rows are prompts with a right answer, and the model learns from
      answers that it samples itself.
    has_reference: its loss compares the model with the one in train.init_from.
  """

  fields: tuple[str, ...]
  predicts_all: bool
  num_marks: int = 0
  has_labels: bool = False
  is_preference: bool = False
  is_sampled: bool = False
  has_reference: bool = False


# int32 fields of a batch with sources: the ids of the sources, and the segments
# of source ids and of tokens. A token attends to the source ids of its own
# segment; a source's padding has a segment without tokens.
SOURCE_FIELDS = ("sources", "source_segments", "segments")
# Ids that stand for hidden spans, as in T5; UL2 adds an id for each mode.
NUM_SENTINELS = 100


def _preference(has_reference: bool = True) -> Objective:
  return Objective(
    ("segments", "positions"),
    predicts_all=False,
    is_preference=True,
    has_reference=has_reference,
  )


# Options of data.objective; batches with slots have a prefix per sequence.
OBJECTIVES = {
  "causal": Objective((), predicts_all=True),
  "prefix_lm": Objective(("slots",), predicts_all=False),
  "masked_lm": Objective((), predicts_all=False, num_marks=1),
  "fill_in_the_middle": Objective((), predicts_all=False, num_marks=3),
  "span_corruption": Objective(
    ("slots",), predicts_all=False, num_marks=2 + NUM_SENTINELS
  ),
  "ul2": Objective(("slots",), predicts_all=False, num_marks=5 + NUM_SENTINELS),
  "sequence_to_sequence": Objective((), predicts_all=False, num_marks=2),
  "classification": Objective(
    ("segments", "types"), predicts_all=False, has_labels=True
  ),
  "chat": Objective((), predicts_all=False),
  "dpo": _preference(),
  "ipo": _preference(),
  "kto": _preference(),
  "orpo": _preference(has_reference=False),
  "grpo": Objective((), predicts_all=False, num_marks=2, is_sampled=True),
}
# Options of model.head that score classes, named after the tokens that they
# read; all others score the tokens of the vocabulary.
CLASS_HEADS = ("first", "mean", "last", "each")
# Options of data.label: one class, any number of them, a number, or a class for
# each word.
LABELS = ("single", "multi", "number", "word")
# What happens to a token that data.objective=masked_lm chooses.
MASK_ACTIONS = ("mask", "random", "keep")


class ParsedOption(str):
  """The text of an option; subclasses add its parts as attributes.

  Attributes:
    FORMS: the forms of the text, as --help prints them.
  """

  FORMS: tuple[str, ...] = ()


class TokenizerSpec(ParsedOption):
  """data.tokenizer.

  Attributes:
    kind: a key of TOKENIZERS.
    argument: the size or the path; "" if there is none.
  """

  FORMS = tuple(f"{k}:{v}" if v else k for k, v in TOKENIZERS.items())
  kind: str
  argument: str

  def __init__(self, text: str):
    kind, colon, argument = text.partition(":")
    form = TOKENIZERS.get(kind)
    is_known = kind in TOKENIZERS and bool(colon) == bool(form)
    if not is_known or (form == "PATH" and not argument):
      raise InputError(
        f"data.tokenizer is {text!r}; it must be one of {', '.join(self.FORMS)}"
      )
    if form == "SIZE":
      is_number = re.fullmatch("[0-9]{1,9}", argument)
      if not is_number or not 257 <= int(argument) <= 1 << 20:
        raise InputError(
          f"data.tokenizer is {text!r}; the size of a bpe vocabulary must be a "
          "whole number from 257 (256 bytes and the separator) to 1048576"
        )
    self.kind, self.argument = kind, argument


class Template(ParsedOption):
  """data.template.

  Attributes:
    name: one of TEMPLATES, or "tokenizer" for the tokenizer's own.
    is_text: whether its marks are spelled as plain text.
  """

  FORMS = (*TEMPLATES, *(f"{name}:text" for name in TEMPLATES), "tokenizer")
  name: str
  is_text: bool

  def __new__(cls, text: str, key: str = "data.template"):
    return super().__new__(cls, text)

  def __init__(self, text: str, key: str = "data.template"):
    if text not in self.FORMS:
      near = difflib.get_close_matches(text, self.FORMS, 1, 0.0)[0]
      raise InputError(
        f"{key} is {text!r}; did you mean {near!r}? It must be one of "
        f"{', '.join(self.FORMS)}"
      )
    self.name, _, rest = text.partition(":")
    self.is_text = bool(rest)


class LayerPattern(ParsedOption):
  """model.layer_pattern.

  Attributes:
    parts: ((number of layers, kind), ...); () for uniform. A kind is one of
      LAYER_KINDS, one of MLP_KINDS, or both joined by "/".
  """

  FORMS = ("uniform", "N*KIND+...")
  parts: tuple[tuple[int, str], ...]

  def __init__(self, text: str):
    parts = []
    for part in text.split("+") if text != "uniform" else ():
      count, star, kind = part.rpartition("*")
      is_count = count.isdecimal() and len(count) <= 6 and int(count) > 0
      attention, _, mlp = kind.rpartition("/")
      is_known = kind in LAYER_KINDS or (
        mlp in MLP_KINDS and attention in ("", *LAYER_KINDS)
      )
      if not is_known or kind.startswith("/") or (star and not is_count):
        raise InputError(
          f"model.layer_pattern is {text!r}; it must be uniform, or the kinds "
          f"({', '.join(LAYER_KINDS)}, {', '.join(MLP_KINDS)}, or one of each "
          "joined by /) of layers in order, which repeat: local+global, "
          "5*local+global or dense+26*moe"
        )
      parts.append((int(count) if star else 1, kind))
    self.parts = tuple(parts)


class LayerChoice(ParsedOption):
  """train.init_layers.

  Attributes:
    every: N of every:N; 1 for all.
    layers: the listed layers, counted from 0; () if there is no list.
  """

  FORMS = ("all", "every:N", "N+N+...")
  every: int
  layers: tuple[int, ...]

  def __init__(self, text: str):
    every, layers = 1, ()
    number = text.removeprefix("every:")
    words = [number] if number != text else text.split("+")
    is_valid = all(w.isascii() and w.isdecimal() and len(w) < 7 for w in words)
    if number != text:
      every = int(number) if is_valid else 0
    elif text != "all":
      layers = tuple(map(int, words)) if is_valid else (1, 0)
    is_rising = list(layers) == sorted(set(layers))
    if not every or not is_rising:
      raise InputError(
        f"train.init_layers is {text!r}; it must be all, every:N with N of 1 "
        "or more, or layers of the other run in rising order, from 0, as in "
        "0+2+5"
      )
    self.every, self.layers = every, layers

  def pick(self, num_layers: int) -> list[int]:
    """Returns the indices of the layers to take, of `num_layers`."""
    return list(self.layers) or list(range(0, num_layers, self.every))


class MaskMix(ParsedOption):
  """data.mask_mix.

  Attributes:
    shares: the probability of each of MASK_ACTIONS, in that order.
  """

  FORMS = ("SHARE*ACTION+...",)
  shares: tuple[float, ...]

  def __init__(self, text: str):
    shares = dict.fromkeys(MASK_ACTIONS, 0.0)
    is_valid = True
    for part in text.split("+"):
      share, star, action = part.rpartition("*")
      is_number = re.fullmatch(r"[01]?\.?[0-9]{1,9}", share) is not None
      is_valid &= action in shares and (is_number or not star)
      if is_valid:
        shares[action] += float(share) if star else 1.0
    if not is_valid or abs(sum(shares.values()) - 1) > 1e-6:
      raise InputError(
        f"data.mask_mix is {text!r}; it must be the shares of "
        f"{', '.join(MASK_ACTIONS)}, which sum to 1, as in "
        "0.8*mask+0.1*random+0.1*keep"
      )
    self.shares = tuple(shares.values())


class RopeScaling(ParsedOption):
  """model.rope_scaling.

  Attributes:
    mechanism: none | linear | llama3 | yarn | longrope.
    numbers: none: (); linear: (factor,); llama3: (factor, original length);
      yarn: (factor, original length, multiplier of sines and cosines);
      longrope: (that multiplier, a factor for each wavelength, ...).
  """

  FORMS = (
    "none",
    "linear:FACTOR",
    "llama3:FACTOR:ORIGINAL_LEN",
    "yarn:FACTOR:ORIGINAL_LEN:MSCALE",
    "longrope:MSCALE:FACTOR:FACTOR:...",
  )
  mechanism: str
  numbers: tuple[float, ...]

  def __init__(self, text: str):
    mechanism, *numbers = text.split(":")
    wanted = {"none": 0, "linear": 1, "llama3": 2, "yarn": 3}
    wanted["longrope"] = max(2, len(numbers))
    try:
      values = tuple(float(n) for n in numbers)
    except ValueError:
      values = ()
    if (
      mechanism not in wanted
      or len(values) != wanted[mechanism]
      or not all(0 < v <= MAX_FLOAT32 for v in values)
    ):
      raise InputError(
        f"model.rope_scaling is {text!r}; it must be one of "
        f"{', '.join(self.FORMS)}"
      )
    self.mechanism, self.numbers = mechanism, values


class Remat(ParsedOption):
  """model.remat.

  Attributes:
    policy: none | full | dots | save | offload.
    names: the REMAT_NAMES given with save or offload.
  """

  FORMS = ("none", "full", "dots", "save:NAMES", "offload:NAMES")
  policy: str
  names: tuple[str, ...]

  def __init__(self, text: str):
    policy, colon, rest = text.partition(":")
    names = tuple(rest.split("+")) if colon else ()
    is_whole = policy in ("none", "full", "dots") and not colon
    is_named = policy in ("save", "offload") and set(names) <= set(REMAT_NAMES)
    if not (is_whole or (is_named and names)):
      raise InputError(
        f"model.remat is {text!r}; it must be none, full, dots, save:NAMES or "
        f"offload:NAMES, with NAMES of {', '.join(REMAT_NAMES)} joined by +"
      )
    self.policy, self.names = policy, names


class Rates(ParsedOption):
  """optim.rates.

  Attributes:
    parts: ((pattern of tree.find_names, factor), ...) in order; () for none.
  """

  FORMS = ("none", "PATTERN=FACTOR,...")
  parts: tuple[tuple[str, float], ...]

  def __init__(self, text: str):
    parts = []
    for part in text.split(",") if text != "none" else ():
      pattern, _, number = part.rpartition("=")
      try:
        factor = float(number)
      except ValueError:
        factor = -1.0
      if not pattern or not 0 <= factor <= MAX_FLOAT32:
        raise InputError(
          f"optim.rates is {text!r}; it must be none or PATTERN=FACTOR,..., "
          "with factors of 0 or more, as in embed=0,blocks/attn/*=0.5"
        )
      parts.append((pattern, factor))
    self.parts = tuple(parts)


class AdapterRanks(ParsedOption):
  """adapter.rank.

  Attributes:
    parts: ((pattern of tree.find_names, rank), ...) in order; () for none.
  """

  FORMS = ("none", "PATTERN=RANK,...")
  parts: tuple[tuple[str, int], ...]

  def __init__(self, text: str):
    parts = []
    for part in text.split(",") if text != "none" else ():
      pattern, _, number = part.rpartition("=")
      is_rank = number.isdecimal() and len(number) <= 9 and int(number) > 0
      if not pattern or not is_rank:
        raise InputError(
          f"adapter.rank is {text!r}; it must be none or PATTERN=RANK,..., "
          "with ranks of 1 or more, as in attn=8,blocks/mlp/*=16"
        )
      parts.append((pattern, int(number)))
    self.parts = tuple(parts)


class BatchRamp(ParsedOption):
  """train.batch_ramp.

  Attributes:
    parts: ((divisor of the batch size, steps), ...) in order; () for none.
  """

  FORMS = ("none", "DIVISOR@STEPS+...")
  parts: tuple[tuple[int, int], ...]

  def __init__(self, text: str):
    parts, last = [], math.inf
    for part in text.split("+") if text != "none" else ():
      divisor, at, steps = part.partition("@")
      # Ten digits hold any int32; Python refuses to convert thousands.
      is_whole = lambda n: n.isdecimal() and len(n) <= 10
      numbers = [int(n) for n in (divisor, steps) if is_whole(n)]
      if not at or len(numbers) != 2 or min(numbers) < 1 or numbers[0] >= last:
        raise InputError(
          f"train.batch_ramp is {text!r}; it must be none or "
          "DIVISOR@STEPS+..., with decreasing divisors, as in 4@100+2@200"
        )
      last = numbers[0]
      parts.append((numbers[0], numbers[1]))
    self.parts = tuple(parts)


def parse_tasks(text: str, what: str) -> list[str]:
  """Returns the tasks of lm-evaluation-harness that the option `what` names.

  Raises:
    InputError: a name is empty, or a file cannot be read.
  """
  names = [name.strip() for name in text.split(",")]
  for name in names:
    if not name:
      raise InputError(
        f"{what} is {text!r}; it must be names with a comma between"
      )
    if name.endswith(".yaml"):
      try:
        files.read_text(files.user_path(what, name))
      except files.Damage as damage:
        raise InputError(f"{what} names {name}, which {damage}") from None
  return names
