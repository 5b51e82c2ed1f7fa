"""Card numbers, bank accounts and national identity numbers in a text.

A candidate counts if its form, its issuer or country and its check digits
fit. Numbers without check digits (US, UK) need their usual separators, or the
name of the number before them.
"""

import datetime
import re
from collections.abc import Iterator

from gpt_jax.data.cleaning import checksums

Span = tuple[int, int]

_LEFT, _RIGHT = r"(?<![A-Za-z0-9_])", r"(?![A-Za-z0-9_])"
_CARD = re.compile(
  r"(?<![A-Za-z0-9_.+-])\d(?:[ -]?\d){12,18}(?![A-Za-z0-9_]|[.-]\d)", re.ASCII
)
# (prefixes of the issuer, digits in a prefix, lengths of a number): ISO 7812.
_ISSUERS = [
  (range(4, 5), 1, (13, 16, 19)),  # Visa
  (range(51, 56), 2, (16,)),  # Mastercard
  (range(2221, 2721), 4, (16,)),  # Mastercard
  (range(34, 38, 3), 2, (15,)),  # American Express: 34, 37
  (range(6011, 6012), 4, (16, 19)),  # Discover
  (range(644, 660), 3, (16, 19)),  # Discover
  (range(3528, 3590), 4, (16, 19)),  # JCB
  (range(62, 63), 2, (16, 17, 18, 19)),  # UnionPay
  (range(300, 306), 3, (14, 16)),  # Diners Club
  (range(36, 40), 2, (14, 16)),  # Diners Club
]
_IBAN = re.compile(
  _LEFT + r"[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?"
)
# Number of characters of an IBAN by country, from the SWIFT registry.
_IBAN_LENGTHS = {
  length: countries.split()
  for length, countries in {
    15: "NO",
    16: "BE",
    18: "DK FI FO GL NL",
    19: "MK SI",
    20: "AT BA EE KZ LT LU XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "PT LY",
    26: "IS TR",
    27: "FR GR IT MC MR SM BI DJ",
    28: "AL AZ BY CY DO GT HU LB PL NI",
    29: "BR EG PS QA UA",
    30: "JO KW MU",
    31: "MT SC",
    32: "LC",
    33: "RU",
  }.items()
}
_LENGTH_OF = {c: n for n, countries in _IBAN_LENGTHS.items() for c in countries}


def find_cards(text: str) -> Iterator[Span]:
  """Yields card numbers with a known issuer, its length and a valid check."""
  for match in _CARD.finditer(text):
    digits = re.sub(r"\D", "", match[0])
    if len(set(digits)) > 1 and _is_issued(digits) and checksums.luhn(digits):
      yield match.span()


def _is_issued(digits: str) -> bool:
  return any(
    int(digits[:count]) in numbers and len(digits) in lengths
    for numbers, count, lengths in _ISSUERS
  )


def find_ibans(text: str) -> Iterator[Span]:
  """Yields IBANs that have the length of their country and a valid check."""
  for match in _IBAN.finditer(text):
    wanted = _LENGTH_OF.get(match[0][:2])
    if wanted is None:
      continue
    # Words in capitals may follow the number, so it ends at its length.
    places = [i for i, char in enumerate(match[0]) if char.isalnum()]
    if len(places) < wanted:
      continue
    end = places[wanted - 1] + 1
    rest = text[match.start() + end : match.start() + end + 1]
    number = re.sub("[ -]", "", match[0][:end])
    if not (rest.isascii() and rest.isalnum()) and checksums.mod_97(number):
      yield match.start(), match.start() + end


def _is_date(year: int, month: int, day: int) -> bool:
  try:
    return 1850 < datetime.date(year, month, day).year < 2100
  except ValueError:
    return False


def _is_chinese(number: str) -> bool:
  provinces = "11-15 21-23 31-37 41-46 50-54 61-65 71-71 81-83"
  borders = [part.split("-") for part in provinces.split()]
  return (
    any(low <= number[:2] <= high for low, high in borders)
    and _is_date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    and checksums.mod_11_2(number)
  )


