"""What others may have written is opened in one way, and bounded."""

import errno
import json
import os
import pathlib
import re
import socket

import pytest

from gpt_jax import files
from gpt_jax.exits import InputError


def hostile(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns paths that are no regular files, by what the clause says."""
  fifo, link, zero = folder / "fifo", folder / "link", folder / "zero"
  os.mkfifo(fifo)
  link.symlink_to(folder / "nowhere")
  zero.symlink_to("/dev/zero")
  return {
    "named pipe": fifo,
    "leads nowhere": link,
    "a device": zero,
    "a folder": folder,
    "does not exist": folder / "absent",
  }


ESCAPE = "surrogateescape"


def test_only_regular_files_are_opened(tmp_path):
  for clause, path in hostile(tmp_path).items():
    with pytest.raises(files.Damage, match=clause) as raised:
      files.read_json(str(path))
    assert raised.value.is_missing == (
      clause in ("leads nowhere", "does not exist")
    )
  with socket.socket(socket.AF_UNIX) as server:
    server.bind(str(tmp_path / "socket"))
    with pytest.raises(files.Damage, match="a socket"):
      files.read_bytes(str(tmp_path / "socket"))
  with pytest.raises(files.Damage, match="not a path"):
    files.read_bytes("a\0b")


def test_a_file_larger_than_its_bound_is_refused(tmp_path):
  path = tmp_path / "big"
  path.write_bytes(b"12345")
  assert files.read_bytes(str(path), 5) == b"12345"
  with pytest.raises(files.Damage, match="larger than 4 bytes"):
    files.read_bytes(str(path), 4)


@pytest.mark.parametrize(
  "text, clause",
  [
    ("[" * 200_000, "nested"),
    ("[" * 65 + "1" + "]" * 65, "deeper than 64"),
    ("9" * 5000, "too many digits"),
    ("[1e400]", "too large"),
    (str(2**63), "beyond 64 bits"),
    ("[NaN]", "NaN"),
    ("-Infinity", "Infinity"),
    ("{'a': 1}", "not JSON"),
    ("", "not JSON"),
    (b"\xff", "offset 0"),
  ],
)
def test_json_without_bounds_is_refused(text, clause):
  with pytest.raises(files.Damage, match=clause):
    files.parse_json(text)


def test_json_within_bounds_is_read():
  value = {"a": [1, 2.5, None, True, {"b": "c"}], "d": 2**63 - 1, "e": -1e300}
  assert files.parse_json(json.dumps(value)) == value
  deep = "[" * 64 + "]" * 64
  assert json.dumps(files.parse_json(deep)) == deep


def test_a_path_means_what_the_user_meant(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  assert files.user_path("--workdir", "~/runs") == "/home/me/runs"
  assert files.user_path("--workdir", "a [b]#c:d") == "a [b]#c:d"
  for path, words in {
    "": "empty",
    "  ": "empty",
    "gs://b/x": "a path of this machine, not an address",
    "s3://b": "a path of this machine, not an address",
    "https://x/y": "a path of this machine, not an address",
    "a\0b": "NUL",
    "runs/\udcff": "not UTF-8",
    "~nobody-of-this-name/x": "home folder",
  }.items():
    with pytest.raises(InputError, match=words) as raised:
      files.user_path("data.dir", path)
    assert "data.dir" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
  own = lambda path: files.user_path("--workdir", path, may_be_address=True)
  assert own("gs://runs//a/") == "gs://runs/a"
  assert own("file:///tmp/a") == "file:///tmp/a"
  with pytest.raises(InputError, match="which names no bucket"):
    own("s3://")


def test_a_sentence_is_one_short_line_that_no_terminal_obeys():
  said = str(InputError("a \x1b[2J\nb \u202e c\x9b \udc80 ä 你"))
  assert said == r"a \x1b[2J b \u202e c\x9b \udc80 ä 你"
  long = str(InputError("the key x is " + "9" * 5_000 + "; it must be 1"))
  assert len(long) < 2_100
  assert long.startswith("the key x is 9") and long.endswith("; it must be 1")


def test_a_text_of_the_command_line_is_utf8_whatever_the_locale(monkeypatch):
  for text in ("café 国", "", "\ud800"):
    assert files.user_text("--prompt", text) == text
  with pytest.raises(InputError, match="--prompt .* UTF-8: byte 0xe9 at off"):
    files.user_text("--prompt", os.fsdecode(b"caf\xe9"))
  # As Python in an ASCII locale passes UTF-8 on.
  monkeypatch.setattr(os, "fsencode", lambda t: t.encode("ascii", ESCAPE))
  ascii = "café".encode().decode("ascii", ESCAPE)
  assert files.user_text("--prompt", ascii) == "café"


def test_a_text_is_written_whole_or_not_at_all(tmp_path):
  path = tmp_path / "new" / "a.txt"
  files.write_text(str(path), "one")
  with pytest.raises(UnicodeEncodeError):
    files.write_text(str(path), "two \udcff")
  assert path.read_text() == "one"
  assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
  with pytest.raises(OSError) as raised:
    files.write_text(str(path / "below"), "x")
  assert raised.value.filename == str(path / "below")


def test_a_name_that_is_there_is_no_pattern(tmp_path):
  for name in ("lr[3e-4]/a", "lr3/a", "x*y/a", "xzy/b"):
    (tmp_path / name).mkdir(parents=True)
  expand = lambda pattern: [
    os.path.relpath(p, tmp_path) for p in files.expand_glob(pattern)
  ]
  assert expand(f"{tmp_path}/lr[3e-4]/*") == ["lr[3e-4]/a"]
  assert expand(f"{tmp_path}/x*y/*") == ["x*y/a"]
  assert expand(f"{tmp_path}/x?y/*") == ["x*y/a", "xzy/b"]
  assert expand(f"{tmp_path}/*/a") == ["lr3/a", "lr[3e-4]/a", "x*y/a"]
  (tmp_path / "lr[3e-4]/a").rmdir()
  (tmp_path / "lr[3e-4]").rmdir()
  assert expand(f"{tmp_path}/lr[3e-4]/*") == ["lr3/a"]
  assert expand(f"{tmp_path}/none/*") == []


def test_patterns_may_be_relative(tmp_path, monkeypatch):
  (tmp_path / "runs" / "a").mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  assert files.expand_glob("runs/*") == ["runs/a"]
  assert files.expand_glob("./runs/*/") == ["./runs/a"]


def test_no_sentence_asks_an_index_for_a_package_of_this_name():
  """Only files.pip says how an extra is installed."""
  root = pathlib.Path(files.__file__).parent
  asked = re.compile(r"pip install (?!-e )")
  sources = [*root.rglob("*.py")]
  assert len(sources) > 80
  for path in sources:
    assert not asked.search(path.read_text()), path
  assert asked.search("pip install 'gpt_jax[hf]'")  # the control
  assert files.pip("hf").endswith("-m pip install -e '.[hf]'")


def test_a_file_to_write_has_a_folder_and_is_none(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  own = lambda path: files.output_path("--out", path)
  assert own("~/a.npy") == str(tmp_path / "a.npy")
  for path in (str(tmp_path), str(tmp_path / "absent" / "a.npy")):
    with pytest.raises(InputError, match="a file, in a folder that exists"):
      own(path)
  for path, said in (("", "is empty"), ("s3://a/b.npy", "not an address")):
    with pytest.raises(InputError, match=said):
      own(path)


def test_no_file_takes_the_place_of_a_pipe_or_a_device(tmp_path):
  pipe = tmp_path / "pipe"
  os.mkfifo(pipe)
  for write in (
    lambda: files.output_path("--out", str(pipe)),
    lambda: files.write_text(str(pipe), "text"),
  ):
    with pytest.raises(InputError, match="pipe is a named pipe; name a reg"):
      write()
  with pytest.raises(InputError, match="exists; give the name of a new file"):
    files.require_new({"--out": str(pipe)})
  assert os.listdir(tmp_path) == ["pipe"] and not pipe.is_file()


def test_a_new_file_has_a_folder_that_can_be_made(tmp_path):
  new = lambda path: files.require_new({"--out": str(tmp_path / path)})
  (tmp_path / "file").write_text("")
  new("a/b/c.json")
  with pytest.raises(InputError, match="--out: .*/file is no folder to"):
    new("file/b/c.json")
  for check in (files.output_path, lambda *one: files.require_new(dict([one]))):
    with pytest.raises(InputError, match="--out: /proc is no folder to write"):
      check("--out", "/proc/none")


def test_an_error_of_a_new_file_names_the_file_and_leaves_none(tmp_path):
  folder = tmp_path / "taken"
  folder.mkdir()
  with pytest.raises(OSError) as found, files.new_file(str(folder)) as file:
    file.write("text")
  assert (found.value.filename, found.value.filename2) == (str(folder), None)
  assert list(tmp_path.iterdir()) == [folder]
  path = str(tmp_path / "new")
  with pytest.raises(OSError) as found, files.new_file(path):
    raise OSError(errno.ENOSPC, "No space left on device")
  assert files.to_sentence(found.value) == (
    f"cannot read or write {path}: No space left on device"
  )
