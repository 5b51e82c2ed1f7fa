"""Imports point only downwards, and a few habits stay out of the package.

Read from the source by AST; nothing is imported.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Rooms and modules of the hall, in the order of the house: a module imports
# from lower layers, and from its own layer only to the left.
LAYERS = [
  ["exits", "digest", "files", "config", "tree", "metric_names", "theme"],
  ["machine"],
  ["encryption", "cli", "commands", "sharding", "parametrization"],
  ["ops"],
  ["flops"],
  ["models", "data"],
  ["judging", "teacher", "objective"],
  ["runs"],
  ["inference"],
  ["training"],
  ["generate", "evaluate", "embed", "train", "api"],
  ["deploy"],
  ["serve"],
  ["lab"],
  ["__main__"],
]
RANK = {
  name: (layer, place)
  for layer, names in enumerate(LAYERS)
  for place, name in enumerate(names)
}
# Same layer, yet neither imports the other.
APART = [{"models", "data"}, {"generate", "evaluate", "embed", "train"}]
MAX_LINES = 450
MAX_FUNCTION_LINES = 80
DRAWERS = ("utils", "common", "misc", "helpers")


def imports_of(source: str) -> set[str]:
  """Returns dotted names of everything a source imports, lazily too."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      module = node.module or ""
      found.add(module)
      found |= {f"{module}.{alias.name}" for alias in node.names}
  return found


def rooms_of(source: str) -> set[str]:
  """Returns hall modules and rooms of gpt_jax that a source imports."""
  parts = [name.split(".") for name in imports_of(source)]
  return {
    p[1] for p in parts if p[0] == "gpt_jax" and len(p) > 1 and p[1] in RANK
  }


def order_faults(name: str, source: str) -> list[str]:
  faults = []
  for other in sorted(rooms_of(source) - {name}):
    if RANK[other] >= RANK[name]:
      faults.append(f"{name} imports {other}, which is not below it")
    elif any({name, other} <= pair for pair in APART):
      faults.append(f"{name} imports {other}; they are to stay apart")
  return faults


def circles(modules: dict[str, str]) -> list[list[str]]:
  """Returns the circles of imports among modules, each once.

  Args:
    modules: {dotted name: source}.
  """
  graph = {
    name: sorted((imports_of(source) & set(modules)) - {name, "gpt_jax"})
    for name, source in modules.items()
  }
  found, done = [], set()

  def visit(name: str, path: list[str]) -> None:
    if name in path:
      found.append([*path[path.index(name) :], name])
    elif name not in done:
      for other in graph[name]:
        # A package's own door is loaded with any module in it.
        if not name.startswith(f"{other}."):
          visit(other, [*path, name])
      done.add(name)

  for name in graph:
    visit(name, [])
  return found


def habit_faults(name: str, source: str) -> list[str]:
  faults = []
  tops = {i.split(".")[0] for i in imports_of(source)}
  if "tensorflow" in tops:
    faults.append(f"{name} imports TensorFlow")
  if name in ("config", "cli") and "jax" in tops:
    faults.append(f"{name} imports jax")
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Attribute):
      owner = ast.unparse(node.value)
      if node.attr in ("environ", "getenv") and owner == "os":
        if name != "machine":
          faults.append(f"{name} reads the environment")
      is_config = owner.split(".")[-1] in ("config", "c", "cfg")
      if node.attr == "get" and is_config:
        faults.append(f"{name} calls .get( on a config")
  return faults


def size_faults(source: str) -> list[str]:
  """Returns the file, and functions in it, that are longer than allowed."""
  count = len(source.splitlines())
  faults = [f"{count} lines"] if count > MAX_LINES else []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.FunctionDef):
      count = node.end_lineno - node.lineno + 1
      if count > MAX_FUNCTION_LINES:
        faults.append(f"{node.name} has {count} lines")
  return faults


def sources() -> list[tuple[str, pathlib.Path]]:
  package = ROOT / "gpt_jax"
  found = []
  for path in sorted(package.rglob("*.py")):
    relative = path.relative_to(package)
    if relative.name == "__init__.py" and len(relative.parts) == 1:
      continue
    found.append((relative.parts[0].removesuffix(".py"), path))
  return found


@pytest.mark.parametrize("name, path", sources(), ids=lambda x: str(x)[-30:])
def test_imports_point_downwards(name, path):
  assert name in RANK, f"{name} has no layer; give it one"
  assert order_faults(name, path.read_text()) == []


def test_no_imports_go_in_circles():
  modules = {}
  for _, path in sources():
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(p for p in parts if p != "__init__")
    modules[name] = path.read_text()
  assert len(modules) > 80 and circles(modules) == []
  one, other = "gpt_jax.lab.plan.search", "gpt_jax.lab.plan.planner"
  modules[other] += "\ndef f():\n  from gpt_jax.lab.plan import search\n"
  assert any({one, other} <= set(circle) for circle in circles(modules))


def test_nothing_lies_loose_in_the_lab():
  loose = {path.name for path in (ROOT / "gpt_jax" / "lab").glob("*.py")}
  assert loose == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("name, path", sources(), ids=lambda x: str(x)[-30:])
def test_bad_habits_stay_out(name, path):
  assert path.stem not in DRAWERS
  assert habit_faults(name, path.read_text()) == []


def test_no_file_and_no_function_is_too_long():
  files = [path for _, path in sources()]
  files += sorted((ROOT / "tests").rglob("*.py"))
  assert len(files) > 200
  faults = {f.name: size_faults(f.read_text()) for f in files}
  # The base config is one function, as it is one table.
  table = (ROOT / "configs" / "base.py").read_text()
  faults["base.py"] = [f for f in size_faults(table) if "get_config" not in f]
  assert {name: found for name, found in faults.items() if found} == {}


def test_configs_import_nothing_but_configs():
  for path in sorted((ROOT / "configs").glob("*.py")):
    tops = {i.split(".")[0] for i in imports_of(path.read_text())}
    assert tops <= {"ml_collections", "configs", "dataclasses"}, path


def test_launch_scripts_import_nothing():
  for path in sorted((ROOT / "launch").glob("*.sh")):
    text = path.read_text()
    assert "import gpt_jax" not in text and "from gpt_jax" not in text


def test_the_checks_see_what_they_forbid():
  upwards = "from gpt_jax.training import step\n"
  assert order_faults("config", upwards)
  assert order_faults("models", "def f():\n  from gpt_jax.data import shards")
  assert not order_faults("lab", upwards)
  assert habit_faults("training", "import os\nx = os.environ['A']")
  assert habit_faults("training", "from tensorflow import keras")
  assert habit_faults("cli", "import jax.numpy")
  assert habit_faults("training", "x = self.config.get('a', 1)")
  assert not habit_faults("training", "x = batch.get('a')")
  assert size_faults("x = 1\n" * 451) and not size_faults("x = 1\n" * 450)
  assert size_faults("def f():\n" + "  x = 1\n" * 80)
  assert not size_faults("def f():\n" + "  x = 1\n" * 79)


def test_no_two_test_modules_share_a_name():
  """The later one would be taken for the earlier, and its tests not run.

  pytest reads each conftest.py by its path; which of them an import would find
  depends on what was collected last.
  """
  files = list((ROOT / "tests").rglob("*.py"))
  names = [path.name for path in files if path.name != "conftest.py"]
  assert sorted(set(names)) == sorted(names)
  for path in files:
    assert "conftest" not in imports_of(path.read_text()), path
