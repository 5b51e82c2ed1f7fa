"""What README and the pages of docs/ name is there, and what they say works.

Each check is a function from text to faults, so that a control can give it a
text with the fault that it is there to find.
"""

import ast
import contextlib
import functools
import importlib
import importlib.util
import io
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from configs import base
from gpt_jax import cli, config, exits

ROOT = pathlib.Path(__file__).parents[2]
LAYOUT = ROOT / "docs" / "layout.md"
PAGES = [
  *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
  ROOT / "configs" / "README.md",
  *sorted((ROOT / "docs").glob("*.md")),
]
# Their links are checked too; test_check.py runs the commands of launch/.
LINKED = [
  *PAGES,
  *sorted((ROOT / "launch").glob("*.md")),
  ROOT / "configs" / "LOG.md",
  ROOT / "gpt_jax" / "lab" / "README.md",
]
PYTHON = (".venv/bin/python", "python")
PARTS = "data|model|optim|train|mesh|checkpoint|eval|sample"
FOLDERS = "gpt_jax|configs|docs|figures|launch|tests"


def name_of(page: pathlib.Path) -> str:
  return str(page.relative_to(ROOT))


def blocks(text: str, kind: str) -> list[str]:
  return re.findall(rf"^```{kind}\n(.*?)^```", text, re.S | re.M)


def commands(text: str) -> list[str]:
  lines = "\n".join(blocks(text, "bash")).splitlines()
  return [line.split("  #")[0].strip() for line in lines if line.strip()]


def inline_code(text: str) -> list[str]:
  prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
  return re.findall(r"`([^`\n]+)`", prose)


def flags_in(text: str) -> set[str]:
  return set(re.findall(r"--[\w-]+", text))


@functools.cache
def config_keys() -> set[str]:
  values = base.get_config()
  return {
    f"{part}.{key}" for part in PARTS.split("|") for key in values[part]
  } | {"seed"}


def is_module(name: str) -> bool:
  try:
    return importlib.util.find_spec(name) is not None
  except ModuleNotFoundError:
    return False


@functools.cache
def help_of(module: str) -> str:
  door = importlib.import_module(module)
  if not hasattr(door, "main"):
    door = importlib.import_module(f"{module}.__main__")
  text = io.StringIO()
  with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
    door.main(["--help"])
  return text.getvalue()


@functools.cache
def every_flag() -> set[str]:
  """Returns the flags of all commands and scripts."""
  files = [*(ROOT / "gpt_jax").rglob("*.py"), *(ROOT / "launch").glob("*.sh")]
  found = [re.findall(r"(?<![\w-])--[\w-]+", f.read_text()) for f in files]
  return set().union(*found)


def override_faults(words: list[str]) -> list[str]:
  """Returns what is wrong with --config and --config.KEY=VALUE."""
  overrides = {}
  for word in words:
    if word.startswith("--config.") and "=" in word:
      key, _, value = word.removeprefix("--config.").partition("=")
      overrides[key] = value
  file = next((w[9:] for w in words if w.startswith("--config=")), None)
  name, _, variant = (file or "configs/tiny.py").partition(":")
  path = f"{ROOT / name}:{variant}" if variant else str(ROOT / name)
  try:
    config.freeze(cli.load_config(path, overrides))
  except config.InputError as error:
    return [str(error)]
  return []


def module_faults(module: str, words: list[str], more: str = "") -> list[str]:
  """Returns what a module's --help, with more text, does not know."""
  known = flags_in(help_of(module) + more)
  flags = [w.split("=")[0] for w in words if w.startswith("--")]
  faults = [
    f"no flag {flag} in {module}"
    for flag in flags
    if not flag.startswith("--config.") and flag not in known
  ]
  return faults + (override_faults(words) if "--config" in known else [])


def pip_faults(words: list[str]) -> list[str]:
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  extras = set(project["optional-dependencies"])
  wanted = re.findall(r"\[([^]]+)\]", " ".join(words))
  return [f"no extra {name}" for name in wanted if name not in extras]


def script_faults(script: str, words: list[str]) -> list[str]:
  """Returns faults of `bash script words`.

  What stands after -- is the trainer's; local.sh and test.sh pass all of it on.
  """
  if not (ROOT / script).is_file():
    return [f"no script {script}"]
  text = (ROOT / script).read_text()
  if script == "launch/local.sh":
    return module_faults("gpt_jax.train", words, text)
  if script == "launch/test.sh":
    return [f"no {w}" for w in words if "/" in w and not (ROOT / w).exists()]
  own = words[: words.index("--")] if "--" in words else words
  flags = [w.split("=")[0] for w in own if w.startswith("--")]
  faults = [
    f"no flag {f} in {script}" for f in flags if f not in flags_in(text)
  ]
  rest = words[len(own) + 1 :]
  return faults + (module_faults("gpt_jax.train", rest) if rest else [])


