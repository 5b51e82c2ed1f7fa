"""What can happen to a file: each kind of damage, drawn from a seed."""

import json
import os
import pathlib
import random
import shutil


def flip_bit(path: pathlib.Path, rng: random.Random, foreign) -> None:
  """One bit somewhere."""
  data = bytearray(path.read_bytes())
  data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  path.write_bytes(data)


def overwrite(path: pathlib.Path, rng: random.Random, foreign) -> None:
  """A few bytes somewhere, by random ones."""
  data = bytearray(path.read_bytes())
  at = rng.randrange(len(data))
  size = min(16, len(data) - at)
  data[at : at + size] = rng.randbytes(size)
  path.write_bytes(data)


def zero(path: pathlib.Path, rng: random.Random, foreign) -> None:
  """A stretch of NULs, as a file system leaves it after a loss of power."""
  data = bytearray(path.read_bytes())
  at = rng.randrange(len(data))
  stop = min(len(data), at + rng.choice((4, 64, 4096)))
  data[at:stop] = bytes(stop - at)
  path.write_bytes(data)


def cut(path: pathlib.Path, rng: random.Random, foreign) -> None:
  """The end is missing."""
  os.truncate(path, rng.randrange(path.stat().st_size))


def append(path: pathlib.Path, rng: random.Random, foreign) -> None:
  """Something more at the end."""
  with open(path, "ab") as file:
    file.write(rng.choice((b"\n", b"}", b"\0" * 7, rng.randbytes(20))))


def empty(path: pathlib.Path, rng: random.Random, foreign) -> None:
  path.write_bytes(b"")


def delete(path: pathlib.Path, rng: random.Random, foreign) -> None:
  path.unlink()


def replace(path: pathlib.Path, rng: random.Random, foreign) -> None:
  """The file of the same name of another run, where there is one."""
  shutil.copyfile(foreign, path)


def drop_line(path: pathlib.Path, rng: random.Random, foreign) -> None:
  lines = path.read_bytes().splitlines(keepends=True)
  del lines[rng.randrange(len(lines))]
  path.write_bytes(b"".join(lines))


def spoil_line(path: pathlib.Path, rng: random.Random, foreign) -> None:
  """A line that is JSON and no row, or no JSON."""
  lines = path.read_bytes().splitlines(keepends=True)
  lines[rng.randrange(len(lines))] = rng.choice(
    (b"7\n", b"[]\n", b'{"loss": 1}\n', b'{"step": null}\n', b"#\n", b"\0\0\n")
  )
  path.write_bytes(b"".join(lines))


def edit_json(path: pathlib.Path, rng: random.Random, foreign) -> None:
  """One value anywhere in a JSON file becomes another one."""
  content = json.loads(path.read_text())
  places = []

  def visit(node):
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
      places.append((node, key))
      if isinstance(value, (dict, list)):
        visit(value)

  visit(content)
  node, key = rng.choice(places)
  old, new = node[key], node[key]
  while new == old:
    new = rng.choice(
      (None, True, 0, 1, -1, 10**12, 0.5, "x", "", [], {}, [[1]], {"a": 1})
      + ((old + 1, old * 2) if isinstance(old, int) else ())
    )
  node[key] = new
  path.write_text(json.dumps(content))


ANY = (flip_bit, overwrite, zero, cut, append, empty, delete, replace)
LINES = (*ANY, drop_line, spoil_line)
JSON = (*ANY, edit_json, edit_json)


def fifo(path: pathlib.Path) -> None:
  """A pipe, that nobody writes to."""
  _make_way(path)
  os.mkfifo(path)


def zeros(path: pathlib.Path) -> None:
  """A file without an end."""
  _make_way(path)
  path.symlink_to("/dev/zero")


def dangling(path: pathlib.Path) -> None:
  _make_way(path)
  path.symlink_to(path.parent / "nowhere" / "at-all")


def circle(path: pathlib.Path) -> None:
  """A link to itself."""
  _make_way(path)
  path.symlink_to(path)


def folder(path: pathlib.Path) -> None:
  _make_way(path)
  path.mkdir()


def deep(path: pathlib.Path) -> None:
  path.write_text("[" * 200_000)


def deep_object(path: pathlib.Path) -> None:
  path.write_text('{"step":' * 100_000 + "1" + "}" * 100_000)


def long_number(path: pathlib.Path) -> None:
  path.write_text('{"step": ' + "9" * 9_999 + "}\n")


def binary(path: pathlib.Path) -> None:
  path.write_bytes(bytes(range(256)) * 64)


def unreadable(path: pathlib.Path) -> None:
  """A whole gibibyte, nearly all of it a hole."""
  with open(path, "ab") as file:
    file.truncate(1 << 30)


HOSTILE = (
  fifo,
  zeros,
  dangling,
  circle,
  folder,
  deep,
  deep_object,
  long_number,
  binary,
  unreadable,
)


def _make_way(path: pathlib.Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
