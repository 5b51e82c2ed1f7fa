"""Fixtures of the launch scripts."""

import pytest
from clusters import Places
from houses import House


@pytest.fixture
def house(tmp_path) -> House:
  house = House(tmp_path)
  house.add_python("python3", "3.11")
  return house


@pytest.fixture
def places(tmp_path) -> Places:
  return Places(tmp_path)
