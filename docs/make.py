"""Builds the site: python docs/make.py FOLDER (bash launch/site.sh does it).

The pages are those of the repository, as they are; the reference is read from
the docstrings of the package, without importing it. Sphinx (MyST, Furo) makes
HTML of both that needs no server and no network, with a search that works from
a disk. A warning is an error: a link to nothing, a page that no list names.
"""

import argparse
import ast
import json
import pathlib
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
# {caption of a list at the side: its pages, or where a page lists them}
LISTS = {
  "Guides": "docs/README.md",
  "Notebooks": ["docs/notebooks/inside", "docs/notebooks/scaling"],
  "Recipes and results": ["configs/README", "reference/configs", "configs/LOG"],
  "Machines": ["launch/README", "launch/RUNBOOK"],
  "Contributing": ["CONTRIBUTING"],
}
PAGES = ("CONTRIBUTING.md", "docs/*.md", "configs/*.md", "launch/*.md")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")
# A block of "text" that begins with one of these is a command, and not run.
COMMAND = re.compile(r"^```text\n(?=(bash |\.venv/bin/))", re.M)
BASH = re.compile(r"(?<=^```bash\n).*?(?=^```$)", re.M | re.S)
# Characters of a line of a command, which goes on in the next: few, for phones.
WIDTH = 40
# Figures are drawn on white; where the page is dark, so are they. A command is
# read whole, and a word like --flag=VALUE broken only where it fits no line. A
# narrow page has smaller heads and cells.
CSS = """img[src$=".svg"] { max-width: 100%; }
body[data-theme="dark"] img[src$=".svg"] { DARK }
@media (prefers-color-scheme: dark) {
  body:not([data-theme="light"]) img[src$=".svg"] { DARK }
}
.highlight-bash pre { white-space: pre-wrap; overflow-wrap: anywhere; }
:is(article, section, li) > p > code .pre { display: inline-block;
  max-width: 100%; overflow-wrap: anywhere; }
@media (max-width: 40em) {
  article h1 { font-size: 1.8em; }
  article h2 { font-size: 1.35em; }
  article h3, article h4 { font-size: 1.15em; }
  table.docutils { font-size: .8rem; }
  table.docutils :is(td, th) { padding: .25rem .35rem; }
}
""".replace("DARK", "filter: invert(0.92) hue-rotate(180deg);")
FIELDS = re.compile(r"(Args|Attributes|Raises|Returns|Yields):$")


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog="docs/make.py")
  parser.add_argument("out", type=pathlib.Path, help="folder to make")
  out = parser.parse_args(argv).out
  with tempfile.TemporaryDirectory() as folder:
    source = pathlib.Path(folder, "pages")
    collect(source)
    # Whole or not at all: pages of an earlier build are gone with it.
    built = pathlib.Path(folder, "site")
    if code := build(source, built):
      return code
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(built, out)
  print(f"open {out / 'index.html'}")
  return 0


def collect(source: pathlib.Path) -> None:
  """Writes the pages, and what they link to, into a folder for Sphinx."""
  pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
  for path in pages:
    _copy(path, source / path.relative_to(ROOT))
  for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
    page = source / path.relative_to(ROOT).with_suffix(".md")
    page.parent.mkdir(exist_ok=True)
    page.write_text(convert(path.name, path.read_text("utf-8")), "utf-8")
    shutil.copyfile(path, page.with_suffix(".ipynb"))
  rooms = [*sorted(p.parent for p in (ROOT / "gpt_jax").glob("*/__init__.py"))]
  reference = {"gpt_jax": sorted((ROOT / "gpt_jax").glob("*.py"))}
  reference |= {room.name: sorted(room.rglob("*.py")) for room in rooms}
  reference["configs"] = sorted((ROOT / "configs").glob("*.py"))
  for name, modules in reference.items():
    path = source / "reference" / f"{name}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(describe_modules(name, modules)))
  _copy(ROOT / "README.md", source / "index.md")
  lists = {k: v if isinstance(v, list) else linked(v) for k, v in LISTS.items()}
  rest = [f"reference/{name}" for name in reference if name != "configs"]
  with open(source / "index.md", "a") as file:
    for caption, names in (lists | {"Reference": rest}).items():
      listed = "\n".join(names)
      file.write(
        f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"
      )


def linked(page: str) -> list[str]:
  """Returns a page and the pages beside it that it links to, in order."""
  folder = (ROOT / page).parent
  beside = [
    match[1].removesuffix(".md")
    for match in LINK.finditer((ROOT / page).read_text())
    if "/" not in match[1]
  ]
  names = [pathlib.Path(page).stem, *dict.fromkeys(beside)]
  return [f"{folder.name}/{name}" for name in names]


def _copy(path: pathlib.Path, to: pathlib.Path) -> None:
  """Copies a page, and the files that it shows or offers."""
  to.parent.mkdir(parents=True, exist_ok=True)
  text = path.read_text()
  for link in LINK.finditer(text):
    other = (path.parent / link[1]).resolve()
    if other.is_file() and other.suffix != ".md":
      copy = to.parent / link[1]
      copy.parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(other, copy)
  # The site shows a notebook as a page, which offers the file.
  text = break_commands(COMMAND.sub("```bash\n", text))
  to.write_text(text.replace(".ipynb)", ".md)"))


