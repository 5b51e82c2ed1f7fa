"""Fixtures of the checkpoints."""

import pytest


@pytest.fixture
def folder(tmp_path):
  return str(tmp_path / "run" / "checkpoints")


@pytest.fixture
def quiet(capfd, caplog):
  """Orbax, which logs what it raises too, never reaches the terminal."""
  yield
  out, err = capfd.readouterr()
  assert (out, err) == ("", "") and not caplog.get_records("call")
