"""Sets of the hub, from a server on this machine that speaks its paths."""

import gzip
import hashlib
import http.server
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import urllib.parse

import pyarrow as pa
import pytest
from huggingface_hub import constants
from pyarrow import parquet

from gpt_jax import digest
from gpt_jax.config import InputError
from gpt_jax.data import sources
from gpt_jax.data.sources import card, hub

ROOT = pathlib.Path(__file__).parents[3]
COMMIT, OLD = "a" * 40, "b" * 40


def read(spec: str) -> dict[str, str]:
  found = sources.open_source(spec).documents()
  return {d.name: "".join(d.pieces) for d in found}


def table(texts, field="text") -> bytes:
  out = io.BytesIO()
  parquet.write_table(pa.table({"id": range(len(texts)), field: texts}), out)
  return out.getvalue()


def lines(texts, field="text") -> bytes:
  return "".join(json.dumps({field: t}) + "\n" for t in texts).encode()


CARD = """---
license: mit
configs:
- config_name: small
  default: true
  data_files:
  - split: train
    path: small/train-*
  - split: test
    path: [small/test-*]
- config_name: large
  data_files: large/**/*.jsonl.gz
---
# A set
"""
FILES = {
  "README.md": CARD.encode(),
  "small/train-00000.parquet": table(["one", "two"]),
  "small/train-00001.parquet": table(["three"]),
  "small/test-00000.parquet": table(["four"]),
  "large/x/a.jsonl.gz": gzip.compress(lines(["five"], "body")),
  "old.txt.md": b"not read",
}
TRAIN = {
  "small/train-00000.parquet:1": "one",
  "small/train-00000.parquet:2": "two",
  "small/train-00001.parquet:1": "three",
}


class Hub(http.server.ThreadingHTTPServer):
  """A hub of one set, whose faults a test may set.

  Attributes:
    faults: {what a path ends with: the next faults of it, in order}; a fault is
      a status, "drop" or "slow".
    asked: the (method, path) of every request.
    names: of the sets that it lists.
  """

  daemon_threads = True

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Answer)
    self.files = {COMMIT: FILES, OLD: {"train.jsonl": lines(["old"])}}
    self.faults, self.asked = {}, []
    self.names = ["o/set", "o/other", "p/wiki", "q/wiki"]
    self.release = threading.Event()
    self.address = f"http://127.0.0.1:{self.server_port}"

  def fault_of(self, path: str):
    for end, faults in self.faults.items():
      if path.endswith(end) and faults:
        return faults.pop(0) if len(faults) > 1 else faults[0]
    return None

  def handle_error(self, request, client_address):
    pass


