"""One small run is trained for all tests of a session that read one."""

import pytest
from refusals import content_of


@pytest.fixture(scope="session")
def base(tmp_path_factory, small_flags):
  """A folder with a corpus, and the flags of a run of 20 steps on it."""
  folder = tmp_path_factory.mktemp("base")
  more = {
    "train.num_steps": 20,
    "checkpoint.every_steps": 8,
    "checkpoint.keep_last": 3,
    # Twenty steps bring the loss from ln 257 to well below.
    "optim.learning_rate": 1e-2,
  }
  flags = [f"--config.{key}={value}" for key, value in more.items()]
  return folder, small_flags(folder) + flags


@pytest.fixture(scope="session")
def trained(base, call_verb):
  """The workdir of that run, finished; to be read only."""
  folder, flags = base
  flags = [*flags, "--config.sample.every_steps=10"]
  result = call_verb("train", *flags, f"--workdir={folder / 'run'}")
  assert (result.returncode, result.stderr) == (0, ""), result.stderr
  return folder / "run"


@pytest.fixture
def train(base, call_verb, tmp_path):
  """Calls train with the base's flags and more; nothing may be left."""

  def run(*words, workdir=tmp_path / "new", is_kept=False):
    before = content_of(workdir)
    result = call_verb("train", *base[1], *words, f"--workdir={workdir}")
    if not is_kept:
      assert content_of(workdir) == before
    return result

  return run
