"""What a refusal is: one sentence, and nothing left behind."""

import hashlib
import pathlib
import shutil

STEPS = [8, 16, 20]


def assert_refused(result, *said, code: int = 2) -> None:
  """Checks that a verb ended in one sentence that holds all of `said`."""
  lines = result.stderr.splitlines()
  assert "Traceback" not in result.stdout + result.stderr
  assert result.returncode == code, result.stderr
  assert len(lines) == 1 and lines[0].startswith("gpt_jax: "), lines
  for words in said:
    assert words in lines[0]


def content_of(folder) -> dict[str, str]:
  """Returns {path: sha256} of all files below a folder, locks apart."""
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(pathlib.Path(folder).rglob("*"))
    if path.is_file() and not path.name.startswith(".lock-")
  }


def flag(key: str, value) -> str:
  return f"--config.{key}={value}"


def assert_run_refused(call_verb, flags, changed: dict, said: str, workdir):
  """Checks that flags with some changed start no run, for what is said."""
  keys = tuple(f"--config.{key}=" for key in changed)
  kept = [word for word in flags if not word.startswith(keys)]
  more = [flag(key, value) for key, value in changed.items()]
  result = call_verb("train", *kept, *more, f"--workdir={workdir}")
  assert_refused(result, said)
  assert not content_of(workdir)


def damaged(trained, tmp_path) -> pathlib.Path:
  """Returns a copy of the run that a test may spoil."""
  return pathlib.Path(shutil.copytree(trained, tmp_path / "run"))