class Answer(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  server: Hub

  def log_message(self, format, *args):
    pass

  def do_GET(self):
    self.server.asked.append((self.command, self.path))
    fault = self.server.fault_of(self.path)
    if fault == "slow":
      self.server.release.wait(20)
    if isinstance(fault, int):
      return self.reply(fault, b"{}")
    listed = re.fullmatch(r"/api/datasets/o/set(/revision/(.+))?", self.path)
    if listed:
      commit = {None: COMMIT, "v1": OLD}.get(listed[2], listed[2])
      if commit not in self.server.files:
        code = {"X-Error-Code": "RevisionNotFound"}
        return self.reply(404, b"{}", code)
      names = [{"rfilename": name} for name in self.server.files[commit]]
      body = {"id": "o/set", "sha": commit, "siblings": names}
      return self.reply(200, json.dumps(body).encode())
    if self.path.startswith("/api/datasets?"):
      names = self.server.names
      asked = urllib.parse.parse_qs(self.path.partition("?")[2])
      for owner in asked.get("author", []):
        names = [name for name in names if name.startswith(f"{owner}/")]
      for word in asked.get("search", []):
        names = [name for name in names if word in name]
      body = [{"id": name, "_id": "1", "private": False} for name in names]
      return self.reply(200, json.dumps(body).encode())
    found = re.fullmatch(r"/datasets/o/set/resolve/(\w+)/(.+)", self.path)
    if found is None:
      return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
    data = self.server.files[found[1]][found[2]]
    etag = hashlib.sha256(data).hexdigest()
    head = {"ETag": f'"{etag}"', "X-Repo-Commit": found[1]}
    start = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
    if start:
      at = int(start[1])
      head["Content-Range"] = f"bytes {at}-{len(data) - 1}/{len(data)}"
      data = data[at:]
    self.reply(206 if start else 200, data, head, fault == "drop")

  do_HEAD = do_GET

  def reply(self, status, data, head=(), is_dropped=False):
    self.send_response(status)
    for name, value in dict(head).items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(data[: len(data) // 2] if is_dropped else data)
    self.close_connection = is_dropped


@pytest.fixture
def server(tmp_path, monkeypatch):
  """A hub, which sources of this process ask, without anything cached."""
  with Hub() as hub_server:
    threading.Thread(target=hub_server.serve_forever, daemon=True).start()
    template = hub_server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub_server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "WAITS", (0.0, 0.0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield hub_server
    hub_server.release.set()
    hub_server.shutdown()


def test_a_set_is_read_by_its_card(server):
  assert read("hf:o/set") == TRAIN
  assert read("hf:o/set:test") == {"small/test-00000.parquet:1": "four"}
  assert read("hf:o/set:small:train") == TRAIN
  large = {"large/x/a.jsonl.gz:1": "five"}
  assert read("hf:o/set:large:train#body") == large
  assert read("hf:o/set@v1") == {"train.jsonl:1": "old"}
  assert read(f"hf:o/set@{OLD}:train#text") == {"train.jsonl:1": "old"}


def test_shards_are_fetched_when_their_turn_comes_and_once(server):
  documents = sources.open_source("hf:o/set").documents()
  "".join(next(documents).pieces)
  fetched = lambda: [p for m, p in server.asked if m == "GET" and "parq" in p]
  assert [p[-9:] for p in fetched()] == ["0.parquet"]
  assert len(list(documents)) == 2 and len(fetched()) == 2
  assert read("hf:o/set") == TRAIN and len(fetched()) == 2
  assert list(read("hf:o/set:train[1:]")) == ["small/train-00001.parquet:1"]
  assert len(read("hf:o/set:train[:1]")) == 2
  with pytest.raises(InputError, match=r"takes none of the 2 files"):
    read("hf:o/set:train[5:]")


def test_what_was_fetched_is_read_without_a_network(server, monkeypatch):
  assert read("hf:o/set") == TRAIN
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  server.asked.clear()
  assert read("hf:o/set") == TRAIN and not server.asked
  with pytest.raises(InputError, match="not in the cache, and HF_HUB_OFFLINE"):
    read("hf:o/set:test")
  with pytest.raises(InputError, match="not listed before, and HF_HUB_OFFLINE"):
    read("hf:o/set@v1")


WRONG = {
  "hf:x/y": "has no data set 'x/y' that this machine may read; .* the name, or",
  "hf:o/sett": "has no data set 'o/sett' .* .did you mean 'o/set'.., or log",
  "hf:pp/wiki": "has no data set 'pp/wiki' .* mean 'p/wiki' or 'q/wiki'.., or",
  "hf:o/set@v2": "o/set has no revision 'v2'",
  "hf:o/set:smal:train": "no config 'smal'; .* did you mean 'small'",
  "hf:o/set:tran": "no split 'tran'; it has 'train', 'test': .* mean 'train'",
  "hf:o/set#txt": "train-00000.parquet has no column 'txt'; .*mean 'text'",
  "hf:o/set:large:train": "a.jsonl.gz, document 1 has no field 'text'",
  "hf:o/set:train[:10%]": "a slice of a split counts its files",
  "hf:a/b/c/d": "'a/b/c/d' is not the name of a set, which is OWNER/NAME",
  "hf:./nowhere": "./nowhere of hf:./nowhere is not a folder",
}


@pytest.mark.parametrize("spec", WRONG)
def test_what_is_not_on_the_hub_is_one_sentence(server, spec):
  with pytest.raises(InputError, match=WRONG[spec]) as caught:
    read(spec)
  assert "\n" not in str(caught.value) and "/snapshots/" not in str(
    caught.value
  )
  # None of these is asked for again and again.
  assert len(server.asked) <= 8


def test_a_name_is_nearly_that_of_a_set_in_the_cache(server):
  assert read("hf:o/set")
  server.names = []
  server.faults = {"?author=p&limit=200": [500]}  # only a hint is lost
  with pytest.raises(InputError, match="'p/set' .* .did you mean 'o/set'"):
    read("hf:p/set")


FAULTS = {
  "busy": ({"o/set": [503, "none"]}, None),
  "limited": ({"0.parquet": [429, 429, "none"]}, None),
  "dropped": ({"0.parquet": ["none", "drop", "none"]}, None),
  "down": ({"o/set": [503]}, "could not be reached in 3 tries .*503"),
  "gone": ({"1.parquet": [404]}, "a file of it is gone"),
  "closed": ({"0.parquet": [403]}, "no data set 'o/set' that this machine may"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_hub_that_fails_is_asked_a_bounded_number_of_times(server, case):
  faults, said = FAULTS[case]
  server.faults = {end: list(each) for end, each in faults.items()}
  if said is None:
    assert read("hf:o/set") == TRAIN
  else:
    with pytest.raises(InputError, match=said):
      read("hf:o/set")
  assert len(server.asked) <= 12


def test_a_hub_that_is_not_there_is_one_sentence(server, monkeypatch):
  server.shutdown()
  server.server_close()
  with pytest.raises(hub.Unreachable, match="in 3 tries .*Connect.*OFFLINE=1"):
    read("hf:o/set")


def test_a_hub_that_is_slow_is_given_up(server, monkeypatch):
  monkeypatch.setattr(hub, "TIMEOUT", 0.3)
  server.faults = {"o/set": ["slow"]}
  with pytest.raises(hub.Unreachable, match="in 3 tries .*[Tt]imeout"):
    read("hf:o/set")


def test_a_full_cache_is_one_sentence(server, monkeypatch):
  import huggingface_hub

  def full(*_, **__):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
  with pytest.raises(InputError, match="no space is left in the cache .*/hub"):
    read("hf:o/set")


def test_a_folder_is_read_as_a_set(tmp_path):
  for name, data in FILES.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(data)
  assert read(f"hf:{tmp_path}") == TRAIN
  assert len(read(f"hf:{tmp_path}:large:train#body")) == 1
  before = sources.open_source(f"hf:{tmp_path}").fingerprint()
  (tmp_path / "large/x/a.jsonl.gz").write_bytes(b"")  # of another config
  assert sources.open_source(f"hf:{tmp_path}").fingerprint() == before
  (tmp_path / "small/train-00001.parquet").write_bytes(table(["others"]))
  assert sources.open_source(f"hf:{tmp_path}").fingerprint() != before
  (tmp_path / "README.md").write_text("---\nconfigs: [\n---\n")
  with pytest.raises(InputError, match="README.md, cannot be read"):
    read(f"hf:{tmp_path}")


CHOICES = {
  ("train-0.parquet test-0.parquet", None, "train"): "train-0.parquet",
  ("data/a.jsonl data/b.csv", None, "train"): "data/a.jsonl data/b.csv",
  ("dev.csv train/a.csv", None, "validation"): "dev.csv",
  ("en/train.csv de/train.csv", "de", "train"): "de/train.csv",
  ("trainer.csv x.csv", None, "train"): "trainer.csv x.csv",
  ("a.zip dataset_infos.json .x.csv", None, "train"): "",
}


@pytest.mark.parametrize("case", CHOICES, ids=str)
def test_splits_without_a_card_are_words_of_paths(case):
  paths, config, split = case
  found = card.choose(paths.split(), {}, config, split, "hf:x")
  assert found == CHOICES[case].split()


def test_a_card_with_several_configs_and_no_default_asks_for_one():
  entry = lambda name: {"config_name": name, "data_files": f"{name}/*"}
  facts = {"configs": [entry("a"), entry("b")]}
  with pytest.raises(InputError, match="configs a, b; name one, as in .*:a:"):
    card.choose(["a/x.csv"], facts, None, "train", "hf:x")
  assert card.choose(["a/x.csv", "a/b/y.csv"], facts, "a", "train", "hf:x") == [
    "a/x.csv"
  ]


def test_a_set_without_readable_files_says_what_it_has(server):
  server.files[COMMIT] = {"a.tar": b"", "b.arrow": b""}
  with pytest.raises(InputError, match="it has .arrow, .tar; try @refs/conv"):
    read("hf:o/set")


def test_the_endpoint_and_the_cache_are_those_of_the_hub(server, tmp_path):
  code = (
    "from gpt_jax.data import sources\n"
    "found = sources.open_source('hf:o/set').documents()\n"
    "print({d.name: ''.join(d.pieces) for d in found})"
  )
  env = os.environ | {"HF_ENDPOINT": server.address}
  env["HF_HUB_CACHE"] = str(tmp_path / "theirs")
  run = lambda **more: subprocess.run(
    [sys.executable, "-c", code],
    env=env | more,
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  found = run()
  assert found.stdout == f"{TRAIN}\n" and not found.stderr
  assert list((tmp_path / "theirs").glob("datasets--o--set/snapshots/*"))
  server.shutdown()
  assert run(HF_HUB_OFFLINE="1").stdout == f"{TRAIN}\n"


def test_names_of_sources_that_stood_before_are_known_by_the_same_digest():
  # The digest of an earlier version, which read a set by its name and split.
  name = sources.open_source("hf:o/set:test")
  assert name.fingerprint() == digest.of_json(["hf", "o/set", "test"])
  other = {
    sources.open_source(f"hf:o/set{rest}").fingerprint()
    for rest in (":test", "@v1:test", ":a:test", ":test#body", ":test[:1]")
  }
  assert len(other) == 5