def convert(name: str, notebook: str) -> str:
  """Returns a notebook, which holds no output, as Markdown."""
  cells = []
  for cell in json.loads(notebook)["cells"]:
    text = "".join(cell["source"])
    is_code = cell["cell_type"] == "code"
    cells.append(f"```python\n{text}\n```" if is_code else text)
  return "\n\n".join([*cells, f"The notebook: [{name}]({name})."]) + "\n"


def build(source: pathlib.Path, out: pathlib.Path) -> int:
  """Returns 0 if Sphinx had nothing to complain about."""
  from sphinx.application import Sphinx

  (source / "_static").mkdir()
  (source / "_static" / "figures.css").write_text(CSS)
  app = Sphinx(
    str(source),
    None,
    str(out),
    str(source.parent / "doctrees"),
    "html",
    confoverrides={
      "project": "gpt_jax",
      "copyright": "the gpt_jax authors",
      "extensions": ["myst_parser"],
      "myst_heading_anchors": 4,
      "html_theme": "furo",
      "html_static_path": ["_static"],
      "html_css_files": ["figures.css"],
      "html_title": "gpt_jax",
      # Two dashes of a flag are not one long one.
      "smartquotes": False,
      # There are no entries: the reference is no domain of Sphinx's.
      "html_use_index": False,
      "html_show_sphinx": False,
      "html_show_sourcelink": False,
      "html_copy_source": False,
      "pygments_style": "friendly",
      "highlight_language": "none",
    },
    status=None,
    warning=sys.stderr,
    warningiserror=True,
  )
  app.build()
  return app.statuscode


def describe_modules(name: str, modules: list[pathlib.Path]) -> Iterator[str]:
  """Yields the reference of a room, as Markdown."""
  title = "Each recipe" if name == "configs" else name
  yield f"# {escape(title)}\n"
  for path in modules:
    tree = ast.parse(path.read_text())
    text = ast.get_docstring(tree)
    if text is None or path.name.startswith("_") and "__" not in path.name:
      continue
    title = path.relative_to(ROOT).with_suffix("").as_posix()
    yield f"\n## {escape(title.removesuffix('/__init__'))}\n\n{markdown(text)}"
    for node in tree.body:
      yield from describe(node, "###")


def describe(node: ast.stmt, level: str) -> Iterator[str]:
  """Yields what a public function or class promises."""
  is_class = isinstance(node, ast.ClassDef)
  if not is_class and not isinstance(node, ast.FunctionDef):
    return
  text = ast.get_docstring(node)
  if node.name.startswith("_") or text is None:
    return
  if is_class:
    head = f"class {node.name}"
    if node.bases:
      head += f"({', '.join(map(ast.unparse, node.bases))})"
  else:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    head = f"{node.name}({ast.unparse(node.args)}){returns}"
  yield f"\n{level} {escape(node.name)}\n\n```python\n{head}\n```\n\n"
  yield markdown(text)
  for child in node.body if is_class else ():
    yield from describe(child, level + "#")


def markdown(docstring: str) -> str:
  """Returns a docstring as Markdown: fields as lists, tables as they are."""
  blocks = []
  for block in docstring.split("\n\n"):
    first, *rest = block.splitlines()
    if field := FIELDS.match(first):
      blocks.append(f"**{field[1]}**\n\n{_list_fields(rest)}")
    elif first.startswith(" "):
      blocks.append(_fence(block))
    else:
      prose = [line for line in (first, *rest) if not line.startswith(" ")]
      table = [line for line in rest if line.startswith(" ")]
      blocks.append(escape("\n".join(prose)))
      if table:
        blocks.append(_fence("\n".join(table)))
  return "\n\n".join(blocks) + "\n"


def _fence(block: str) -> str:
  text = f"```text\n{textwrap.dedent(block)}\n```"
  return break_commands(COMMAND.sub("```bash\n", text))


def break_commands(text: str) -> str:
  """Returns Markdown whose long commands go on in a line of their own flags."""
  return BASH.sub(
    lambda block: "".join(map(_break, block[0].splitlines(True))), text
  )


def _break(command: str) -> str:
  lines = [""]
  for part in re.split(r" +(?=--)", command):
    if lines[-1] and len(lines[-1]) + len(part) > WIDTH:
      lines.append(f"  {part}")
    else:
      lines[-1] += f" {part}" if lines[-1] else part
  return " \\\n".join(lines)


def _list_fields(lines: list[str]) -> str:
  indent = min(
    (len(x) - len(x.lstrip()) for x in lines if x.strip()), default=0
  )
  items: list[list[str]] = []
  for line in lines:
    text = line[indent:]
    if items and text.startswith(" "):
      items[-1].append(text.strip())
    else:
      items.append([text.strip()])
  listed = []
  for item in items:
    name, colon, text = " ".join(item).partition(": ")
    whole = f"`{name}`: {escape(text)}" if colon else escape(name)
    listed.append(f"- {whole}")
  return "\n".join(listed)


def escape(text: str) -> str:
  """Returns text whose signs mean nothing to Markdown, but for `code`."""
  parts = re.split(r"(`[^`\n]+`)", text)
  parts[::2] = [re.sub(r"([\\*_<>\[\]#|${}~])", r"\\\1", p) for p in parts[::2]]
  return "".join(parts)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
