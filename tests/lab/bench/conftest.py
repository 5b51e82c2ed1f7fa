"""Fixtures of the benchmarks."""

import pytest


@pytest.fixture
def one_device(monkeypatch):
  """Workers of a test see one device, as a user's do."""
  monkeypatch.delenv("XLA_FLAGS", raising=False)
