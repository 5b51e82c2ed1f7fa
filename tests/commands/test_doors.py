"""What is typed: commands, paths and config files, from any folder."""

import json
import os
import re
import stat
import subprocess
import sys

import pytest
from harness import ROOT
from refusals import assert_refused

from gpt_jax import cli, commands, files
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.machine import runtime


def run(*words, cwd=ROOT, **env):
  return subprocess.run(
    [sys.executable, *words],
    capture_output=True,
    text=True,
    cwd=cwd,
    env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
  )


# Commands


def test_every_command_is_listed_with_a_line():
  package = ROOT / "gpt_jax"
  found = {
    ".".join(p.relative_to(package).with_suffix("").parts)
    for p in package.rglob("*.py")
    if "\n  cli.run(" in p.read_text()
  }
  found = {name.removesuffix(".__main__") for name in found}
  assert found - {"lab"} == set(commands.COMMANDS)


@pytest.mark.wide
def test_the_package_lists_and_runs_commands(tmp_path):
  listed = run("-m", "gpt_jax", cwd=tmp_path)
  assert listed.returncode == 0 and not listed.stderr
  for name, line in commands.COMMANDS.items():
    assert re.search(rf"gpt_jax\.{name} +{re.escape(line)}\n", listed.stdout)
  lab = run("-m", "gpt_jax.lab", cwd=tmp_path).stdout
  assert "gpt_jax.lab.sweep " in lab and "gpt_jax.train " not in lab
  version = run("-m", "gpt_jax", "train", "--version", cwd=tmp_path)
  assert version.stdout.startswith("gpt_jax ")
  assert_refused(run("-m", "gpt_jax", "tran"), "did you mean train?")
  assert_refused(run("-m", "gpt_jax.lab", "x"), "unknown command x")


NO_KEYS = {
  "data.__main__": (
    ("clean", "--source=a", "--out=b"),
    ("quality", "--good=a", "--bad=b", "--out=c"),
    ("anonymity", "--table=a", "--columns=b"),
    ("card", "--folder=a"),
  ),
  "deploy.hf.__main__": (("import", "--from=a", "--workdir=b"),),
  "lab.canaries.__main__": (("plant", "--list=a"), ("measure", "--list=a")),
  "lab.interp.__main__": (("--workdir=a", "--text=b", "--out=c"),),
  "lab.plan.attention": ((),),
  "lab.sweep.mixture": (("--workdir=a",),),
}


@pytest.mark.parametrize("verb", NO_KEYS)
def test_a_config_key_that_would_do_nothing_is_refused(
  call_verb, verb, elsewhere
):
  for words in NO_KEYS[verb]:
    result = call_verb(verb, *words, "--config.seed=1")
    assert_refused(result, "--config.seed does nothing here; leave it out")
    assert_refused(call_verb(verb, *words, "--sede=1"), "argument --sede; ")


FOLDERS = {
  "deploy.compress.__main__": ("--workdir=a", "--method=int8"),
  "deploy.logits": ("--top_k=4",),
  "deploy.merge": ("--workdir=a",),
  "lab.bench": ("train",),
  "lab.bench.growth": (),
  "lab.card": ("--toy",),
  "lab.plan": ("--topology=cpu:1",),
  "lab.plan.published": (),
  "lab.plan.slices": ("--topologies=v5e:2x2",),
  "lab.scaling": ("--csv=a",),
  "lab.transfer": (),
  "lab.transfer.coordinates": (),
}


@pytest.mark.parametrize("verb", FOLDERS)
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
  call_verb, verb, elsewhere
):
  (elsewhere / "file").touch()
  for out in ("file", "file/b", "/proc/none"):
    result = call_verb(verb, *FOLDERS[verb], f"--out={out}")
    assert_refused(result, "is no folder to write in")


# Config files


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize(
  "name", ["configs/gpt2.py:124m", "gpt2.py:124m", "gpt2:124m"]
)
def test_configs_are_found_from_any_folder(elsewhere, name):
  assert cli.load_config(name, {}).model.num_layers == 12


def test_a_file_that_is_here_comes_before_one_that_came_along(elsewhere):
  (elsewhere / "tiny.py").write_text(ONE_LAYER)
  assert cli.load_config("tiny.py", {}).model.num_layers == 1
  assert cli.load_config("tiny", {}).model.num_layers != 1


