"""Makes documents in English and Chinese with values that identify someone.

It shares no code, no table and no list with gpt_jax/data/cleaning: check
digits are found by their published tables, names are lists of its own.
"""

import base64
import random
import string

DIGITS, UPPER = string.digits, string.ascii_uppercase
ALNUM = string.ascii_letters + string.digits


def some(rng: random.Random, letters: str, count: int) -> str:
  return "".join(rng.choice(letters) for _ in range(count))


# Values


def mail(rng):
  names = ("anna.k", "bob_92", "c.d-e", "zhangwei", "info+news", "x7", "Tom")
  hosts = ("example.org", "mail.co.uk", "163.com", "qq.com", "a-b.museum")
  return f"{rng.choice(names)}{rng.randrange(999)}@{rng.choice(hosts)}"


# Numbers of subscribers by country, as their people write them: # is any
# digit, N is 2 to 9.
PHONES = (
  """
+1 415 555 ####;(212) N55-####;415-N55-####;312.N55.####;+1-646-N55-####
+44 20 7946 0###;020 7946 0###;+44 7911 123###;07911 123###;0161 496 0###
+86 138 #### ####;139########;159 #### ####;010-6N## ####;+86 21 6N## ####
+49 30 N######;030 N######;+49 151 N#######;+33 1 42 ## ## ##;01 42 ## ## ##
06 12 ## ## ##;+81 3 3N## ####;03-3N##-####;+81 90 1N## ####;090-1N##-####
+91 98N## #####;+61 2 9N## ####;+61 412 ### ###;0412 ### ###;+39 06 69## ####
+34 612 ## ## ##;+55 11 9N###-####;+82 10 N### ####;010-N###-####
+7 495 N##-##-##;+31 20 N## ####;+46 70 N## ## ##;+41 44 N## ## ##
+48 512 ### ###;+52 55 5N## ####;+65 9N## ####;+852 9N## ####;+886 912 ### ###
+27 82 N## ####;+90 532 N## ## ##;+32 475 N# ## ##;+64 21 N## ###
+353 87 N## ####;+45 20 N# ## ##;+47 412 ## ###;+358 40 N## ####
+351 912 ### ###
""".replace("\n", ";")
  .strip(";")
  .split(";")
)


def phone(rng):
  form = rng.choice(PHONES)
  form = "".join(rng.choice("23456789") if c == "N" else c for c in form)
  return "".join(rng.choice(DIGITS) if c == "#" else c for c in form)


def ipv4(rng):
  first = rng.choice([n for n in range(1, 224) if n != 127])
  rest = [rng.randrange(256) for _ in range(2)] + [rng.randrange(1, 255)]
  if (first, *rest[:2]) in ((192, 0, 2), (198, 51, 100), (203, 0, 113)):
    return ipv4(rng)
  return ".".join(map(str, (first, *rest)))


def ipv6(rng):
  groups = [f"{rng.randrange(1, 65536):x}" for _ in range(8)]
  groups[0] = rng.choice(["2400", "2a02", "2607", "fe80", "fd12"])
  if rng.random() < 0.5:
    start = rng.randrange(1, 5)
    count = rng.randrange(2, 7 - start)
    left, right = groups[:start], groups[start + count :]
    return ":".join(left) + "::" + ":".join(right)
  text = ":".join(groups)
  return text.upper() if rng.random() < 0.3 else text


def mac(rng):
  hexes = [some(rng, "0123456789abcdef", 2) for _ in range(6)]
  text = rng.choice([":", "-"]).join(hexes)
  return text.upper() if rng.random() < 0.5 else text


DOUBLED = {"0": 0, "1": 2, "2": 4, "3": 6, "4": 8, "5": 1, "6": 3, "7": 5}
DOUBLED |= {"8": 7, "9": 9}


def with_luhn(body: str) -> str:
  total = sum(DOUBLED[c] for c in body[::-2]) + sum(map(int, body[-2::-2]))
  return body + str(-total % 10)