def command_faults(command: str) -> list[str]:
  """Returns what a command names that is not there."""
  words = shlex.split(command)
  faults = []
  for word in words:
    value = word.rpartition("=")[2]
    if re.fullmatch(rf"(?:{FOLDERS})/[\w./-]+|\w+\.md", value):
      faults += [] if (ROOT / value).exists() else [f"no file {value}"]
  if words[0] == "bash":
    return faults + script_faults(words[1], words[2:])
  if words[0] not in PYTHON or words[1] != "-m":
    return [*faults, f"neither a script nor a module: {command}"]
  if words[2] == "pip":
    return faults + pip_faults(words[3:])
  if not is_module(words[2]):
    return [*faults, f"no module {words[2]}"]
  return faults + module_faults(words[2], words[3:])


def path_faults(code: str) -> list[str]:
  """Returns paths in code that are not there, or only base names.

  A config may be given by its base name: those are found from any folder. In
  capitals, as FILE.py, stands a name that the reader chooses.
  """
  faults = []
  code = re.sub(r"[\w/]*\bFILE\.py", "", code)
  for path in re.findall(rf"(?<![\w./])(?:{FOLDERS})/[\w./-]*", code):
    if not (ROOT / path).exists():
      faults.append(f"no file {path}")
  for name in re.findall(r"(?<![\w./*-])(?!__)[\w-]+\.(?:py|sh)\b", code):
    if not (ROOT / "configs" / name).exists():
      faults.append(f"{name} is no full path")
  return faults


def config_faults(code: str) -> list[str]:
  """Returns configs and variants, configs/x.py:y or x.py:y, not there."""
  found = re.fullmatch(r"(?:configs/)?([\w-]+\.py):([\w-]+)", code)
  if not found or not (ROOT / "configs" / found[1]).exists():
    return []
  return override_faults([f"--config=configs/{found[1]}:{found[2]}"])


def code_faults(code: str) -> list[str]:
  """Returns what inline code names that is not there."""
  faults = path_faults(code) + config_faults(code)
  for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", code):
    if flag.startswith("--config."):
      code += f" {flag.removeprefix('--config.')}"
    elif flag not in every_flag():
      faults.append(f"no flag {flag}")
  for key in re.findall(rf"(?<![\w./-])(?:{PARTS})\.[a-z]\w+", code):
    if not key.endswith((".py", ".md", ".json")) and key not in config_keys():
      faults.append(f"no config key {key}")
  for name in re.findall(r"(?<![\w./-])(?:gpt_jax|lab)(?:\.\w+)+", code):
    module = name if name.startswith("gpt_jax") else f"gpt_jax.{name}"
    if not is_module(module):
      faults.append(f"no module {name}")
  for name in re.findall(r"\bGPT_JAX_\w+", code):
    if name not in every_variable():
      faults.append(f"no variable {name}")
  return faults


