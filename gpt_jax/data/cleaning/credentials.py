"""Keys, tokens and passwords in a text.

Services give their keys a prefix and a length. Other secrets count only if a
name such as `api_key` is set to a random string: hashes and ids, of which code
is full, have the same entropy.
"""

import collections
import math
import re
from collections.abc import Iterator

Span = tuple[int, int]

# Forms that services document for their keys.
_KEYS = {
  "aws": r"(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}",
  "github": r"gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9_]{60,100}",
  "gitlab": r"gl(?:pat|dt|rt)-[A-Za-z0-9_-]{20,64}",
  "slack": r"xox[abeoprs]-[A-Za-z0-9-]{10,250}",
  "google": r"AIza[A-Za-z0-9_-]{35}|GOCSPX-[A-Za-z0-9_-]{28}",
  "stripe": r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,247}",
  "llm": r"sk-(?:[a-z]{2,12}[0-9]{0,2}-){0,3}[A-Za-z0-9_-]{20,180}",
  "hub": r"hf_[A-Za-z]{30,40}|hf_[A-Za-z0-9]{34,40}",
  "npm": r"npm_[A-Za-z0-9]{36}",
  "pypi": r"pypi-[A-Za-z0-9_-]{50,250}",
  "sendgrid": r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}",
  "twilio": r"(?:SK|AC)[0-9a-f]{32}",
  "telegram": r"\d{8,10}:AA[A-Za-z0-9_-]{33}",
  "digitalocean": r"do[opr]_v1_[0-9a-f]{64}",
  "jwt": r"eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\."
  r"[A-Za-z0-9_-]{20,1000}",
}
_KEY = re.compile(
  r"(?<![A-Za-z0-9_])(?:" + "|".join(_KEYS.values()) + r")(?![A-Za-z0-9_])"
)
_PEM = re.compile(
  r"-----BEGIN ((?:[A-Z0-9]+ ){0,3})PRIVATE KEY((?: BLOCK)?)-----"
  r"[\s\S]{1,20000}?-----END \1PRIVATE KEY\2-----"
)
_URL_PASSWORD = re.compile(
  r"(?<=://)[^\s/:@'\"<>{}$%]{1,64}:([^\s/:@'\"<>{}$]{3,64})(?=@[\w.-])"
)
_NAMED = re.compile(
  r"(?:pass(?:word|wd|phrase)?|pwd|secret|token|api[_-]?key|access[_-]?key"
  r"|auth[_-]?key|private[_-]?key|密码|口令|密钥)['\"]?\s{0,3}"
  r"(?::=|=>|[:=：]|is)\s{0,3}['\"]?([A-Za-z0-9+/_.!@#$%^&*~=-]{8,200})",
  re.I,
)
# In bits per character: a random string of 16 letters and digits has about
# 3.7, English words about 2.8.
MIN_ENTROPY = 3.0


def find_secrets(text: str) -> Iterator[Span]:
  """Yields keys of services, private keys, and secrets after a telling name.

  The span of a password in a URL or after a name is the password alone.
  """
  yield from (m.span() for m in _PEM.finditer(text))
  yield from (m.span() for m in _KEY.finditer(text))
  if "://" in text:
    yield from (m.span(1) for m in _URL_PASSWORD.finditer(text))
  for match in _NAMED.finditer(text):
    start, end = match.span(1)
    # Punctuation at the end may belong to the sentence.
    value = match[1].rstrip(".=!")
    if is_random(value):
      yield start, start + len(value) if match[1][-1] in ".!" else end


def is_random(value: str) -> bool:
  """Returns whether a string looks randomly generated.

  It mixes digits with letters of both cases or with signs, is no dotted name
  or path of code, and has about MIN_ENTROPY bits per character.
  """
  if len(value) < 8 or re.fullmatch(r"[A-Za-z_]+(?:[._/-][A-Za-z_]+)*", value):
    return False
  kinds = [any(map(test, value)) for test in (str.isdigit, str.islower)]
  kinds += [any(map(str.isupper, value)), bool(re.search(r"[^\w.]", value))]
  if not kinds[0] or sum(kinds) < (2 if len(value) >= 20 else 3):
    return False
  return entropy(value) >= MIN_ENTROPY - (0.5 if len(value) < 12 else 0)


def entropy(value: str) -> float:
  """Returns the entropy of a string's own characters, in bits per character."""
  counts = collections.Counter(value).values()
  return -sum(n / len(value) * math.log2(n / len(value)) for n in counts)