def card(rng):
  prefix, length = rng.choice(
    [("4", 16), ("52", 16), ("37", 15), ("6011", 16), ("3530", 16)]
    + [("62", 16), ("62", 19), ("2221", 16), ("36", 14)]
  )
  number = with_luhn(prefix + some(rng, DIGITS, length - len(prefix) - 1))
  if length != 16 or rng.random() < 0.4:
    return number
  sign = rng.choice(" -")
  return sign.join(number[i : i + 4] for i in range(0, 16, 4))


IBANS = {"DE": "9" * 18, "GB": "AAAA" + "9" * 14, "FR": "9" * 20 + "A99"}
IBANS |= {"NL": "AAAA" + "9" * 10, "ES": "9" * 20, "CH": "9" * 17}
IBANS |= {"NO": "9" * 11, "IT": "A" + "9" * 22, "PL": "9" * 24}


def iban(rng):
  country = rng.choice(sorted(IBANS))
  body = "".join(
    rng.choice(UPPER if c == "A" else DIGITS) for c in IBANS[country]
  )
  number = "".join(str(ord(c) - 55) if c > "9" else c for c in body + country)
  text = f"{country}{98 - int(number + '00') % 97:02d}{body}"
  if rng.random() < 0.5:
    return text
  return " ".join(text[i : i + 4] for i in range(0, len(text), 4))


def id_us(rng):
  area = rng.choice([n for n in range(1, 900) if n != 666])
  return f"{area:03d}-{rng.randrange(1, 100):02d}-{rng.randrange(1, 9999):04d}"


def id_cn(rng):
  area = rng.choice(["110105", "310104", "440305", "510107", "650102"])
  year, month = rng.randrange(1940, 2016), rng.randrange(1, 13)
  born = f"{year}{month:02d}{rng.randrange(1, 29):02d}"
  body = f"{area}{born}{rng.randrange(1000):03d}"
  weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
  rest = sum(int(d) * w for d, w in zip(body, weights, strict=True)) % 11
  return body + "10X98765432"[rest]


# Of the dihedral group, and Verhoeff's permutations, as his tables print them.
D5 = "0123456789 1234067895 2340178956 3401289567 4012395678 5987604321"
D5 = (D5 + " 6598710432 7659821043 8765932104 9876543210").split()
P8 = "0123456789 1576283094 5803796142 8916043527 9453126870 4286573901"
P8 = (P8 + " 2793806415 7046913258").split()


def aadhaar(rng):
  body = rng.choice("23456789") + some(rng, DIGITS, 10)
  for last in DIGITS:
    check = 0
    for i, c in enumerate((body + last)[::-1]):
      check = int(D5[check][int(P8[i % 8][int(c)])])
    if check == 0:
      text = body + last
      return f"{text[:4]} {text[4:8]} {text[8:]}"


def cpf(rng):
  text = some(rng, DIGITS, 9)
  for count in (10, 11):
    total = sum(int(d) * (count - i) for i, d in enumerate(text))
    text += str(0 if total % 11 < 2 else 11 - total % 11)
  return f"{text[:3]}.{text[3:6]}.{text[6:9]}-{text[9:]}"


def born(rng) -> str:
  return f"{rng.randrange(50, 99)}{rng.randrange(1, 13):02d}" + (
    f"{rng.randrange(1, 29):02d}"
  )


def korean(rng):
  text = born(rng) + rng.choice("12") + some(rng, DIGITS, 5)
  total = sum(int(d) * (i % 8 + 2) for i, d in enumerate(text))
  return f"{text[:6]}-{text[6:]}{(11 - total % 11) % 10}"


def polish(rng):
  text = born(rng) + some(rng, DIGITS, 4)
  total = sum(int(d) * int(w) for d, w in zip(text, "1379137913", strict=True))
  return text + str((10 - total % 10) % 10)


def swedish(rng):
  text = with_luhn(born(rng) + some(rng, DIGITS, 3))
  return f"{text[:6]}-{text[6:]}"


def spanish(rng):
  number = rng.randrange(10**7, 10**8)
  return f"{number}{'TRWAGMYFPDXBNJZSQVHLCKE'[number % 23]}"


