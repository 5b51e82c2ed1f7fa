"""The site is built of these pages, and one finds one's way in it."""

import importlib.util
import json
import re
import subprocess
import sys

import pytest
from harness import ROOT

spec = importlib.util.spec_from_file_location("make", ROOT / "docs" / "make.py")
assert spec is not None and spec.loader is not None
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """The folder of the site, built once."""
  out = tmp_path_factory.mktemp("site") / "site"
  done = run(f"sys.exit(make.main([{str(out)!r}]))")
  assert done.returncode == 0, done.stderr
  return out


def run(code: str) -> subprocess.CompletedProcess:
  """Runs code in a process of its own: what Sphinx registers is global."""
  code = f"import sys; sys.path.insert(0, 'docs'); import make; {code}"
  return subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
  )


def build(folder, **pages) -> subprocess.CompletedProcess:
  """Builds a site of the pages alone; returns how it ended."""
  source, out = folder / "pages", folder / "site"
  source.mkdir()
  for name, text in pages.items():
    (source / f"{name}.md").write_text(text)
  places = f"{str(source)!r}, {str(out)!r}"
  return run(
    f"from pathlib import Path; sys.exit(make.build(*map(Path, ({places}))))"
  )


@pytest.mark.wide
def test_every_page_of_the_docs_is_in_the_site(site):
  pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
  assert {path.stem for path in (site / "docs").glob("*.html")} == pages


@pytest.mark.wide
def test_a_notebook_is_a_page_that_offers_its_file(site):
  for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
    page = (site / "docs" / "notebooks" / f"{path.stem}.html").read_text()
    (link,) = re.findall(rf'href="([^"]*{path.name})"', page)
    offered = site / "docs" / "notebooks" / link
    assert offered.read_text("utf-8") == path.read_text("utf-8")
  assert "<h1>From runs to a scaling law" in page
  guide = (site / "docs" / "README.html").read_text()
  assert 'href="notebooks/scaling.html"' in guide


def test_a_notebook_becomes_markdown():
  cells = [
    {"cell_type": "markdown", "source": ["# Top\n", "text"]},
    {"cell_type": "code", "source": ["x = 1\n", "x + 1"], "outputs": []},
  ]
  assert make.convert("a.ipynb", json.dumps({"cells": cells})) == (
    "# Top\ntext\n\n```python\nx = 1\nx + 1\n```\n\n"
    "The notebook: [a.ipynb](a.ipynb).\n"
  )


@pytest.mark.wide
def test_a_page_loads_nothing_from_elsewhere(site):
  loads = re.compile(
    r"<(?:script|link|img|iframe)[^>]*(?:src|href)=.(https?:|//)"
  )
  pages = list(site.rglob("*.html"))
  assert len(pages) > 30
  assert not [page for page in pages if loads.search(page.read_text())]
  assert loads.search("<script src='https://a.b/c.js'>")


@pytest.mark.wide
def test_a_figure_is_dark_where_the_page_is(site, browser):
  page = site / "docs" / "compression.html"
  text = page.read_text()
  assert 'src="../_images/compression.svg"' in text
  ask = "getComputedStyle(document.querySelector('article img')).filter"
  for theme, want in (("dark", "invert(0.92)"), ("light", "none")):
    probe = site / "docs" / f"probe-{theme}.html"
    probe.write_text(
      text
      + f"<script>document.body.dataset.theme = {theme!r};"
      + f"document.title = 'filter: ' + {ask}</script>"
    )
    shown = browser(probe, "--dump-dom")
    probe.unlink()
    assert f"<title>filter: {want}" in shown


def test_a_long_command_is_broken_before_its_flags():
  word = "--config.a=" + 14 * "b"
  text = (
    f"```bash\nrun {word} {word} --c='d'  # e\nls\n```\n\nrun {word} {word}"
  )
  assert make.break_commands(text) == (
    f"```bash\nrun {word} \\\n  {word} --c='d'  # e\nls\n```\n\n"
    f"run {word} {word}"
  )


@pytest.mark.wide
def test_the_reference_says_what_the_docstrings_say(site):
  page = (site / "reference" / "ops.html").read_text()
  assert "A frozen matrix and its trainable low-rank" in page
  recipes = (site / "reference" / "configs.html").read_text()
  assert "--config.section.key=value" in recipes  # two dashes, not a long one
  assert not (site / "genindex.html").exists()  # it would be empty
  assert "<code class=" in page and "scale</span>" in page


@pytest.mark.wide
def test_the_search_works_from_a_disk(site, browser):
  words = ("--dump-dom", "--allow-file-access-from-files")
  shown = browser(site / "search.html", *words, query="?q=checkpoint")
  assert re.search(r"found \d+ pages", shown), shown[-500:]
  assert "docs/resilience.html" in shown
  nothing = browser(site / "search.html", *words, query="?q=xyzzyplugh")
  assert "did not match any" in nothing


@pytest.mark.parametrize(
  "text, said",
  [
    ("[a](b.md)", "target not found: 'b.md'"),
    ("[a](index.md#b)", "local id not found"),
    ("# a\n\n### b", "Non-consecutive header"),
  ],
)
def test_a_fault_of_a_page_fails_the_build(tmp_path, text, said):
  done = build(tmp_path, index=f"# Top\n\n{text}\n")
  assert done.returncode != 0
  assert said in done.stderr


def test_a_page_that_no_list_names_fails_the_build(tmp_path):
  done = build(tmp_path, index="# Top\n", lost="# Lost\n")
  assert done.returncode != 0
  assert "lost.md" in done.stderr


def test_a_page_without_fault_is_built(tmp_path):
  assert build(tmp_path, index="# Top\n\nText.\n").returncode == 0
  assert (tmp_path / "site" / "index.html").exists()


def test_a_docstring_becomes_markdown():
  text = """Returns *this* of x_BT.

More.

  a   b
  1   2

  bash launch/local.sh --devices=8

Args:
  x_BT: the tokens,
    of two lines.
  y: `z`.

Raises:
  InputError: never.
"""
  assert (
    make.markdown(text.strip())
    == """Returns \\*this\\* of x\\_BT.

More.

```text
a   b
1   2
```

```bash
bash launch/local.sh --devices=8
```

**Args**

- `x_BT`: the tokens, of two lines.
- `y`: `z`.

**Raises**

- `InputError`: never.
"""
  )
