"""Names of people in a text, by lists and capitals, in English and Chinese.

English: a title and capitalised words, or a listed given name and a surname.
Chinese: a family name and one or two characters of given names, if the text
around them suggests a name. A given name alone does not count, as it is too
often an ordinary word.
"""

import re
from collections.abc import Iterator

from gpt_jax.data.cleaning import chinese_names
from gpt_jax.data.cleaning.name_lists import AMBIGUOUS, GIVEN, SURNAMES

Span = tuple[int, int]

_PART = r"(?:Mc|Mac|O['’]|De|La|Le|Fitz)?[A-Z][a-z]+"
_WORD = rf"(?:{_PART}(?:['’-]{_PART})*)"
# After these, a given name is part of a place name: San Diego, Mount Isa.
_PLACES = re.compile(
  r"(?:San|Santa|St\.?|Saint|Fort|Mount|Mt\.|Lake|Port|New|El|Los|Cape) $"
)
_FULL = re.compile(
  rf"(?<![\w'’@./-])(?P<given>{_WORD})(?P<middle>(?: [A-Z]\.?(?= )|"
  rf"[ -]{_WORD}(?= [A-Z]))?) "
  rf"(?P<last>(?:(?:van|von|de|da|del|der|den|la|bin) ){{0,2}}{_WORD})"
  r"(?![\w@]|[-/]\w)"
)
_LISTED = re.compile(
  rf"(?<![\w'’@./-])(?P<last>{_WORD}), (?P<given>{_WORD})(?: [A-Z]\.)?(?![\w@])"
)
_TITLED = re.compile(
  r"(?<![\w.])(?:Mr|Mrs|Ms|Dr|Prof|Professor|Miss|Doctor)\.? "
  rf"(?P<name>{_WORD}(?: [A-Z]\.)?(?: {_WORD}){{0,2}})(?![\w@])"
)
# Words after a name that belongs to a place, a prize or a building.
_OTHERS = frozenset(
  """
academy airport amendment arena avenue award awards bay beach boulevard bowl
bridge building canal castle cathedral centre center chapel church city club
college company corporation council county court creek cup day district
division drive estate falls festival field films foundation garden gardens
group hall harbor harbour heights high highway hill hills hospital hotel house
inc institute island islands isle lake lane library line ltd market medal
mountain mountains museum national north old opera palace park pass peninsula
place plaza point port prison prize province record records region river road
school shield show society south square stadium station street studios system
territory theatre theater theorem tower town trail trophy trust tunnel
university valley village west
""".split()
)
# Ends of abstract nouns and adjectives, capitalised in titles.
_ENDS = re.compile(
  r"(?:tion|sion|ment|ance|ence|ity|ness|ism|ings?|ship|hood|ics|ican|ian|ese"
  r"|ology|ological|ward|ways?|works?|games?|knights)$"
)
# Capitalised words that follow a given name and are no surname.
_NOT_SURNAMES = _OTHERS | frozenset(
  """
a after again all also and are as at august be before but by can could day
december did do does each february first for from had has have he her here his
how i if in into is it january july june king last lord made march may monday
most my new no not november now october of on one or our out queen said
saturday september she should so sunday that the then there these they this
those thou thursday thy to tuesday two was we wednesday were what when where
which who why will with would you your friday april ii iii iv vi vii viii jr
duke earl prince minister president governor general captain colonel tree
corners dynasty treaty frontier union padres arbor scout america australia
austria belgium brazil britain canada china denmark egypt england europe
france germany greece india ireland israel italy japan mexico norway poland
portugal russia scotland spain sweden switzerland turkey wales jan feb mar apr
jun jul aug sep oct nov dec
""".split()
)


def find_names(text: str) -> Iterator[Span]:
  """Yields full names, and names after a title."""
  for match in _TITLED.finditer(text):
    if match["name"].split()[0].lower() not in _NOT_SURNAMES:
      yield match.span("name")
  words, place = None, 0
  while match := _FULL.search(text, place):
    is_name = _is_listed(match)
    if is_name is None:
      # It is no surname if the text also has the word in lower case.
      words = words or frozenset(re.findall("[a-z]{3,}", text)) | {""}
      last = match["last"].split()[-1].lower()
      is_name = last not in words and not _ENDS.search(last)
    # If it is no name, one may begin at its second word: "When Mary Jones".
    place = match.end() if is_name else match.end("given")
    if is_name:
      yield match.span()
  for match in _LISTED.finditer(text):
    last, given = match["last"].lower(), match["given"].lower()
    if last in SURNAMES and last not in GIVEN and given in GIVEN:
      yield match.span()
  yield from chinese_names.find_chinese_names(text)


def _is_listed(match: re.Match) -> bool | None:
  """Returns whether it is a name; None if just the given name is listed."""
  given, last = match["given"].lower(), match["last"].split()[-1].lower()
  given = given.split("-")[0]
  parts = re.sub("['’]", "", last).split("-")
  is_surname = any(part in SURNAMES for part in parts)
  before = match.string[max(0, match.start() - 6) : match.start()]
  if _PLACES.search(before):
    return False
  if given in AMBIGUOUS:
    return is_surname and last not in _OTHERS
  if given not in GIVEN or (last in _NOT_SURNAMES and not is_surname):
    return False
  middle = match["middle"].strip(" -").lower()
  if middle in _NOT_SURNAMES and len(middle) > 1:
    return False
  after = re.match(r" ([A-Z][a-z]+)", match.string[match.end() :][:24])
  if after is not None and after[1].lower() in _OTHERS:
    return False
  return True if is_surname else None