def french(rng):
  body = f"{rng.choice('12')}{rng.randrange(40, 99)}{rng.randrange(1, 13):02d}"
  body += f"{rng.randrange(1, 96):02d}{rng.randrange(1000):03d}"
  body += f"{rng.randrange(1, 1000):03d}"
  return f"{body}{97 - int(body) % 97:02d}"


def british(rng):
  text = rng.choice(["AB", "CE", "JK", "PX", "WL"]) + some(rng, DIGITS, 6)
  text += rng.choice("ABCD")
  pairs = " ".join(text[i : i + 2] for i in range(0, 9, 2))
  return pairs if rng.random() < 0.5 else text


def id_other(rng):
  kinds = (aadhaar, cpf, korean, polish, swedish, spanish, french, british)
  return rng.choice(kinds)(rng)


def secret(rng):
  part = lambda n: (
    base64.urlsafe_b64encode(rng.randbytes(n)).decode().strip("=")
  )
  return rng.choice(
    [
      "AKIA" + some(rng, UPPER + "234567", 16),
      "ghp_" + some(rng, ALNUM, 36),
      "glpat-" + some(rng, ALNUM, 20),
      f"xoxb-{some(rng, DIGITS, 12)}-{some(rng, ALNUM, 24)}",
      "AIza" + some(rng, ALNUM, 35),
      "sk_live_" + some(rng, ALNUM, 24),
      "sk-proj-" + some(rng, ALNUM, 48),
      "hf_" + some(rng, string.ascii_letters, 34),
      "npm_" + some(rng, ALNUM, 36),
      f"SG.{some(rng, ALNUM, 22)}.{some(rng, ALNUM, 43)}",
      f"{some(rng, '123456789', 9)}:AA{some(rng, ALNUM, 33)}",
      f"eyJ{part(24)}.eyJ{part(60)}.{part(32)}",
    ]
  )


FIRST = """James Mary Robert Patricia John Jennifer Michael Linda David Susan
Thomas Margaret Christopher Karen Daniel Nancy Matthew Lisa Anthony Betty Mark
Sandra Donald Ashley Steven Kimberly Andrew Emily Paul Donna Joshua Michelle
Kenneth Carol Kevin Amanda Brian Melissa Timothy Deborah Ronald Stephanie Jason
Rebecca Edward Sharon Jeffrey Laura Ryan Cynthia Jacob Dorothy Gary Amy Nicholas
Kathleen Eric Angela Jonathan Shirley Liam Emma Noah Olivia Oliver Ava Mason
Sophia Lucas Mia Ethan Harper Aiden Evelyn Logan Priya Rohan Fatima Wei Nadia
Saoirse Tariq Ingrid Mateo Zainab Kwame""".split()
LAST = """Smith Johnson Williams Brown Jones Garcia Miller Davis Rodriguez
Martinez Hernandez Lopez Gonzalez Wilson Anderson Thomas Taylor Moore Jackson
Martin Lee Perez Thompson White Harris Sanchez Clark Ramirez Lewis Robinson
Walker Young Allen King Wright Scott Torres Nguyen Hill Flores Green Adams
Nelson Baker Hall Rivera Campbell Mitchell Carter Roberts Okafor Kowalski Bauer
O'Brien McCarthy Lindqvist Rossi Dubois Haddad Petrov Fitzgerald""".split()


def name_en(rng):
  first, last = rng.choice(FIRST), rng.choice(LAST)
  form = rng.random()
  if form < 0.7:
    return f"{first} {last}"
  if form < 0.9:
    return f"{first} {rng.choice(UPPER)}. {last}"
  return f"{first} {rng.choice(LAST)}-{last}"


