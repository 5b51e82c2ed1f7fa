"""What a page names, and which of it is not there.

Each check is a function from text to faults, so that a control can give it a
text with the fault that it is there to find.
"""

import contextlib
import functools
import importlib
import importlib.util
import io
import pathlib
import re
import shlex
import tomllib

from harness import ROOT

from configs import base
from gpt_jax import cli, config

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
  if words[0] in PYTHON and words[1].endswith(".py"):
    return faults  # a file, which was looked for above
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
  # That one names what is not there.
  files = [f for f in files if f.name != "test_readme.py"]
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
