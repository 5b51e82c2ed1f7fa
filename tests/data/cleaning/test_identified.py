"""What identifies someone is found, and little else is taken for it."""

import collections
import pathlib
import re
import sysconfig

import planted
import pytest

from gpt_jax.data.cleaning import identity, pseudonyms
from gpt_jax.exits import InputError

NEEDS_PLANS = ("phone",)
KEY = b"a key of sixteen bytes or more"


def marked(text: str, rules=tuple(identity.RULES), key=None) -> str:
  return identity.deidentify(text, rules, key, {})


def recall(documents) -> tuple[dict, dict, int]:
  """Returns ({kind: planted}, {kind: found whole}, spans beside them)."""
  total, found, extra = collections.Counter(), collections.Counter(), 0
  for text, items in documents:
    spans = identity.find(text, identity.RULES)
    for kind, start, end in items:
      rule = planted.KINDS[kind][0]
      total[kind] += 1
      found[kind] += any(
        (a <= start and end <= b and name == rule) for a, b, name in spans
      )
    extra += sum(
      not any(start <= a and b <= end for _, start, end in items)
      for a, b, _ in spans
    )
  return total, found, extra


def test_planted_values_are_found():
  pytest.importorskip("phonenumbers", reason="extra clean is not installed")
  total, found, extra = recall(planted.make(5_000, 20_000))
  assert sum(total.values()) == 20_000 and set(total) == set(planted.KINDS)
  for kind, count in total.items():
    wanted = 0.9 if kind.startswith("name") else 0.99
    assert found[kind] >= wanted * count, (kind, found[kind], count)
  assert extra <= 20


def tokens(text: str) -> int:
  return len(re.findall(r"\w+|[^\w\s]", text))


# What is in a text of the library and in wikitext is a value: its authors'
# addresses, and names. Patterned types are none there but these.
def test_texts_without_values_are_left_alone(test_data):
  pytest.importorskip("phonenumbers", reason="extra clean is not installed")
  library = pathlib.Path(sysconfig.get_paths()["stdlib"])
  code = "\n".join(p.read_text("utf-8") for p in sorted(library.glob("a*.py")))
  texts = {
    "shakespeare": (test_data / "tinyshakespeare" / "input.txt").read_text(),
    "wikitext": (test_data / "wikitext2" / "valid.txt").read_text(),
    "code": code,
  }
  patterned = [rule for rule in identity.RULES if rule not in ("name", "mail")]
  for name, text in texts.items():
    found = [text[a:b] for a, b, _ in identity.find(text, patterned)]
    assert len(found) < tokens(text) / 10_000, (name, found)
  # No dialogue of Shakespeare is a list of names of today.
  names = identity.find(texts["shakespeare"], ["name"])
  assert len(names) < 3 * tokens(texts["shakespeare"]) / 10_000


BORDERS = {
  "mail": (["a@b.co", "x.y+z@sub.ex-ample.org"], ["a@b", "@user", "a@b.c1"]),
  "ip": (
    ["8.8.4.4", "10.1.2.3", "2001:470::8:800:200c:417a", "fe80::1ff:fe23:1"],
    [
      "1.2.3",
      "1.2.3.256",
      "127.0.0.1",
      "v1.2.3.4",
      "version 1.2.3.4",
      "1.2.3.4.5",
      "a[1::2]",
    ]
    + ["12:30:45", "255.255.255.0", "::1", "192.0.2.7"],
  ),
  "mac": (
    ["00:1a:2b:3c:4d:5e", "00-1A-2B-3C-4D-5E", "001a.2b3c.4d5e"],
    ["00:1a:2b:3c:4d", "00:1a-2b:3c:4d:5e", "00:1a:2b:3c:4d:5e:6f"]
    + ["ff:ff:ff:ff:ff:ff", "0011.2233.4455"],
  ),
  "card": (
    ["4111 1111 1111 1111", "378282246310005", "5555-5555-5555-4444"],
    ["4111 1111 1111 1112", "1111 1111 1111 1117", "411111111111111"],
  ),
  "iban": (
    ["GB82 WEST 1234 5698 7654 32", "DE89370400440532013000"],
    ["GB82 WEST 1234 5698 7654 33", "DE8937040044053201300"]
    + ["XX89370400440532013000"],
  ),
  "id": (
    ["078-05-1120", "11010519491231002X", "AB123456C", "12345678Z"]
    + ["529.982.247-25", "2341 2341 2346", "SSN: 078051120", "900-70-0000"],
    ["000-05-1120", "666-05-1120", "078-00-1120", "078-05-0000"]
    + ["110105194912310021", "11010519491331002X", "GB123456C", "AB123456E"]
    + ["12345678A", "529.982.247-26", "2341 2341 2347", "078051120"]
    + ["900-40-0000"],
  ),
  "phone": (
    ["+44 20 7946 0958", "(212) 736-5000", "13812345678", "030 2345678"]
    + ["0033 1 42 68 53 00"],
    ["1914-1918", "0.1234567890", "2736500012", "+44 20 7946", "23812345678"]
    + ["12-345-678"],
  ),
  "secret": (
    ["AKIAIOSFODNN7EXAMPLE", "ghp_" + "aB3" * 12, "hf_" + "aBcDeFgHiJ" * 4],
    ["AKIAIOSFODNN7", "ghp_short", "sk-learn", "da39a3ee5e6b4b0d3255bfef9560"],
  ),
  "name": (
    ["John Smith", "Mary Q. Jones", "Smith, Mary", "李明先生", "记者王芳"],
    ["New York", "Victoria Park", "Mary Queen", "San Diego Zoo", "王国", "高兴"]
    + ["Grace Period", "Will Power"],
  ),
}