# Of the hundred most frequent family names of the census of 2020.
ZH_LAST = """王李张刘陈杨黄赵吴周徐孙马朱胡郭何林高罗郑梁谢宋唐
许韩邓冯曹彭曾肖田董潘袁蔡蒋余于杜叶程魏苏吕丁任卢姚沈钟姜崔谭陆范汪
廖石金韦贾夏付方邹熊白孟秦邱侯江尹薛闫雷龙黎史陶贺毛郝"""
ZH_LAST = "".join(ZH_LAST.split())
# Given names of the lists of most frequent ones, by decade.
ZH_FIRST = """伟 芳 娜 敏 静 丽 强 磊 军 洋 勇 艳 杰 娟 涛 明 超 霞
平 刚 秀英 秀兰 桂英 建国 建华 志强 国强 淑珍 玉兰 晓明 海燕
婷婷 雪梅 丹丹 浩宇 子轩 梓涵 欣怡 雨桐 宇轩 诗涵 一诺 奕辰
宇航 浩然 梓萱 可馨 俊杰 思源 嘉豪 佳怡 文博 雅婷 振东 永强
春花 德华 学友 小龙 丽华 凤英 红梅 冬梅 金凤 少杰 鑫 鹏飞
佩琪 景行 昭仪 沐宸 语嫣 翠花""".split()


def name_zh(rng):
  if rng.random() < 0.02:
    return rng.choice(["欧阳", "司马", "上官", "诸葛"]) + rng.choice(ZH_FIRST)
  return rng.choice(ZH_LAST) + rng.choice(ZH_FIRST)


# {kind: (rule that should find it, maker)}
KINDS = {
  "mail": ("mail", mail),
  "phone": ("phone", phone),
  "IPv4": ("ip", ipv4),
  "IPv6": ("ip", ipv6),
  "MAC": ("mac", mac),
  "card": ("card", card),
  "IBAN": ("iban", iban),
  "id, US": ("id", id_us),
  "id, China": ("id", id_cn),
  "id, eight others": ("id", id_other),
  "secret": ("secret", secret),
  "name, English": ("name", name_en),
  "name, Chinese": ("name", name_zh),
}

# What stands around a value: {} is the value, and a line is a frame.
FRAMES = {
  "en": """Please use {} from now on.
It was {}, as far as we know.
See {}.
The form says {} and nothing else.
({})
Contact: {} (new)
- {}""",
  "zh": """请使用{}，谢谢。
登记的是{}。
资料：{} 完
（{}）
原来的{}已经失效。
他写的是：{}；请核对。
旧的是 {} 吗？""",
  "en names": """Please ask {} about it.
{} wrote the report.
Dear {},
The letter was signed by {}.
On Monday {} left.
Name: {}
We met {}, who lives nearby.
Thanks to {} for the help.""",
  "zh names": """请联系{}先生。
姓名：{}
联系人：{}，请核对。
{}说他明天来。
昨天，{}在会上发言。
记者{}报道。
感谢{}的帮助。
（{}）
我叫{}。
{}，男，三十岁。
经理{}已经同意。
我和{}是同学。""",
}
FILLING = {
  "en": """The meeting was moved to the afternoon because of the weather.
Nobody knew where the keys were. Sales rose by 12.5 percent in 2019.
A new bridge will open next year. The old one, built in 1931, is closed.
Chapter 3 describes the method in detail. Prices start at 1,299 dollars.""",
  "zh": """会议因为天气改到下午举行。没有人知道钥匙在哪里。
二〇一九年销售额增长了百分之十二。新桥明年通车，旧桥已经关闭。
第三章详细介绍了这种方法。价格从1299元起。
今天的天气很好，我们去公园散步。""",
}


def make(count: int, items: int, seed: int = 0):
  """Yields (text, [(kind, start, end)]) of `count` documents.

  Args:
    items: planted values in all documents together.
  """
  rng = random.Random(seed)
  values = [kind for kind in KINDS if not kind.startswith("name")]
  for number in range(count):
    language, name = ("en", "English") if number % 2 else ("zh", "Chinese")
    text, planted = "", []
    here = items * (number + 1) // count - items * number // count
    for _ in range(here):
      kind = rng.choice([*values, f"name, {name}"])
      frames = language + (" names" if kind.startswith("name") else "")
      before, after = rng.choice(FRAMES[frames].splitlines()).split("{}")
      value = KINDS[kind][1](rng)
      text += rng.choice(FILLING[language].splitlines())
      text += (" " if language == "en" else "\n") + before
      planted.append((kind, len(text), len(text) + len(value)))
      text += value + after + "\n"
    yield text, planted