def _is_american(number: str) -> bool:
  """Social security numbers as given since 2011, and tax numbers (ITIN)."""
  area, group, serial = number[:3], number[3:5], number[5:]
  if area[0] == "9":
    return 50 <= int(group) <= 65 or 70 <= int(group) <= 99
  return area not in ("000", "666") and group != "00" and serial != "0000"


def _is_british(number: str) -> bool:
  return number[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def _is_spanish(number: str) -> bool:
  body = number[:-1].translate(str.maketrans("XYZ", "012"))
  return "TRWAGMYFPDXBNJZSQVHLCKE"[int(body) % 23] == number[-1]


def _is_french(number: str) -> bool:
  body = number[:13].replace("2A", "19").replace("2B", "18")
  return int(number[13:]) == 97 - int(body) % 97


def _is_korean(number: str) -> bool:
  century = {"1": 19, "2": 19, "3": 20, "4": 20, "5": 19, "6": 19}
  year = century.get(number[6], 20) * 100 + int(number[:2])
  return _is_date(year, int(number[2:4]), int(number[4:6])) and checksums.rrn(
    number
  )


def _is_polish(number: str) -> bool:
  month = int(number[2:4])
  year = {0: 1900, 1: 2000, 4: 1800}.get(month // 20, 0) + int(number[:2])
  is_date = _is_date(year, month % 20, int(number[4:6]))
  return is_date and checksums.pesel(number)


def _is_swedish(number: str) -> bool:
  digits = number[-10:]
  year = 1900 + int(digits[:2])
  is_date = _is_date(year, int(digits[2:4]), int(digits[4:6]))
  return is_date and checksums.luhn(digits)


# {country: (form, check of the characters without separators)}
_NATIONAL = {
  "CN": (r"[1-8]\d{5}(?:18|19|20)\d{9}[\dXx]", _is_chinese),
  "US": (r"\d{3}(?P<us>[- ])\d{2}(?P=us)\d{4}", _is_american),
  "GB": (
    r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]",
    _is_british,
  ),
  "ES": (r"(?:\d{8}|[XYZ]-?\d{7})-?[A-HJ-NP-TV-Z]", _is_spanish),
  "FR": (
    r"[12] ?\d\d ?(?:0[1-9]|1[0-2]) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d",
    _is_french,
  ),
  "IT": (
    r"[A-Z]{6}\d\d[A-EHLMPR-T]\d\d[A-Z]\d{3}[A-Z]",
    checksums.codice_fiscale,
  ),
  "BR": (r"\d{3}\.\d{3}\.\d{3}-\d\d", checksums.cpf),
  "IN": (r"[2-9]\d{3}(?P<gap>[- ])\d{4}(?P=gap)\d{4}", checksums.verhoeff),
  "KR": (r"\d{6}-[1-6]\d{6}", _is_korean),
  "PL": (r"\d{11}", _is_polish),
  "SE": (r"(?:19|20)?\d{6}[-+]\d{4}", _is_swedish),
}
_IDS = re.compile(
  r"(?<![A-Za-z0-9_.+-])(?:"
  + "|".join(f"(?P<{name}>{form})" for name, (form, _) in _NATIONAL.items())
  + r")(?![A-Za-z0-9_]|[.-]\d)",
  re.ASCII,
)
_NAMED_SSN = re.compile(
  r"\b(?:SSN|social security(?: number| no\.?)?)\W{1,3}(?:is )?(\d{9})(?!\d)",
  re.I | re.ASCII,
)


def find_ids(text: str) -> Iterator[Span]:
  """Yields identity and tax numbers of the countries of the table above."""
  for match in _IDS.finditer(text):
    _, check = _NATIONAL[str(match.lastgroup)]
    if check(re.sub("[^0-9A-Z]", "", match[0].upper())):
      yield match.span()
  for match in _NAMED_SSN.finditer(text):
    if _is_american(match[1]):
      yield match.span(1)
