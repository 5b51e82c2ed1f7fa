"""Check digits of cards, accounts and national identity numbers.

Each function takes the digits without separators and returns whether the
check digits fit. A random number passes one mod-10 check in ten.
"""

# Verhoeff's multiplication in the dihedral group of order 10, and the powers
# of his permutation of digits.
_PRODUCT = [
  [(a + b) % 5 if b < 5 else (a + b - 5) % 5 + 5 for b in range(10)]
  if a < 5
  else [(a - b) % 5 + 5 if b < 5 else (a - b) % 5 for b in range(10)]
  for a in range(10)
]
_PERMUTED = [list(range(10)), [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]]
while len(_PERMUTED) < 8:
  _PERMUTED.append([_PERMUTED[1][d] for d in _PERMUTED[-1]])


def luhn(digits: str) -> bool:
  """Cards, ISO/IEC 7812-1: every second digit from the right is doubled."""
  total = 0
  for place, char in enumerate(reversed(digits)):
    value = int(char) << (place & 1)
    total += value - 9 if value > 9 else value
  return total % 10 == 0


def verhoeff(digits: str) -> bool:
  """Aadhaar: Verhoeff 1969, which detects swaps of neighbouring digits."""
  check = 0
  for place, char in enumerate(reversed(digits)):
    check = _PRODUCT[check][_PERMUTED[place % 8][int(char)]]
  return check == 0


def mod_97(account: str) -> bool:
  """IBAN, ISO 13616: the rearranged number, letters as 10 to 35, is 1 mod 97.

  Args:
    account: upper-case letters and digits.
  """
  moved = account[4:] + account[:4]
  return int("".join(str(int(char, 36)) for char in moved)) % 97 == 1


def mod_11_2(number: str) -> bool:
  """Chinese resident id, GB 11643 (ISO 7064 MOD 11-2); X stands for 10."""
  total = 0
  for char in number:
    total = 2 * total + (10 if char == "X" else int(char))
  return total % 11 == 1


def weighted(digits: str, weights: tuple[int, ...]) -> int:
  """Returns the sum of digit times weight."""
  return sum(int(d) * w for d, w in zip(digits, weights, strict=False))


def cpf(digits: str) -> bool:
  """Brazil: two check digits, each a sum mod 11."""
  if len(set(digits)) == 1:
    return False
  for end in (9, 10):
    total = weighted(digits[:end], tuple(range(end + 1, 1, -1)))
    if total * 10 % 11 % 10 != int(digits[end]):
      return False
  return True


def pesel(digits: str) -> bool:
  """Poland: ten digits by 1 3 7 9 and the check digit sum to 0 mod 10."""
  return weighted(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0


def rrn(digits: str) -> bool:
  """South Korea, numbers given before October 2020."""
  total = weighted(digits, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5))
  return (11 - total % 11) % 10 == int(digits[12])


def codice_fiscale(code: str) -> bool:
  """Italy: the last letter is a sum over the first 15 characters mod 26."""
  odd = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14)
  odd += (16, 10, 22, 25, 24, 23)
  total = 0
  for place, char in enumerate(code[:15]):
    value = int(char) if char.isdigit() else ord(char) - 65
    total += value if place % 2 else odd[value]
  return total % 26 == ord(code[15]) - 65
