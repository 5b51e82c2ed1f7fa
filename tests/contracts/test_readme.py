"""What the README says is there, and what it says to type works."""

import contextlib
import importlib
import io
import pathlib
import re
import shlex

import pytest

from gpt_jax import cli, config

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()


def blocks(kind: str) -> list[str]:
  return re.findall(rf"```{kind}\n(.*?)```", TEXT, re.S)


def commands() -> list[str]:
  lines = "\n".join(blocks("bash")).splitlines()
  return [line.split("  #")[0].strip() for line in lines if line.strip()]


def unknown_flags(words: list[str]) -> list[str]:
  """Returns the flags of a command that neither its script nor --help names."""
  verb = next((w[8:] for w in words if w.startswith("gpt_jax.")), "train")
  main = importlib.import_module(f"gpt_jax.{verb}").main
  text = io.StringIO()
  with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
    main(["--help"])
  flags = [w.split("=")[0] for w in words if w.startswith("--") and w != "--"]
  scripts = [(ROOT / w).read_text() for w in words if w.endswith(".sh")]
  known = set(re.findall(r"--[\w-]+", text.getvalue() + "".join(scripts)))
  return [f for f in flags if f not in known and "." not in f]


def listed_files() -> set[str]:
  tree = next(b for b in blocks("text") if "gpt_jax/" in b)
  return set(re.findall(r"[\w/]+\.(?:py|sh|md)", tree))


def package_files() -> set[str]:
  files = (ROOT / "gpt_jax").rglob("*.py")
  return {f.name for f in files if not f.name.startswith("__")}


def test_the_tree_lists_every_file_and_no_other():
  listed = listed_files()
  assert package_files() - listed == set()
  for name in listed:
    found = list(ROOT.rglob(name))
    assert found, f"README lists {name}, which is not there"


@pytest.mark.parametrize("command", commands())
def test_every_command_names_what_is_there(command):
  words = shlex.split(command)
  assert words, command
  assert unknown_flags(words) == []
  overrides = {}
  for word in words:
    if word.startswith("--config.") and "=" in word:
      key, _, value = word.removeprefix("--config.").partition("=")
      overrides[key] = value
    if word.endswith(".sh"):
      assert (ROOT / word).is_file(), word
  file = next((w[9:] for w in words if w.startswith("--config=")), None)
  name, _, variant = (file or "configs/tiny.py").partition(":")
  path = f"{ROOT / name}:{variant}" if variant else str(ROOT / name)
  config.freeze(cli.load_config(path, overrides))


def test_links_lead_somewhere():
  for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
    assert (ROOT / target).exists(), target


def test_tests_that_are_named_are_there():
  for name in re.findall(r"`((?:tests/)?[\w/]*test_\w+\.py)`", TEXT):
    assert list(ROOT.rglob(name.split("/")[-1])), name


def test_no_figure_is_left_to_fill_in():
  assert "@@" not in TEXT


def test_a_flag_that_is_not_there_is_seen():
  assert unknown_flags(["gpt_jax.generate", "--nonsense=1"]) == ["--nonsense"]
  words = ["launch/local.sh", "--processes=2", "--nonsense=1"]
  assert unknown_flags(words) == ["--nonsense"]