@pytest.mark.parametrize("rule", BORDERS)
def test_each_rule_ends_where_its_definition_does(rule):
  if rule in NEEDS_PLANS:
    pytest.importorskip("phonenumbers", reason="extra clean is not installed")
  yes, no = BORDERS[rule]
  mark = f"[{identity.RULES[rule].mark}]"
  for value in yes:
    assert mark in marked(f"it: {value}, so", [rule]), value
    assert mark in marked(f"是：{value}。", [rule]), value
  for value in no:
    assert marked(f"it: {value}, so", [rule]) == f"it: {value}, so", value


def test_passwords_count_where_a_name_announces_them():
  rules = ["secret"]
  for text in ('api_key = "q9Zk3LmX0pT7vB2n"', "password: hunter2-Xk99!"):
    assert "[SECRET]" in marked(text, rules), text
  url = "postgres://admin:s3cr3tPw@db.example.org/x"
  assert marked(url, rules) == "postgres://admin:[SECRET]@db.example.org/x"
  for text in (
    "password = getpass.getpass()",
    "token: str",
    "secret: example",
    "password: Aa1!Aa1!Aa1!Aa1!",
  ):
    assert marked(text, rules) == text
  pem = "-----BEGIN PRIVATE KEY-----\nMIIabc\n-----END PRIVATE KEY-----"
  assert marked(f"a\n{pem}\nb", rules) == "a\n[SECRET]\nb"


def test_the_first_rule_of_the_table_has_text_that_two_rules_claim():
  pytest.importorskip("phonenumbers", reason="extra clean is not installed")
  card = "4111 1111 1111 1111"
  assert marked(card) == "[CARD]"
  assert list(identity.RULES["phone"].find("13812345678@163.com"))
  assert marked("13812345678@163.com") == "[EMAIL]"
  found = identity.find(f"x {card} a@b.co", identity.RULES)
  assert [rule for _, _, rule in found] == ["card", "mail"]


def test_counts_are_of_each_rule():
  counts = {"mail": 1}
  text = "a@b.co, c@d.co and 8.8.8.8"
  done = identity.deidentify(text, ["mail", "ip"], None, counts)
  assert done == "[EMAIL], [EMAIL] and [IP]"
  assert counts == {"mail": 3, "ip": 1}


def test_a_pseudonym_is_of_the_value_and_the_key():
  rules = ["mail", "card"]
  first = marked("A@b.co", rules, KEY)
  assert re.fullmatch(r"\[EMAIL-[0-9a-f]{16}\]", first)
  assert marked("see a@B.co.", rules, KEY) == f"see {first}."
  assert marked("c@b.co", rules, KEY) != first
  assert marked("a@b.co", rules, KEY + b"!") != first
  spaced, plain = "4111 1111 1111 1111", "4111111111111111"
  assert marked(spaced, rules, KEY) == marked(plain, rules, KEY)
  # HMAC-SHA256 of RFC 2104, written out.
  import hashlib

  block = KEY.ljust(64, b"\0")
  pad = lambda byte: bytes(b ^ byte for b in block)
  inner = hashlib.sha256(pad(0x36) + b"EMAIL\0a@b.co").digest()
  outer = hashlib.sha256(pad(0x5C) + inner).hexdigest()
  assert first == f"[EMAIL-{outer[:16]}]"


def test_spellings_of_a_telephone_number_have_one_pseudonym():
  pytest.importorskip("phonenumbers", reason="extra clean is not installed")
  spellings = ("+1 212 736 5000", "(212) 736-5000", "001 212-736-5000")
  assert len({marked(text, ["phone"], KEY) for text in spellings}) == 1


def test_a_key_is_long_enough_and_its_newline_no_part_of_it(tmp_path):
  path = tmp_path / "key"
  path.write_bytes(KEY + b"\n")
  assert pseudonyms.read_key(str(path)) == KEY
  path.write_bytes(b"x" * 15)
  with pytest.raises(InputError, match="holds 15 bytes; it must hold 16"):
    pseudonyms.read_key(str(path))
  with pytest.raises(InputError, match="does not exist"):
    pseudonyms.read_key(str(tmp_path / "none"))
  path.write_bytes(bytes(32))
  with pytest.raises(InputError, match="holds zero bytes alone"):
    pseudonyms.read_key(str(path))


def test_rules_are_named_and_kept_in_their_order():
  assert identity.parse_rules("mail, secret") == ("secret", "mail")
  assert identity.parse_rules("none") == ()
  with pytest.raises(InputError, match="unknown rule 'mial'; did you mean mai"):
    identity.parse_rules("mial")


@pytest.mark.parametrize("char", list("a1-.:@+ A(0") + ["张", "a.", "A ", "1 "])
def test_long_runs_of_a_character_take_linear_time(char):
  """A run that a pattern searches again from each of its places takes hours."""
  pytest.importorskip("phonenumbers", reason="extra clean is not installed")
  import time

  start = time.process_time()
  identity.find(char * (100_000 // len(char)), identity.RULES)
  assert time.process_time() - start < 3
