"""What a workdir says of its run is what the run wrote, or is refused."""

import json
import os
import pathlib
import shutil
import subprocess

import pytest

from gpt_jax import cli, config, files
from gpt_jax.config import InputError, schema
from gpt_jax.data.tokenizers.plain import ByteTokenizer, CharTokenizer
from gpt_jax.runs import workdir

ROOT = pathlib.Path(__file__).parents[2]
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
  added = {key for key, line in config.KEYS.items() if line.added}
  assert set(flat) - set(record["config"]) <= added
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
  line = config.KEYS[key]._replace(added=schema.Added(value))
  monkeypatch.setitem(config.KEYS, key, line)
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
  added = {k: line.added.value for k, line in config.KEYS.items() if line.added}
  assert added
  for key, value in added.items():
    assert config.check_value(key, value) == value


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


# tokenizer.json


def test_a_tokenizer_of_another_run_is_refused_by_name(
  tmp_path, frozen, record
):
  own = ByteTokenizer("bytes")
  record["tokenizer_fingerprint"] = own.fingerprint()
  read(tmp_path, files.seal(record))
  path = tmp_path / "tokenizer.json"
  path.write_text(own.to_json())
  assert workdir.read_tokenizer(str(tmp_path)).name == "bytes"
  other = CharTokenizer("".join(map(chr, range(32, 127))), "chars")
  path.write_text(other.to_json())
  said = "tokenizer.json is another tokenizer .chars"
  with pytest.raises(InputError, match=said):
    workdir.read_tokenizer(str(tmp_path))
  with pytest.raises(InputError, match=said):
    workdir.check_same_run(str(tmp_path), frozen, "0" * 64)
  # A run of an earlier version recorded none.
  del record["tokenizer_fingerprint"]
  read(tmp_path, files.seal(record))
  assert workdir.read_tokenizer(str(tmp_path)).name == "chars"


# The commit


def git(folder, *words) -> str:
  identity = "-c", "user.name=a", "-c", "user.email=a@b"
  return subprocess.run(
    ["git", "-C", str(folder), *identity, *words],
    check=True,
    capture_output=True,
    text=True,
  ).stdout.strip()


@pytest.fixture
def repo(tmp_path):
  """A repository that holds the package as this project does."""
  package = tmp_path / "repo" / "gpt_jax"
  package.mkdir(parents=True)
  (package / "__init__.py").write_text("")
  for name in (".gitattributes", "gpt_jax/_commit.txt"):
    (tmp_path / "repo" / name).write_text((ROOT / name).read_text())
  git(package.parent, "init", "-q")
  git(package.parent, "add", ".")
  git(package.parent, "commit", "-qm", "one")
  return package.parent


def commit_of(folder) -> str | None:
  return workdir.find_commit(str(folder / "gpt_jax" / "__init__.py"))


def test_a_clone_and_its_archive_know_their_commit(repo, tmp_path):
  head = git(repo, "rev-parse", "HEAD")
  assert commit_of(repo) == head
  git(repo, "archive", "--output=a.tar", "HEAD")
  image = repo / "image"  # inside of the repository, and not tracked by it
  image.mkdir()
  subprocess.run(["tar", "-xf", repo / "a.tar", "-C", image], check=True)
  assert commit_of(image) == head
  (repo / "gpt_jax" / "__init__.py").write_text("changed")
  assert commit_of(repo) == head + "+"


def test_a_commit_of_another_repository_is_none_of_ours(
  repo, tmp_path, monkeypatch
):
  other = tmp_path / "other"
  for place in (other, other / "venv" / "site"):
    shutil.copytree(repo / "gpt_jax", place / "gpt_jax")
  (other / "mine.txt").touch()
  git(other, "init", "-q")
  git(other, "add", "mine.txt")
  git(other, "commit", "-qm", "another")
  assert commit_of(other) is None  # not tracked
  git(other, "add", ".")
  git(other, "commit", "-qm", "vendored")
  assert commit_of(other / "venv" / "site") is None  # not its top
  head = git(repo, "rev-parse", "HEAD")
  monkeypatch.setenv("GIT_DIR", str(other / ".git"))
  monkeypatch.setenv("GIT_WORK_TREE", str(repo))
  assert commit_of(repo) == head
  monkeypatch.setenv("GIT_DIR", str(repo / ".git"))
  monkeypatch.setenv("GIT_WORK_TREE", str(other / "venv" / "site"))
  assert commit_of(other / "venv" / "site") is None


def test_a_folder_that_may_not_be_read_is_not_said_to_be_empty(
  tmp_path, monkeypatch
):
  with pytest.raises(
    InputError, match="has no config.json; give the --workdir"
  ):
    workdir.read_record(str(tmp_path))

  def refuse(path, *_):
    raise files.Damage("cannot be read: Permission denied")

  monkeypatch.setattr(files, "read_json", refuse)
  with pytest.raises(InputError, match="cannot be read: Permission denied; g"):
    workdir.read_record(str(tmp_path))
