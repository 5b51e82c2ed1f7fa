"""What README and the pages of docs/ name is there."""

import ast
import re

import pytest
from harness import ROOT
from pages import (
  LAYOUT,
  LINKED,
  PAGES,
  blocks,
  code_faults,
  command_faults,
  commands,
  inline_code,
  layout_faults,
  link_faults,
  name_of,
)

from gpt_jax import cli, config, exits


def of_pages(find) -> list:
  return [
    pytest.param(found, id=f"{name_of(page)}-{place}")
    for page in PAGES
    for place, found in enumerate(find(page.read_text()))
  ]


@pytest.mark.parametrize("command", of_pages(commands))
def test_every_command_names_what_is_there(command):
  assert command_faults(command) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_name_in_the_prose_is_there(page):
  faults = {c: code_faults(c) for c in inline_code(page.read_text())}
  assert {c: f for c, f in faults.items() if f} == {}


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_and_their_anchors_lead_somewhere(page):
  assert link_faults(page, page.read_text()) == []


def test_the_layout_lists_every_file_and_no_other():
  assert layout_faults(LAYOUT.read_text()) == []


def test_the_order_of_rooms_is_the_one_that_is_held():
  contract = ROOT / "tests" / "contracts" / "test_architecture.py"
  held = re.search(r"^LAYERS = (\[.*?^\])", contract.read_text(), re.S | re.M)
  part = LAYOUT.read_text().split("\n## Every file\n")[0]
  rows = re.findall(r"^\| (`gpt_jax/.*?) \|", part, re.M)
  told = [re.findall(r"`gpt_jax/(\w+)", row) for row in rows]
  assert told == ast.literal_eval(held[1])[:-1]  # without __main__


def test_a_token_passes_at_most_sixty_modules():
  part = LAYOUT.read_text().split("\n## From text to checkpoint\n")[1]
  named = re.findall(r"^\d+\. `(.*?)`: ", part.split("\n## ")[0], re.M)
  assert 30 < len(set(named)) == len(named) <= 60
  assert f"{len(named)} modules" in part
  for name in named:
    assert (ROOT / name).is_file(), name


def test_every_page_is_in_the_list_of_pages():
  text = (ROOT / "docs" / "README.md").read_text()
  for page in (ROOT / "docs").glob("*.md"):
    assert page.name == "README.md" or f"]({page.name})" in text, page.name


def test_the_readme_is_one_screen_and_quotes_the_first_run():
  readme = (ROOT / "README.md").read_text()
  assert len(readme.splitlines()) <= 80
  (quoted,) = blocks(readme, "text")
  whole = blocks((ROOT / "docs" / "zero.md").read_text(), "text")[0]
  lines = iter(whole.splitlines())
  for line in quoted.splitlines():
    assert line in lines, f"not in the first run, or not in its order: {line}"


def test_the_example_of_a_config_loads(tmp_path):
  text = (ROOT / "docs" / "configs.md").read_text()
  (example,) = blocks(text, "python")
  (tmp_path / "mine.py").write_text(example)
  path = str(tmp_path / "mine.py")
  assert config.freeze(cli.load_config(path, {})).model.num_layers == 6


def test_the_table_of_exit_codes_is_complete():
  text = (ROOT / "docs" / "zero.md").read_text()
  table = set(map(int, re.findall(r"^\| (\d+) \|", text, re.M)))
  codes = {v for k, v in vars(exits).items() if k.isupper()}
  assert table == {0} | codes - {exits.MAX_SENTENCE}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_figure_is_left_to_fill_in(page):
  assert "@@" not in page.read_text()


@pytest.mark.parametrize(
  "command, said",
  [
    ("python -m gpt_jax.generate --nonsense=1", "no flag --nonsense"),
    ("bash launch/local.sh --processes=2 --nonsense=1", "no flag --nonsense"),
    ("bash launch/nonsense.sh", "no script"),
    ("bash launch/gke.sh x --nonsense=1", "no flag --nonsense"),
    # A flag of the script is none of the trainer's.
    ("bash launch/slurm.sh -n 1 -- --dry-run", "no flag --dry-run"),
    ("bash launch/test.sh tests/test_nonsense.py", "no tests/test_nonsense"),
    ("python -m gpt_jax.nonsense", "no module"),
    ("python -m gpt_jax.lab.plan.nonsense.x", "no module"),
    ("python -m pip install -e '.[nonsense]'", "no extra nonsense"),
    ("python -m gpt_jax.train --config.model.nonsense=1", "nonsense"),
    ("python -m gpt_jax.train --config=configs/nonsense.py", "nonsense"),
    ("python -m gpt_jax.train --config=configs/gpt2.py:1m", "1m"),
    ("python -m gpt_jax.evaluate --data=NONSENSE.md", "no file"),
    ("make everything", "neither a script nor a module"),
  ],
)
def test_a_command_that_names_what_is_not_there_is_seen(command, said):
  assert any(said in fault for fault in command_faults(command))


@pytest.mark.parametrize(
  "code, said",
  [
    ("test_families.py", "no full path"),
    ("rolling.py", "no full path"),
    ("tests/test_families.py", "no file"),
    ("gpt_jax/loop.py", "no file"),
    ("gpt_jax/nonsense/", "no file"),
    ("gpt2.py:1m", "1m"),
    ("--nonsense=1", "no flag"),
    ("--config.data.nonsense=1", "no config key"),
    ("train.nonsense", "no config key"),
    ("lab.nonsense", "no module"),
    ("python -m gpt_jax.nonsense", "no module"),
    ("GPT_JAX_NONSENSE", "no variable"),
  ],
)
def test_a_name_in_the_prose_that_is_not_there_is_seen(code, said):
  (text,) = inline_code(f"```bash\n`x`\n```\nSee `{code}`.")
  assert any(said in fault for fault in code_faults(text))


def test_a_link_that_leads_nowhere_is_seen():
  page = ROOT / "docs" / "zero.md"
  good = "# A `b`, c\n[x](#a-b-c) [y](data.md#sources) ![z](../figures)"
  assert link_faults(page, good) == []
  for link in ("nonsense.md", "../docs/nonsense.md", "#nonsense", "data.md#x"):
    assert len(link_faults(page, f"# A\n[x]({link})")) == 1, link


def test_a_file_that_is_not_listed_or_by_its_base_name_is_seen():
  text = LAYOUT.read_text()
  row = re.search(r"^\| `gpt_jax/config/check.py` .*\n", text, re.M)[0]
  assert len(layout_faults(text.replace(row, ""))) == 1
  assert len(layout_faults(text.replace(row, row + row))) == 1
  short = row.replace("gpt_jax/config/check.py", "check.py")
  assert len(layout_faults(text.replace(row, short))) == 2
