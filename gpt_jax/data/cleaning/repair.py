"""Repairs texts before they are filtered, and identifies their language.

Steps are applied in the order of STEPS.
"""

import functools
import re
import unicodedata
from collections.abc import Callable

from gpt_jax import files
from gpt_jax.config import nearest
from gpt_jax.exits import InputError

# Invisible characters inside words: soft hyphen, zero-width space, word joiner,
# BOM. Zero-width joiners are not among them: Persian and emoji need them.
_HIDDEN = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
_SPACES = dict.fromkeys(map(ord, "\u00a0\u2007\u202f"), " ")
_TRAILING = re.compile(r"[ \t]+$", re.M)
_BLANK = re.compile(r"\n{3,}")
# English words that carry little of what a text is about.
STOP_WORDS = frozenset(
  """a about above after again against all am an and any are as at be because
  been before being below between both but by can could did do does doing down
  during each few for from further had has have having he her here hers herself
  him himself his how i if in into is it its itself just me more most my myself
  no nor not now of off on once only or other our ours ourselves out over own
  same she should so some such than that the their theirs them themselves then
  there these they this those through to too under until up very was we were
  what when where which while who whom why will with would you your yours
  yourself yourselves""".split()
)
_STOP_WORD = re.compile(rf"\b(?:{'|'.join(sorted(STOP_WORDS))})\b[ \t]*", re.I)


def _need(extra: str) -> InputError:
  return InputError(
    f"this needs the package {extra}; install it with {files.pip('clean')}"
  )


def fix_unicode(text: str) -> str:
  """Returns a text with wrongly decoded characters repaired by ftfy.

  Quotes stay as they are, and so does HTML.
  """
  try:
    import ftfy
  except ImportError:
    raise _need("ftfy") from None
  return ftfy.fix_text(text, uncurl_quotes=False, unescape_html=False)


def normalise(text: str) -> str:
  """Returns a text in NFC, with one kind of line end and of space.

  Invisible characters, spaces at the ends of lines and repeated empty lines are
  removed. Spaces inside a line stay, as code needs them.
  """
  text = unicodedata.normalize("NFC", text)
  text = text.replace("\r\n", "\n").replace("\r", "\n")
  text = _TRAILING.sub("", text.translate(_HIDDEN).translate(_SPACES))
  return _BLANK.sub("\n\n", text)


def drop_stop_words(text: str) -> str:
  """Returns a text without English stop words, and the spaces after them."""
  return _STOP_WORD.sub("", text)


STEPS: dict[str, Callable[[str], str]] = {
  "unicode": fix_unicode,
  "normal": normalise,
  "stop_words": drop_stop_words,
}


def parse_steps(text: str) -> tuple[str, ...]:
  """Returns the steps that a comma-separated list names, in their order.

  Raises:
    InputError: a word is no step.
  """
  words = [word.strip() for word in text.split(",") if text]
  for word in words:
    if word not in STEPS:
      raise InputError(f"unknown step {word!r}; {nearest(word, STEPS)}")
  return tuple(name for name in STEPS if name in words)


class Languages:
  """Tells how likely a text is in one of some languages, by py3langid.

  Args:
    text: codes of ISO 639-1, such as "en,zh".

  Raises:
    InputError: a code is unknown to py3langid, or the package is missing.
  """

  def __init__(self, text: str):
    self.wanted = tuple(word.strip() for word in text.split(","))
    known = list(_identifier().labels)
    for word in self.wanted:
      if word not in known:
        raise InputError(f"unknown language {word!r}; {nearest(word, known)}")

  def probability(self, text: str) -> float:
    """Returns the probability of the likeliest language; 0 if unwanted."""
    found, probability = _identifier().classify(text)
    return float(probability) if found in self.wanted else 0.0


@functools.cache
def _identifier():
  try:
    from py3langid import langid
  except ImportError:
    raise _need("py3langid") from None
  return langid.LanguageIdentifier.from_model_file(
    langid.MODEL_FILE, norm_probs=True
  )