ONE_LAYER = """
from configs import base
def get_config(variant="1"):
  config = base.get_config()
  config.model.num_layers = int(variant)
  return config
"""


def test_the_longest_name_that_is_there_is_the_file(elsewhere):
  folder = elsewhere / "m" / "a:b"
  folder.mkdir(parents=True)
  (folder / "small.py").write_text(ONE_LAYER)
  for variant, layers in (("", 1), (":3", 3)):
    config = cli.load_config(f"m/a:b/small.py{variant}", {})
    assert config.model.num_layers == layers


def test_a_package_called_configs_is_not_in_the_way(tmp_path):
  theirs = tmp_path / "configs"
  theirs.mkdir()
  (theirs / "__init__.py").write_text("raise RuntimeError('not ours')")
  (theirs / "theirs.py").write_text("LAYERS = 5\n")
  (tmp_path / "mine.py").write_text(
    ONE_LAYER.replace('"1"', "LAYERS").replace(
      "\n", "\nfrom configs.theirs import LAYERS\n", 1
    )
  )
  helped = run("-m", "gpt_jax.train", "--help", cwd=tmp_path)
  assert helped.returncode == 0 and "model.num_layers = " in helped.stdout
  code = "from gpt_jax import cli; print(cli.load_config('mine.py', {}).model)"
  found = run("-c", code, cwd=tmp_path)
  assert "num_layers: 5" in found.stdout, found.stderr


BODIES = {
  "exit": ("import sys\nsys.exit()\n", "called sys.exit()"),
  "exit 0": ("def get_config():\n  raise SystemExit(0)\n", "sys.exit(0)"),
  "exit word": ("raise SystemExit('bye')\n", "sys.exit('bye')"),
  "base": ("class E(BaseException): pass\nraise E('x')\n", "line 2: x"),
  "stop": ("def get_config():\n  raise GeneratorExit\n", "line 2"),
  "deep": ("def get_config():\n  return get_config()\n", "line 2"),
  "number": ("get_config = 5\n", "defines no get_config()"),
  "empty": ("def get_config():\n  return {}\n", "section train is missing"),
}


@pytest.mark.parametrize("body", BODIES)
def test_whatever_a_config_file_does_is_a_sentence(call_verb, tmp_path, body):
  text, said = BODIES[body]
  (tmp_path / "mine.py").write_text(text)
  words = f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/run"
  result = call_verb("train", *words, "--config.train.num_steps=3")
  assert_refused(result, "gpt_jax: config ", said)


def test_a_config_file_that_is_no_file_is_a_sentence(call_verb, tmp_path):
  os.mkfifo(tmp_path / "pipe.py")
  (tmp_path / "zero.py").symlink_to("/dev/zero")
  (tmp_path / "gone.py").symlink_to("nowhere")
  for name, said in (
    ("pipe", "is a named pipe"),
    ("zero", "is a device"),
    ("gone", "is a link that leads nowhere"),
  ):
    words = f"--config={tmp_path}/{name}.py", f"--workdir={tmp_path}/run"
    assert_refused(call_verb("train", *words), said)


# Paths

# A flag or key, the verb that takes it and what else that must be given.
PATHS = {
  "--workdir": ("train", ()),
  "--config": ("train", ("--workdir=x",)),
  "--config.data.dir": ("train", ("--workdir=x",)),
  "--config.train.init_from": ("train", ("--workdir=x",)),
  "--csv": ("lab.scaling", ()),
  "--workdirs": ("lab.scaling", ()),
  "--out": ("lab.plan", ("--topology=cpu:8",)),
}
# Those that may be an address, of a scheme that there is.
ADDRESSES = "--workdir", "--config.data.dir", "--config.train.init_from"
WRONG = {
  "": "is empty",
  "odd://bucket/run": "must be a path of this machine, not an address",
  "r\udcff": "is not UTF-8",
  "~nobody-of-that-name/x": "no such home folder here",
}


@pytest.mark.parametrize("path", WRONG)
@pytest.mark.parametrize("flag", PATHS)
def test_no_path_is_taken_that_cannot_be_meant(
  call_verb, elsewhere, flag, path
):
  verb, words = PATHS[flag]
  if "://" in path and flag in ADDRESSES:
    result = call_verb(verb, *words, f"{flag}={path}")
    assert_refused(result, "gpt_jax: odd:// is no address", "s3://")
    assert not list(elsewhere.iterdir())
    return
  name = flag.removeprefix("--config.")
  result = call_verb(verb, *words, f"{flag}={path}")
  assert_refused(result, f"gpt_jax: {name} is", WRONG[path])
  assert not list(elsewhere.iterdir())


