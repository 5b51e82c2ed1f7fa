"""Mail addresses, IP addresses and hardware addresses in a text.

Borders are of ASCII letters and digits: Chinese writes no spaces, so the
character before an address may be any other letter.
"""

import ipaddress
import re
from collections.abc import Iterator

Span = tuple[int, int]

_MAIL = re.compile(
  r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_%+][A-Za-z0-9._%+-]{0,63}@"
  r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.)+[A-Za-z]{2,24}"
  r"(?![A-Za-z0-9_-])"
)
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(
  rf"(?<![A-Za-z0-9_.-])(?:{_OCTET}\.){{3}}{_OCTET}"
  r"(?![A-Za-z0-9_]|\.[A-Za-z0-9]|-[A-Za-z0-9])",
  re.ASCII,
)
# Text before a number of four parts which is a version.
_VERSION = re.compile(r"(?:version|release|\bver|\bv|版本)[.:=\s]*$", re.I)
_IPV6 = re.compile(
  r"(?<![A-Za-z0-9_:.])(?=[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:)"
  r"[0-9A-Fa-f:]{4,39}(?:(?<=:)(?:\d{1,3}\.){3}\d{1,3})?(?![A-Za-z0-9_:])",
  re.ASCII,
)
# RFC 5737 and RFC 3849.
_EXAMPLES = [
  ipaddress.ip_network(net)
  for net in (
    *("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"),
    "2001:db8::/32",
  )
]
_MAC = re.compile(
  r"(?<![A-Za-z0-9_:.-])(?:[0-9A-F]{2}([:-])(?:[0-9A-F]{2}\1){4}[0-9A-F]{2}"
  r"|[0-9A-F]{4}\.[0-9A-F]{4}\.[0-9A-F]{4})(?![A-Za-z0-9_]|[:-][0-9A-F])",
  re.I | re.ASCII,
)


def find_mail(text: str) -> Iterator[Span]:
  """Yields mail addresses."""
  if "@" in text:
    yield from (m.span() for m in _MAIL.finditer(text))


def find_mac(text: str) -> Iterator[Span]:
  """Yields hardware addresses in the forms of IEEE 802 and of Cisco."""
  for match in _MAC.finditer(text):
    digits = re.sub("[^0-9a-f]", "", match[0].lower())
    # A single repeated digit is a placeholder or the broadcast address; a
    # dotted form with only decimal digits is a number.
    if len(set(digits)) > 1 and (match[1] or not digits.isdigit()):
      yield match.span()


def find_ip(text: str) -> Iterator[Span]:
  """Yields addresses of machines, IPv4 and IPv6.

  Addresses that are the same on every machine identify none: unspecified,
  loopback, multicast, netmasks, and those set aside for documentation.
  """
  for match in _IPV4.finditer(text):
    before = text[max(0, match.start() - 12) : match.start()]
    if not _VERSION.search(before) and _is_of_machine(match[0]):
      yield match.span()
  if text.count(":") < 2:
    return
  for match in _IPV6.finditer(text):
    found = match[0]
    # A colon at the end is of the sentence, except in "::".
    if found.endswith(":") and not found.endswith("::"):
      found = found[:-1]
    groups = [g for g in found.split(":") if g]
    # Python's slices and times look like short addresses: a[1::2].
    is_long = len(groups) > 2 or bool(groups) and len(groups[0]) > 2
    if is_long and any(len(g) > 2 for g in groups) and _is_of_machine(found):
      yield match.start(), match.start() + len(found)


def _is_of_machine(text: str) -> bool:
  try:
    address = ipaddress.ip_address(text)
  except ValueError:
    return False
  if address.is_loopback or address.is_unspecified or address.is_multicast:
    return False
  if text.endswith("::") or any(address in net for net in _EXAMPLES):
    return False
  return address.version == 6 or int(address) >> 24 not in (0, 255)
