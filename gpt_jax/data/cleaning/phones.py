"""Telephone numbers in a text, by the numbering plans of phonenumbers.

A number in international form counts if it is valid in its country's plan. A
number in national form is only digits, as many other things are: it also needs
its country's grouping of digits, or a word such as "phone" before it.
"""

import functools
import re
from collections.abc import Iterator

from gpt_jax import files
from gpt_jax.exits import InputError

Span = tuple[int, int]

# Plans that are tried for numbers in national form, in this order.
REGIONS = (
  *("US", "CN", "GB", "DE", "FR", "IN", "JP", "AU", "IT", "ES", "BR", "KR"),
  *("NL", "SE", "CH", "PL", "MX", "ZA", "TW", "HK", "SG", "RU", "TR", "BE"),
)
_CANDIDATE = re.compile(
  r"(?<![A-Za-z0-9_.,/+-])(?:\+|\(\+?)?\d(?:[ \u00a0]?[().\-/ ]?[ \u00a0]?\d)"
  r"{5,16}(?![A-Za-z0-9_]|[.,:/-]\d|[%$])",
  re.ASCII,
)
_ANNOUNCED = re.compile(
  r"(?:\b(?:tel|phone|telephone|mobile|cell|call|fax|whatsapp|dial|ring|text"
  r"|hotline)\b(?: number| no| us| me| him| her)?(?: at| on| is| under)?"
  r"|电话|手机|号码|致电|传真|热线|座机|来电|拨打|微信|联系方式)"
  r"[号码是为]{0,3}[.:： （(]{0,3}$",
  re.I,
)
_AMERICAN = re.compile(
  r"(?:1[ .-])?(?:\([2-9]\d\d\) ?|([2-9]\d\d)([ .-]))[2-9]\d\d"
  r"(?(2)\2|[ .-])\d{4}"
)
_CHINESE_MOBILE = re.compile(r"1[3-9]\d(?:\d{8}|[ -]\d{4}[ -]\d{4})")
# A trunk prefix, then groups; a decimal number has no group of two digits
# before its point.
_TRUNK = re.compile(r"\(?0\d{1,4}\)?[ /-]?\d{2,8}(?:[ -]\d{2,8}){0,4}")
_FRENCH = re.compile(r"0[1-9](?:[ .-]\d\d){4}")


@functools.cache
def _library():
  try:
    import phonenumbers
  except ImportError:
    raise InputError(
      "the rule phone needs the package phonenumbers, which is not installed; "
      f"{files.pip('clean')} installs it, or leave phone out of --rules"
    ) from None
  return phonenumbers


def find_phones(text: str) -> Iterator[Span]:
  """Yields telephone numbers.

  Raises:
    InputError: phonenumbers is not installed.
  """
  _library()
  for match in _CANDIDATE.finditer(text):
    if re.search(r"\.\d\b", match[0]):  # a fraction
      continue
    number = match[0]
    if number.startswith("(") and ")" not in number:  # not of the number
      number = number[1:]
    start = match.end() - len(number)
    before = text[max(0, start - 40) : start]
    if _is_phone(number, bool(_ANNOUNCED.search(before))):
      yield start, match.end()


def normal_form(number: str) -> str:
  """Returns a number in E.164 form, or its digits if it is in no plan."""
  library = _library()
  for region in (None,) if _is_international(number) else REGIONS:
    parsed = _parse(_with_plus(number), region)
    if parsed is not None:
      return library.format_number(parsed, library.PhoneNumberFormat.E164)
  return re.sub(r"\D", "", number)


def _is_phone(number: str, is_announced: bool) -> bool:
  if _is_international(number):
    return _parse(_with_plus(number), None) is not None
  if _AMERICAN.fullmatch(number):
    return _parse(number, "US") is not None
  if _CHINESE_MOBILE.fullmatch(number):
    return _parse(number, "CN") is not None
  is_grouped = len(re.findall(r"\d+", number)) > 1
  has_trunk = _TRUNK.fullmatch(number) or _FRENCH.fullmatch(number)
  if not is_announced and not (is_grouped and has_trunk):
    return False
  return any(_parse(number, region) is not None for region in REGIONS)


def _is_international(number: str) -> bool:
  return number.lstrip("(").startswith(("+", "00"))


def _with_plus(number: str) -> str:
  return re.sub(r"^\(?00 ?", "+", number)


def _parse(number: str, region: str | None):
  """Returns the parsed number; None if it is invalid in the region's plan."""
  library = _library()
  try:
    parsed = library.parse(number, region)
  except library.NumberParseException:
    return None
  return parsed if library.is_valid_number(parsed) else None