def test_home_is_expanded_in_every_path(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  parser = cli.build_parser("x", "")
  parser.add_argument("--workdir", metavar="DIR")
  parser.add_argument("--name", metavar="WORD")
  words = ["--workdir=~/a", "--name=~/b", "--config=~/c.py"]
  args, _ = cli.parse(parser, words)
  assert args.workdir == f"{tmp_path}/a" and args.config == f"{tmp_path}/c.py"
  assert args.name == "~/b"  # the control: no path
  config = cli.load_config("tiny", {"data.dir": "~/d"})
  assert config_lib.freeze(config).data.dir == f"{tmp_path}/d"


def test_every_flag_that_names_a_path_is_seen_as_one():
  """By its METAVAR, so none may have another."""
  paths, others = set(), set()
  for path in (ROOT / "gpt_jax").rglob("*.py"):
    text = re.sub(r"\s+", " ", path.read_text())
    pattern = r'add(?:_argument)?\( ?"--([\w-]+)",([^)]*)'
    for flag, rest in re.findall(pattern, text):
      metavar = re.search(r'metavar="([A-Z]+)', rest)
      is_path = metavar and metavar[1] in cli._PATHS
      (paths if is_path else others).add(flag)
  wanted = {"workdir", "workdirs", "out", "csv", "emit", "config"}
  assert wanted <= paths and not paths & others, paths & others
  likely = re.compile("dir|file|path|folder|root")
  assert not [flag for flag in others if likely.search(flag)]


def test_a_removed_folder_is_a_sentence(tmp_path, monkeypatch):
  folder = tmp_path / "gone"
  folder.mkdir()
  monkeypatch.chdir(folder)
  folder.rmdir()
  with pytest.raises(InputError, match="current folder has been removed"):
    files.user_path("--workdir", "runs/x")
  assert files.user_path("--workdir", "/runs/x") == "/runs/x"


def test_a_user_without_home_or_name_has_a_cache_of_its_own(
  monkeypatch, tmp_path
):
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  monkeypatch.setattr(os.path, "expanduser", lambda path: path)
  monkeypatch.setattr(runtime.tempfile, "tempdir", str(tmp_path))
  folder = runtime.cache_dir()
  assert folder == f"{tmp_path}/gpt_jax-{os.getuid()}"
  assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
  # Programs are run from it: not from what others may write.
  os.chmod(folder, 0o777)
  assert runtime.cache_dir() != folder


@pytest.mark.parametrize(
  "error",
  [
    FileNotFoundError(2, "gone", "/a/b"),
    OSError(37, "No locks", None),
    OSError("words alone"),
  ],
)
def test_every_error_of_the_system_is_a_sentence(error, capsys):
  def main(argv):
    raise error

  with pytest.raises(SystemExit) as ended:
    cli.run(main, [])
  assert ended.value.code == 2
  said = capsys.readouterr().err
  assert said.startswith("gpt_jax: cannot read or write")
  assert said.count("\n") == 1 and (error.strerror or "words") in said


# A run that is there


@pytest.mark.wide
def test_a_workdir_alone_goes_on_and_zero_is_never(
  call_verb, small_run, tmp_path
):
  workdir = tmp_path / "run"
  never = [f"--config.{k}.every_steps=0" for k in ("eval", "checkpoint")]
  never += ["--config.train.log_every_steps=0", "--config.train.num_steps=4"]
  never += ["--config.optim.warmup_steps=1"]
  first = call_verb("train", *small_run, *never, f"--workdir={workdir}")
  assert first.returncode == 0, first.stderr
  assert os.listdir(workdir / "checkpoints") == ["4"]
  rows = (workdir / "metrics.jsonl").read_text().splitlines()
  steps = [json.loads(row)["step"] for row in rows]
  assert set(steps) == {1, 4}
  again = call_verb("train", f"--workdir={workdir}")
  assert again.returncode == 0 and "this run is finished" in again.stdout
  # The control: what differs is still refused by name.
  other = call_verb("train", f"--workdir={workdir}", "--config.seed=9")
  assert_refused(other, "seed (0 there, 9 here)")
