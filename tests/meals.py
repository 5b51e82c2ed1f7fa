"""Chinese sentences about what people eat and drink, made by rule.

python tests/meals.py FILE
"""

import itertools
import pathlib
import random
import sys

WHO = ("我", "你", "他", "她", "我们", "他们", "妈妈", "爸爸")
HOW = ("爱", "想", "不", "要", "会")
FOOD = ("饼干", "苹果", "米饭", "面包", "面条", "鱼")
DRINK = ("牛奶", "茶", "水", "果汁")


def write(path: str) -> None:
  """Writes each sentence 20 times, in a random order, one a line."""
  eaten = (f"{a}{b}吃{c}。" for a, b, c in itertools.product(WHO, HOW, FOOD))
  drunk = (f"{a}{b}喝{c}。" for a, b, c in itertools.product(WHO, HOW, DRINK))
  lines = 20 * [*eaten, *drunk]
  random.Random(0).shuffle(lines)
  pathlib.Path(path).write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
  write(sys.argv[1])
