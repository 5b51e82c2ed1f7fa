"""The look of every HTML page: one file that loads nothing, light or dark.

A page follows the reader's theme. Rules of its own come after these, and use
their colors.
"""

import html

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1d2125;
  --soft: #5d6670; --line: #d9dee3; --stripe: #f5f7f9; --mark: #1f5fa8;
  --good: #2c7a43; --bad: #b3361b; --band: #3b82c4; }
@media (prefers-color-scheme: dark) { :root { --ground: #15181c;
  --ink: #e3e6e9; --soft: #9aa4ae; --line: #343b43; --stripe: #1c2025;
  --mark: #7db4ee; --good: #6cc386; --bad: #f0866a; --band: #6aa7e0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 1100px;
  background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .7rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; overflow-wrap: anywhere; }
p { max-width: 75ch; margin: .4rem 0 .8rem; } .soft { color: var(--soft); }
a { color: var(--mark); } code { font-size: .92em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; }
"""


def page(title: str, body: str, style: str = "", script: str = "") -> str:
  """Returns a page.

  Args:
    body: HTML; text from a user or a model must be escaped in it.
    style: CSS after STYLE.
    script: runs after the body.
  """
  ran = f"<script>{script}</script>\n" if script else ""
  return (
    '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{html.escape(title)}</title>\n<style>{STYLE}{style}</style>\n"
    f"<body>\n{body}\n{ran}</body>\n</html>\n"
  )
