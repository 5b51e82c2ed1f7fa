"""Names of people in Chinese text, which writes no spaces and no capitals.

A family name and one or two characters of given names count as a name if a
label or a border precedes them, and a title, a border or a word used with
people follows them. Common words of this form are excluded.
"""

import re
from collections.abc import Iterator

from gpt_jax.data.cleaning.name_lists import DOUBLE, FAMILY, GIVEN_CHARACTERS

Span = tuple[int, int]

_TITLES = (
  "先生|女士|小姐|太太|老师|教授|医生|博士|经理|主任|同学|律师|师傅|总监|校长"
)
_TITLES += (
  "|院长|局长|处长|工程师|护士|警官|记者|同志|大夫|董事长|总经理|书记|会计"
)
# Fields of a form: after the colon, given names may have any characters.
_FIELDS = (
  "姓名|联系人|收件人|收货人|寄件人|客户|患者|员工|用户|负责人|申请人|经办人|签名"
  "|作者"
)
_ROLES = (
  "名叫|叫做|我叫|我是|同事|朋友|邻居|同学|记者|老师|经理|医生|教授|律师|主任|局长"
  "|学生"
)
_JOINTS = "请|找|给|与|和|跟|由|向|对|问|让|把|被|为|叫|以及|通知|联系|感谢"
# Verbs and particles after a person's name. "In" and "of" follow places too.
_VERBS = (
  "说|表示|称|认为|指出|介绍|告诉|问|答|想|在|是|的|和|与|于"
  "|将|已|从|向|把|被|去|来"
)
_VERBS += (
  "也|就|都|曾|出生|毕业|住|负责|担任|提交|签|打|用|给|今|昨"
  "|明|先|收|有|要|会|因|联系"
)
_FAMILY = "|".join(DOUBLE) + "|[" + "".join(sorted(FAMILY)) + "]"
_CHARACTER = "[" + "".join(sorted(GIVEN_CHARACTERS)) + "]"
_HAN = r"\u3400-\u9fff"
_NAME = rf"(?P<name>(?:{_FAMILY}){_CHARACTER}{{1,2}})"
# Greedy: of two names that fit, the longer.
_PATTERNS = [
  re.compile(
    rf"(?:{_FIELDS})[：:] ?(?P<name>(?:{_FAMILY})[{_HAN}]{{1,2}})(?![{_HAN}])"
  ),
  re.compile(rf"{_NAME}(?=(?:{_TITLES}))"),
  re.compile(rf"(?:{_FIELDS}|{_ROLES})[是为：: ]{{0,3}}{_NAME}"),
  re.compile(rf"(?:{_JOINTS}){_NAME}(?=[^{_HAN}]|$|{_VERBS})"),
  re.compile(rf"(?<![{_HAN}]){_NAME}(?=[^{_HAN}]|$|{_VERBS})"),
]
# Ordinary words that look like a family name and a given name.
_WORDS = frozenset(
  """
王国 王朝 王子 王公 高兴 高山 高大 高峰 高原 高明 高贵 高学 高能 高新 高利
高达 高频 金融 金银 金国 金石 金山 白天 白云 白雪 白银 白杨 方法 方面 方向
方便 方言 方程 方正 安全 安宁 安康 安静 安定 文化 文明 文学 文书 文艺 文言
文字 文科 黄金 黄河 黄山 黄海 黄昏 江山 江南 江河 江湖 江西 江北 周年 周易
时时 时常 时光 时日 时年 时先 时代 成功 成立 成为 成年 成长 成品 成群 成都
和平 和解 和顺 和谐 平安 万一 万里 万年 万能 万千 水平 石头 林业 林木 林立
夏天 夏日 夏季 武力 武器 武艺 武威 于是 关于 关心 关系 关东 关西 向来 向前
向阳 向西 向东 向南 向北 连年 连续 连同 全国 全民 全年 全能 全力 全新 全权
全家 全都 明天 明月 明年 明亮 明珠 明星 明显 明智 华丽 华美 华北 华南 华东
华山 温和 温柔 温泉 温情 严正 严冬 严寒 严明 程序 何必 何时 何年 何日 何等
余年 余光 包容 包子 左右 项目 陆路 康复 易于 段落 雷达 雷雨 龙凤 龙舟 史学
史书 钱财 路人 路上 路途 游子 游泳 盛大 盛行 盛年 单独 季节 季风 马上 马力
马路 马来 马克 马蹄 常年 田野 田园 田家 毛利 牛群 牛年 谷子 古代 古文 古希
应当 应用 应时 农民 农业 农家 农田 管道 管理 解放 解析 解用 商业 商品 商家
商朝 汉朝 宋朝 唐朝 元朝 明朝 唐诗 宋代 阳光 南海 东海 广东 海南 山西 河南
湖南 河北 湖北 云南 任务 任何 任意 任用 许可 许多 许诺 顾问 顾客 施工 施行
施用 符合 简单 简明 简易 简言 景色 景德 党员 党章 司法 司机 卫生 卫星 师长
师生 师范 宗教 荣誉 童年 童心 童话 祝福 祝贺 祝愿 祝寿 章程 纪念 纪年 纪实
纪录 梅花 梅雨 兰花 云山 桂林 桂花 冷冰
""".split()
)


def find_chinese_names(text: str) -> Iterator[Span]:
  """Yields names of two to four characters."""
  if text.isascii():
    return
  for pattern in _PATTERNS:
    for match in pattern.finditer(text):
      if match["name"][:2] not in _WORDS:
        yield match.span("name")
