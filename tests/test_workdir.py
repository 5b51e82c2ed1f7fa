"""What a workdir says of its run is what the run wrote, or is refused."""

import json
import os
import pathlib

import pytest

from gpt_jax import cli, config, files, workdir
from gpt_jax.config import InputError

ROOT = pathlib.Path(__file__).parent.parent
# Of runs of earlier commits, as they wrote them.
RECORDS = sorted((ROOT / "tests" / "records").glob("*.json"))


@pytest.fixture
def frozen():
  values = cli.load_config(str(ROOT / "configs" / "tiny.py"), {})
  return config.freeze(values)


@pytest.fixture
def record(tmp_path, frozen) -> dict:
  workdir.write_config(str(tmp_path), frozen, "0" * 64, "1" * 16)
  return json.loads((tmp_path / "config.json").read_text())


def read(folder, record: dict):
  (folder / "config.json").write_text(json.dumps(record))
  return workdir.read_config(str(folder))


def other(value):
  """Returns another value that could stand in its place."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, int):
    return value + 1
  if isinstance(value, float):
    return value * 0.5 + 1e-4
  return "" if value else "none"


# config.json


def test_a_record_is_read_as_it_was_written(tmp_path, frozen, record):
  assert read(tmp_path, record) == frozen
  assert record["tokenizer_fingerprint"] == "1" * 16
  # In another order it says the same.
  assert read(tmp_path, dict(reversed(record.items()))) == frozen


def test_any_changed_value_of_a_record_is_refused(tmp_path, record):
  entries = [(record["config"], k) for k in record["config"]]
  entries += [(record["versions"], k) for k in record["versions"]]
  entries += [(record, k) for k, v in record.items() if isinstance(v, str)]
  assert len(entries) > 80
  for owner, key in entries:
    value = owner[key]
    owner[key] = other(value)
    with pytest.raises(InputError, match=r"config\.json is damaged"):
      read(tmp_path, record)
    del owner[key]
    if key != "digest":
      with pytest.raises(InputError, match="config"):
        read(tmp_path, record)
    owner[key] = value
  read(tmp_path, record)


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_a_run_of_an_earlier_commit_opens_and_keeps_its_fingerprint(
  path, tmp_path
):
  record = files.read_json(str(path))
  found = read(tmp_path, record)
  assert config.fingerprint(found) == record["fingerprint"]
  flat = config.flatten(found)
  assert {k: flat[k] for k in record["config"]} == record["config"]
  assert set(flat) - set(record["config"]) <= set(config.ADDED)
  # It has no seal: what its run learns is covered by the fingerprint.
  for key, value in record["config"].items():
    if not config.is_free(key):
      changed = {"config": record["config"] | {key: other(value)}}
      with pytest.raises(InputError, match=r"config\.json"):
        read(tmp_path, record | changed)


def test_a_key_that_older_runs_lack_has_the_value_that_they_had(
  tmp_path, record, frozen, monkeypatch
):
  key, value = "optim.clip_norm", record["config"]["optim.clip_norm"]
  del record["config"][key]
  with pytest.raises(InputError, match=f"{key} is missing"):
    read(tmp_path, files.seal(record))
  before = config.fingerprint(frozen)
  monkeypatch.setattr(config, "ADDED", {key: value})
  assert read(tmp_path, files.seal(record)) == frozen
  assert config.fingerprint(frozen) != before
  # A run that says otherwise is believed, and has another fingerprint.
  record["config"][key] = value / 2
  found = read(tmp_path, files.seal(record))
  assert found.optim.clip_norm == value / 2
  assert config.fingerprint(found) != config.fingerprint(frozen)
  # A config file must have it all the same.
  values = cli.load_config(str(ROOT / "configs" / "tiny.py"), {})
  with values.unlocked():
    del values.optim["clip_norm"]
  with pytest.raises(InputError, match=f"{key} is missing"):
    config.freeze(values)


def test_every_added_key_is_one_and_has_a_value_that_it_may_have():
  for key, value in config.ADDED.items():
    assert config._typed(key, value) == value


HOSTILE = {
  "a pipe": (os.mkfifo, "is a named pipe"),
  "zeros": (lambda p: p.symlink_to("/dev/zero"), "is a device"),
  "nowhere": (lambda p: p.symlink_to("none"), "leads nowhere"),
  "deep": (lambda p: p.write_text(200_000 * "["), "nested too deep"),
  "long": (lambda p: p.write_text(f'{{"a": {5000 * "1"}}}'), "too many digits"),
  "latin": (lambda p: p.write_bytes(b'{"a": "\xe9"}'), "not UTF-8"),
  "huge": (lambda p: os.truncate(p, 1 << 40), "larger than"),
  "a folder": (lambda p: p.mkdir(), "is a folder"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_record_is_one_sentence(tmp_path, name):
  make, said = HOSTILE[name]
  path = tmp_path / "config.json"
  if name == "huge":
    path.touch()
  make(path)
  with pytest.raises(InputError, match=rf"config\.json is damaged: .*{said}"):
    workdir.read_config(str(tmp_path))