@functools.cache
def every_variable() -> set[str]:
  files = [*(ROOT / "gpt_jax").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
  files = [f for f in files if f != pathlib.Path(__file__)]
  return {
    name
    for file in files
    for name in re.findall(r"\bGPT_JAX_\w+", file.read_text())
  }


def slug(heading: str) -> str:
  """Returns the anchor that GitHub makes of a heading."""
  words = re.sub(r"[^\w\- ]", "", heading.strip().lower())
  return words.replace(" ", "-")


def anchors(text: str) -> set[str]:
  prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
  return {slug(h) for h in re.findall(r"^#+ (.*)$", prose, re.M)}


def link_faults(page: pathlib.Path, text: str) -> list[str]:
  """Returns links of a page's text that lead nowhere, anchors included."""
  faults = []
  for link in re.findall(r"\]\(([^)\s]+)\)", text):
    if link.startswith("https://"):
      continue
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
      faults.append(f"no file {path}")
    elif anchor:
      there = text if target == page else target.read_text()
      if anchor not in anchors(there):
        faults.append(f"no heading #{anchor} in {name_of(target)}")
  return faults


def listed(text: str) -> list[str]:
  """Returns the paths of the table below `## Every file`."""
  part = text.split("\n## Every file\n")[1].split("\n## ")[0]
  return re.findall(r"^\| `([^`]+)` \|", part, re.M)


def layout_faults(text: str) -> list[str]:
  """Returns what the table of files lacks, has twice, or has in vain."""
  paths = listed(text)
  files = {name_of(f) for f in (ROOT / "gpt_jax").rglob("*.py")}
  # A folder's row stands for its __init__.py and __main__.py.
  wanted = {re.sub(r"__(?:init|main)__\.py$", "", f) for f in files}
  return [
    *(f"not listed: {p}" for p in sorted(wanted - set(paths))),
    *(f"listed and not there: {p}" for p in paths if not (ROOT / p).exists()),
    *(f"listed twice: {p}" for p in sorted(set(paths)) if paths.count(p) > 1),
  ]


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


# Commands that take seconds on a tiny text: as a page has them, with SMALL
# added where they would train or prepare more than that.
SMALL = [
  "--config.data.seq_len=16",
  "--config.model.max_len=16",
  "--config.model.num_layers=1",
  "--config.model.model_dim=32",
  "--config.model.num_heads=2",
  "--config.model.num_kv_heads=2",
  "--config.model.mlp_dim=32",
  "--config.train.num_steps=4",
  "--config.optim.warmup_steps=1",
  "--config.train.global_batch_size=8",
  "--config.eval.num_batches=1",
  "--config.sample.num_tokens=4",
]
RUN_AS_THEY_STAND = [
  ".venv/bin/python -m gpt_jax.train --help",
  ".venv/bin/python -m gpt_jax.train --workdir=runs/tiny",
  ".venv/bin/python -m gpt_jax.train --workdir=runs/tiny --replay=600",
  ".venv/bin/python -m gpt_jax.generate --workdir=runs/tiny "
  "--prompt='def main(' --temperature=0.7 --top_p=0.9",
  ".venv/bin/python -m gpt_jax.evaluate --workdir=runs/tiny",
  ".venv/bin/python -m gpt_jax.evaluate --workdir=runs/tiny --data=README.md",
  ".venv/bin/python -m gpt_jax.evaluate --workdir=runs/tiny --weights=int8 "
  "--average=last:2",
  ".venv/bin/python -m gpt_jax.lab.plan --config=configs/gpt2.py:1558m "
  "--topology=h100:8 --search",
]
RUN_SMALL = [
  "bash launch/local.sh --config.data.source='text:~/books/*.txt' "
  "--config.data.tokenizer=bpe:4096 --workdir=runs/books",
  "bash launch/local.sh "
  "--config.data.source='0.7*text:a/*.txt,0.3*jsonl:b.jsonl#body' "
  "--workdir=runs/mixture",
  "bash launch/local.sh --devices=8 --config.mesh.data=2 "
  "--config.mesh.fsdp=2 --config.mesh.tensor=2 --workdir=runs/mesh",
  ".venv/bin/python -m gpt_jax.data --config=configs/llama.py:mini",
]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
  """A folder with the texts and the run that the pages' commands name."""
  folder = tmp_path_factory.mktemp("house")
  for name in ("README.md", "configs"):
    (folder / name).symlink_to(ROOT / name)
  text = (ROOT / "docs" / "scaling.md").read_text()
  for name in ("a", "books"):
    (folder / name).mkdir()
    for i in range(4):
      (folder / name / f"{i}.txt").write_text(f"{name} {i}\n{text}")
  line = '{"body": "Some text of many words, number %d."}\n'
  (folder / "b.jsonl").write_text("".join(line % i for i in range(200)))
  # The run of the quickstart, on a text and in sizes of seconds.
  words = [*SMALL, "--config.train.num_steps=900"]
  words += ["--config.data.source=text:a/*.txt", "--workdir=runs/tiny"]
  words += ["--config.data.tokenizer=bytes", "--config.eval.every_steps=0"]
  words += ["--config.checkpoint.every_steps=450"]
  run_in(folder, ["gpt_jax.train", *words])
  return folder


def run_in(folder: pathlib.Path, words: list[str]) -> str:
  env = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(folder)}
  # As in conftest.py, without its 8 devices.
  env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
  result = subprocess.run(
    [sys.executable, "-m", *words],
    cwd=folder,
    env=env,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert result.returncode == 0, result.stdout + result.stderr
  return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN_AS_THEY_STAND + RUN_SMALL)
def test_commands_of_seconds_do_what_the_page_says(house, command):
  assert any(command in commands(page.read_text()) for page in PAGES)
  words = shlex.split(command)
  words = words[2:] if words[0] != "bash" else ["gpt_jax.train", *words[2:]]
  if command in RUN_SMALL:
    words += SMALL
    if "data.source" not in command:
      words += ["--config.data.source=text:a/*.txt"]
    if "data.tokenizer" not in command:
      words += ["--config.data.tokenizer=bytes"]
  assert run_in(house, words).strip()
