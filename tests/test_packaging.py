"""What is imported is declared, what is declared is used, what is locked fits.

Nothing here needs a network: sources are read as trees, locks as text.
"""

import ast
import importlib
import importlib.metadata
import pathlib
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OWN = {"gpt_jax", "configs"}
# Where the name of the import is not the name of the package.
PACKAGE_OF = {"absl": "absl-py", "orbax": "orbax-checkpoint"}
# Declared, though no import of ours names it.
REASONS = {
  "gcsfs": "fsspec opens gs:// by it",
  "s3fs": "fsspec opens s3:// by it",
  "array-record": "tensorflow-datasets reads files in its format with it",
  "jax-cuda13-plugin": "jax finds it by itself",
  "importlib-resources": "tensorflow-datasets imports it without declaring it",
}
LOCKS = ("requirements.txt", "requirements-dev.txt")
PYTHONS = ("3.11.2", "3.12.1", "3.13.0", "3.14.0")
MAX_PACKAGES = 75
BANNED = {"tensorflow", "tensorflow-cpu", "tf-nightly", "torch", "matplotlib"}


def names_of(requirements: list[str]) -> set[str]:
  return {canonicalize_name(Requirement(r).name) for r in requirements}


EXTRAS = PROJECT["project"]["optional-dependencies"]
CORE = names_of(PROJECT["project"]["dependencies"])
OPTIONAL = names_of(
  [r for name, extra in EXTRAS.items() if name != "dev" for r in extra]
)


def find_imports(source: str) -> list[tuple[str, bool]]:
  """Returns (top-level name, whether it is imported with its module)."""
  found = []

  def visit(node, is_eager):
    if isinstance(node, ast.Import):
      found.extend((a.name, is_eager) for a in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level:
      found.append((node.module, is_eager))
    elif isinstance(node, ast.Call) and node.args:
      called = ast.unparse(node.func).split(".")[-1]
      name = getattr(node.args[0], "value", None)
      if called in ("import_module", "__import__") and isinstance(name, str):
        found.append((name, is_eager))
    is_lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    for child in ast.iter_child_nodes(node):
      visit(child, is_eager and not is_lazy)

  visit(ast.parse(source), True)
  return [(name.split(".")[0], is_eager) for name, is_eager in found]


def find_problems(
  sources: dict[str, str], core: set[str], optional: set[str]
) -> list[str]:
  """Returns what is wrong between the imports and the declarations."""
  problems, used = [], set()
  for path, source in sources.items():
    for name, is_eager in find_imports(source):
      if name in OWN or name in sys.stdlib_module_names:
        continue
      package = canonicalize_name(PACKAGE_OF.get(name, name))
      used.add(package)
      if package not in core | optional:
        problems.append(f"{path} imports {name}, which is not declared")
      elif package not in core and is_eager:
        problems.append(f"{path} imports {name} of an extra with the module")
  for package in sorted(core | optional):
    if package not in used and package not in REASONS:
      problems.append(f"{package} is declared and never imported")
  return problems


def read_sources() -> dict[str, str]:
  return {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in OWN
    for path in sorted((ROOT / folder).rglob("*.py"))
  }


def read_lock(name: str) -> list[Requirement]:
  lines = (ROOT / name).read_text().splitlines()
  return [Requirement(line) for line in lines if not line.startswith("#")]


def is_wanted(requirement: Requirement, python: str) -> bool:
  """Whether it is installed by that Python on Linux."""
  return requirement.marker is None or requirement.marker.evaluate(
    {
      "python_full_version": python,
      "python_version": ".".join(python.split(".")[:2]),
      "implementation_name": "cpython",
      "platform_python_implementation": "CPython",
      "sys_platform": "linux",
      "platform_system": "Linux",
      "platform_machine": "x86_64",
      "os_name": "posix",
      "extra": "",
    }
  )


def resolve(lock: list[Requirement], python: str) -> dict[str, str]:
  """Returns the version of each package that Python gets on Linux."""
  wanted = [r for r in lock if is_wanted(r, python)]
  pins = {canonicalize_name(r.name): str(r.specifier)[2:] for r in wanted}
  assert len(pins) == len(wanted), "a package is pinned twice"
  return pins


def find_unmet(ranges: list[str], pins: dict[str, str], python: str):
  """Returns the ranges that the pins leave open or break."""
  unmet = []
  for requirement in map(Requirement, ranges):
    pin = pins.get(canonicalize_name(requirement.name))
    if not is_wanted(requirement, python):
      continue
    if pin is None or not requirement.specifier.contains(pin, prereleases=True):
      unmet.append(f"{requirement}, found {pin}")
  return unmet


def test_imports_and_declared_dependencies_are_the_same():
  assert not find_problems(read_sources(), CORE, OPTIONAL)


def test_what_is_wrong_with_imports_is_found():
  eager = {"a.py": "import jax.numpy as jnp\nimport wandb\n"}
  lazy = {"a.py": "import jax\ndef f():\n  from wandb import init\n"}
  assert not find_problems(lazy, {"jax"}, {"wandb"})
  assert "of an extra" in find_problems(eager, {"jax"}, {"wandb"})[0]
  assert "not declared" in find_problems(lazy, {"jax"}, set())[0]
  assert "never" in find_problems(lazy, {"jax", "optax"}, {"wandb"})[0]
  called = {"a.py": "import importlib\nimportlib.import_module('torch.nn')"}
  assert "imports torch" in find_problems(called, set(), set())[0]
  relative = {"a.py": "from . import layers\nfrom orbax import checkpoint"}
  assert not find_problems(relative, {"orbax-checkpoint"}, set())


def test_the_gpu_compiler_is_of_the_version_of_jax():
  wanted = [Requirement(r) for r in EXTRAS["plan-gpu"]]
  for python in PYTHONS:
    (plugin,) = [r for r in wanted if is_wanted(r, python)]
    pins = resolve(read_lock("requirements.txt"), python)
    assert str(plugin.specifier) == f"=={pins['jax']}", python


def test_every_reason_is_for_a_declared_package():
  assert CORE | OPTIONAL >= REASONS.keys()


def test_an_installed_package_holds_every_room():
  setuptools = PROJECT["tool"]["setuptools"]
  rooms = {"gpt_jax.configs"}
  for path in (ROOT / "gpt_jax").rglob("*.py"):
    room = path.parent.relative_to(ROOT)
    assert (path.parent / "__init__.py").exists(), f"{room} is left out"
    rooms.add(".".join(room.parts))
  assert sorted(setuptools["packages"]) == sorted(rooms)
  assert setuptools["package-dir"] == {"gpt_jax.configs": "configs"}


def test_the_command_is_a_function_that_is_there():
  module, _, name = PROJECT["project"]["scripts"]["gpt_jax"].partition(":")
  assert callable(getattr(importlib.import_module(module), name))


def test_the_version_can_be_read_without_importing():
  assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {
    "attr": "gpt_jax.__version__"
  }
  source = (ROOT / "gpt_jax" / "__init__.py").read_text()
  assert re.search(r'^__version__ = "\d+\.\d+\.\d+"$', source, re.M)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_fits_the_declared_ranges(python):
  ranges = PROJECT["project"]["dependencies"]
  for lock, more in zip(LOCKS, ([], EXTRAS["dev"]), strict=True):
    pins = resolve(read_lock(lock), python)
    assert not find_unmet(ranges + more, pins, python)
  pins["jax"] = "0.9.0"
  del pins["optax"]
  assert len(find_unmet(ranges, pins, python)) == 2


@pytest.mark.parametrize("python", PYTHONS)
def test_the_default_environment_is_small(python):
  pins = resolve(read_lock("requirements.txt"), python)
  assert 30 < len(pins) < MAX_PACKAGES
  assert not BANNED & pins.keys()


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_is_pins_in_order_and_nothing_of_a_machine(lock):
  lines = (ROOT / lock).read_text().splitlines()
  pins = [line for line in lines if not line.startswith("#")]
  for line in pins:
    assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; .+)?", line), line
  names = [line.split("==")[0] for line in pins]
  assert names == sorted(names)
  for line in lines:
    assert "/" not in line and "index" not in line, line


def test_the_development_lock_holds_the_other_one_and_the_dev_extra():
  default, dev = (set(map(str, read_lock(lock))) for lock in LOCKS)
  assert default < dev
  added = {canonicalize_name(Requirement(r).name) for r in dev - default}
  # jax[tpu] is the TPU compiler, beside the jax that is there already.
  assert added | {"jax"} >= names_of(EXTRAS["dev"]) - {"packaging"}
  assert "libtpu" in added


def test_the_lock_leaves_nothing_for_a_resolver():
  """Launching installs with --no-deps: a gap would show at an import."""
  python = sys.version.split()[0]
  pins = resolve(read_lock("requirements.txt"), python)
  checked, gaps = 0, []
  for name, pin in pins.items():
    try:
      package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
      continue
    if package.version == pin:
      checked += 1
      gaps += find_unmet(package.requires or [], pins, python)
  if not checked:
    pytest.skip("this environment was not installed from the lock")
  assert not gaps
  assert find_unmet(["jax", "not-locked>=1"], pins, python)
