"""Where text comes from: named documents, streamed in bounded pieces.

The questionable decision: a source is known by its files' names, sizes and
times of change, not by their content, so that finding a prepared set again
costs a listing and not a reading of the corpus.
"""

import ast
import codecs
import dataclasses
import glob
import hashlib
import itertools
import json
import math
import os
import platform
import re
import sysconfig
from collections.abc import Iterator
from typing import Protocol

from gpt_jax import files
from gpt_jax.config import InputError
from gpt_jax.data import unpack

# Bytes read at once, and characters in a piece at most.
BLOCK = 1 << 20
# Bytes that a line of JSON may have, and a list of JSON that is read whole.
MAX_LINE_BYTES = 1 << 28
MAX_LIST_BYTES = 1 << 30

_WEIGHT = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_WEIGHTED = re.compile(rf"\s*(?:(-?{_WEIGHT})\s*\*\s*)?(.*)", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
# What some editors write before UTF-8; it is no part of the text.
_BOM = "\ufeff"

# Tests, other people's packages, byte tables of character sets, and binaries.
_SKIPPED_FOLDERS = {
  "__pycache__",
  "dist-packages",
  "encodings",
  "idle_test",
  "lib-dynload",
  "pydoc_data",
  "site-packages",
  "test",
  "tests",
}


@dataclasses.dataclass(frozen=True)
class Document:
  """A text under a name that is the same on every machine.

  Attributes:
    name: unique within the source.
    pieces: the text in order, each piece at most BLOCK characters; readable
      once, before the next document is asked for.
  """

  name: str
  pieces: Iterator[str]


class Source(Protocol):
  """What every source offers.

  Attributes:
    spec: what it was opened by.
    is_divided_by_text: whether documents of equal text go to one side.
  """

  spec: str
  is_divided_by_text: bool

  def fingerprint(self) -> str:
    """Returns a cheap identity: it changes when the documents may have."""

  def num_bytes(self) -> int | None:
    """Returns about how much `documents` reads, for a bar; None: unknown."""

  def documents(self) -> Iterator[Document]:
    """Yields the documents in an order that never changes.

    Raises:
      InputError: the text is missing, empty or not readable as text.
    """


def parse_mixture(spec: str) -> list[tuple[float, str]]:
  """Returns [(weight, source spec)] with weights that sum to 1.

  Sources are separated by commas; a comma that no known scheme follows belongs
  to the path before it. A source without a weight counts 1.

  Raises:
    InputError: a scheme is unknown or a weight is not positive.
  """
  parts = []
  known = _known()
  border = re.compile(rf",(?=\s*(?:{_WEIGHT}\s*\*\s*)?{known})")
  for part in border.split(spec):
    weight, source = _WEIGHTED.fullmatch(part).groups()
    source = source.strip()
    if not re.match(known, source):
      raise _unknown(source)
    value = 1.0 if weight is None else float(weight)
    if not 0 < value < math.inf:
      raise InputError(
        f"the weight of {source!r} is {weight}; it must be above 0 and finite"
      )
    parts.append((value, source))
  largest = max(weight for weight, _ in parts)
  total = sum(weight / largest for weight, _ in parts)
  shares = [(weight / largest / total, source) for weight, source in parts]
  if not all(share > 0 for share, _ in shares):
    raise InputError(f"the weights of {spec!r} differ too much to be shares")
  return shares


def open_source(spec: str) -> Source:
  """Returns the source of one spec (no mixture).

  Raises:
    InputError: the scheme is unknown, or nothing is there.
  """
  scheme, colon, argument = spec.partition(":")
  if scheme in SOURCES:
    kind, form = SOURCES[scheme]
    if bool(argument) == bool(colon) == (form is not None):
      return kind(spec, argument)
  raise _unknown(spec)


def is_spec(text: str) -> bool:
  """Returns whether a text names a kind of source, and is no plain path."""
  return re.match(_known(), text) is not None


def spec_of(text: str) -> str:
  """Returns the spec of a source, or of the file of a plain path.

  What the file is called decides: .jsonl and .json, packed or not, hold
  records.
  """
  if is_spec(text):
    return text
  name = unpack.bare_name(text if os.path.lexists(text) else text.split("#")[0])
  scheme = "jsonl" if name.endswith((".jsonl", ".json", ".ndjson")) else "text"
  return f"{scheme}:{text}"


def _known() -> str:
  """Returns the pattern of what a spec may begin with."""
  words = [
    rf"{name}\b" if form is None else f"{name}:"
    for name, (_, form) in SOURCES.items()
  ]
  return f"(?:{'|'.join(words)})"


def _unknown(spec: str) -> InputError:
  """Returns the sentence for what is not a source, with what was meant."""
  if "://" in spec:
    try:
      files.user_path("data.source", spec)
    except InputError as error:
      return error
  schemes = ", ".join(
    name if form is None else f"{name}:{form}"
    for name, (_, form) in SOURCES.items()
  )
  hint = ""
  if os.path.isdir(os.path.expanduser(spec)):
    hint = (
      f" but a folder (did you mean text:{os.path.join(spec, '**/*.txt')}?)"
    )
  elif os.path.isfile(os.path.expanduser(spec)):
    hint = f" but a file (did you mean {spec_of(spec)}?)"
  return InputError(
    f"{spec!r} is not a source of text{hint}; it must be one of {schemes}, "
    "with WEIGHT* before each of several"
  )


def content_identity(source: Source) -> str:
  """Returns a hash of what a source holds, the same on every machine.

  Files are read whole; the other kinds are known by their versions. Unlike
  `fingerprint`, a copy of a file with another date is the same.
  """
  if not isinstance(source, (TextSource, JsonSource)):
    return source.fingerprint()
  rows = []
  for name, path in source._files:
    try:
      with files.open_bytes(path) as file:
        rows.append((name, hashlib.file_digest(file, "sha256").hexdigest()))
    except files.Damage as damage:
      raise InputError(f"cannot read {path}: it {damage}") from None
    except OSError as error:
      raise InputError(f"cannot read {path}: {error.strerror}") from None
  return _sha256(["content", rows])


class InterpreterSource:
  """The sources and the manual that come with the running Python.

  Its documents are divided by name alone: published figures are of that split,
  and what repeats is a few files of one line (135 of a million bytes held out).
  """

  is_divided_by_text = False

  def __init__(self, spec: str, argument: str = ""):
    del argument
    self.spec = spec
    self._root = sysconfig.get_path("stdlib")
    if not os.path.isdir(self._root):
      raise InputError(
        f"this Python keeps no standard library in {self._root}; "
        "give text:GLOB instead of interpreter"
      )
    self._topics = os.path.join(self._root, "pydoc_data", "topics.py")

  def fingerprint(self) -> str:
    sizes = [(name, os.path.getsize(path)) for name, path in self._files()]
    if os.path.isfile(self._topics):
      sizes.append(("topics", os.path.getsize(self._topics)))
    return _sha256(["interpreter", platform.python_version(), sizes])

  def num_bytes(self) -> int | None:
    return sum(os.path.getsize(path) for _, path in self._files())

  def documents(self) -> Iterator[Document]:
    for name, path in self._files():
      with open(path, "rb") as file:
        data = file.read()
      try:
        text = data.decode("utf-8")
      except UnicodeDecodeError:
        continue  # a source in another encoding, which Python allows
      if text:
        yield Document(name, _sliced(text))
    yield from self._topic_documents()

  def _files(self) -> list[tuple[str, str]]:
    found = []
    for folder, folders, names in os.walk(self._root):
      folders[:] = [f for f in folders if f not in _SKIPPED_FOLDERS]
      for file in names:
        # _sysconfigdata holds one machine's build, not text.
        if file.endswith(".py") and not file.startswith("_sysconfigdata"):
          path = os.path.join(folder, file)
          name = os.path.relpath(path, self._root).replace(os.sep, "/")
          found.append((name, path))
    return sorted(found)

  def _topic_documents(self) -> Iterator[Document]:
    if not os.path.isfile(self._topics):
      return
    with open(self._topics, encoding="utf-8") as file:
      tree = ast.parse(file.read())
    for node in tree.body:
      if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
        for topic, text in sorted(ast.literal_eval(node.value).items()):
          yield Document(f"topics/{topic}", _sliced(text))


class TextSource:
  """One document a file; UTF-8, taken as it is, packed or not."""

  is_divided_by_text = True

  def __init__(self, spec: str, pattern: str):
    self.spec = spec
    self._files = _find_files(pattern)
    # Among others a table may be text to learn from, as in a tree of sources.
    if all(unpack.is_table(path) for _, path in self._files):
      unpack.refuse_table(self._files[0][1])

  def fingerprint(self) -> str:
    return _files_identity("text", self._files)

  def num_bytes(self) -> int | None:
    return _total_size(self._files)

  def documents(self) -> Iterator[Document]:
    for name, path in self._files:
      if os.path.getsize(path):
        yield Document(name, _read_text(path))


class JsonSource:
  """One document a line of JSON, or an element of a list; packed or not.

  A file that begins with a bracket is a list. Lists are read whole, lines one
  by one. A field that is a list of strings is
  joined with newlines.
  """

  is_divided_by_text = True

  def __init__(self, spec: str, argument: str):
    self.spec = spec
    pattern, self._field = _pattern_and_field(argument)
    self._files = _find_files(pattern)
    for _, path in self._files:
      unpack.refuse_table(path)

  def fingerprint(self) -> str:
    return _files_identity(f"jsonl#{self._field}", self._files)

  def num_bytes(self) -> int | None:
    return _total_size(self._files)

  def documents(self) -> Iterator[Document]:
    for name, path in self._files:
      for number, value in self._values(path):
        text = self._text(value, path, number)
        if text:
          yield Document(f"{name}:{number}", _sliced(text))

  def _values(self, path: str) -> Iterator[tuple[int, object]]:
    blocks = _drop_bom(unpack.read_blocks(path, BLOCK))
    first = next(blocks, b"")
    while first and not first.strip() and len(first) < 16 * BLOCK:
      block = next(blocks, None)
      if block is None:
        return
      first += block
    blocks = itertools.chain([first], blocks)
    if first.lstrip()[:1] == b"[":
      data = _join(blocks, path)
      # Lines of lists are no list; the first of them says what is wrong.
      yield from enumerate(_parse_json(data, path, None), 1)
      return
    for number, line in enumerate(_split_lines(blocks, path), 1):
      if line.strip():
        yield number, _parse_json(line, path, number)

  def _text(self, value, path: str, number: int) -> str:
    where = f"{path}, document {number}"
    if not isinstance(value, dict):
      raise InputError(
        f"{where} is {_kind(value)}; it must be an object with a field "
        f"{self._field!r}"
      )
    if self._field not in value:
      raise InputError(
        f"{where} has no field {self._field!r}; it has "
        f"{', '.join(map(repr, value)) or 'none'}: name one after the path as "
        "#FIELD"
      )
    text = value[self._field]
    if isinstance(text, list) and all(isinstance(t, str) for t in text):
      text = "\n".join(text)
    if not isinstance(text, str):
      raise InputError(
        f"{where}: field {self._field!r} is {_kind(text, '')}; it must be a "
        "string or a list of strings"
      )
    if _SURROGATE.search(text):
      raise InputError(
        f"{where}: field {self._field!r} holds half of a surrogate pair at "
        f"character {_SURROGATE.search(text).start()}; it must be valid Unicode"
      )
    return text.removeprefix(_BOM)


class TfdsSource:
  """A TensorFlow Datasets set, read through array_record, no TensorFlow.

  NAME is that of a registered set (CONFIG and version as TFDS writes them) or
  the folder of a prepared one. A set that is not on this machine is prepared
  when its fingerprint is first asked for.
  """

  is_divided_by_text = True

  def __init__(self, spec: str, argument: str):
    self.spec = spec
    self._name, self._split = _name_and_split(argument)
    self._found = None

  def fingerprint(self) -> str:
    folder = self._folder()
    files = sorted(
      (f, os.path.join(folder, f))
      for f in os.listdir(folder)
      if os.path.isfile(os.path.join(folder, f))
    )
    # Where the folder lies, and when it was copied there, is no matter.
    sizes = [(name, os.path.getsize(path)) for name, path in files]
    return _sha256(["tfds", self._split, sizes, _read_info(folder)])

  def num_bytes(self) -> int | None:
    return None

  def documents(self) -> Iterator[Document]:
    tfds = _import_tfds()
    builder = tfds.builder_from_directory(self._folder())
    field = self._text_field(tfds, builder)
    try:
      rows = builder.as_data_source(self._split)
    except Exception as error:  # tfds has no common base for these
      raise InputError(
        f"{self.spec}: the split {self._split!r} cannot be read ("
        f"{_first_line(error)}); there are {', '.join(builder.info.splits)}, "
        "and the files must be array_record"
      ) from None
    for i in range(len(rows)):
      where = f"{self.spec}, record {i}"
      try:
        value = rows[i][field]
      except Exception as error:  # array_record and tfds: all kinds
        raise InputError(
          f"{where} cannot be read: {_first_line(error)}"
        ) from None
      text = value if isinstance(value, str) else _decode(value, where)
      text = text.removeprefix(_BOM)
      if text:
        yield Document(f"{self._split}:{i}", _sliced(text))

  def _folder(self) -> str:
    if self._found is None:
      self._found = self._find_folder()
    return self._found

  def _find_folder(self) -> str:
    if os.path.isdir(self._name):
      if not os.path.isfile(os.path.join(self._name, "dataset_info.json")):
        raise InputError(
          f"{self._name} holds no dataset_info.json; tfds:PATH must name the "
          "folder of one version of a prepared set"
        )
      return self._name
    if self._name.startswith((".", "/", "~")):
      raise InputError(f"{self._name} of {self.spec} is not a folder")
    name, _, version = self._name.partition(":")
    home = os.path.expanduser("~/tensorflow_datasets")
    root = os.path.join(home, *name.split("/"))
    infos = glob.glob(
      os.path.join(glob.escape(root), version or "*", "dataset_info.json")
    )
    folders = sorted((os.path.dirname(i) for i in infos), key=_version_key)
    return folders[-1] if folders else self._prepare()

  def _prepare(self) -> str:
    tfds = _import_tfds()
    try:
      builder = tfds.builder(self._name, file_format="array_record")
      builder.download_and_prepare()
    except Exception as error:  # network, checksum, registry: all kinds
      raise InputError(
        f"tfds cannot prepare {self._name!r}: {_first_line(error)}; give the "
        "folder of a prepared set (tfds:PATH) where there is no network"
      ) from None
    return str(builder.data_path)

  def _text_field(self, tfds, builder) -> str:
    features = builder.info.features
    if "text" in features:
      return "text"
    for name, feature in features.items():
      if isinstance(feature, tfds.features.Text):
        return name
    raise InputError(
      f"{self.spec} has no text; its features are {', '.join(features)}"
    )


class HubSource:
  """A set of the Hugging Face hub or cache, field `text`.

  Its name and split are its identity: a set that changes upstream under the
  same name is not prepared again.
  """

  is_divided_by_text = True

  def __init__(self, spec: str, argument: str):
    self.spec = spec
    self._name, self._split = _name_and_split(argument)

  def fingerprint(self) -> str:
    return _sha256(["hf", self._name, self._split])

  def num_bytes(self) -> int | None:
    return None

  def documents(self) -> Iterator[Document]:
    try:
      import datasets
    except ImportError:
      raise InputError(
        f"{self.spec} needs the package `datasets`; in the folder of this "
        f"project, install it with {files.pip('hf')}"
      ) from None
    try:
      rows = datasets.load_dataset(self._name, split=self._split)
    except Exception as error:  # network, names, formats: all kinds
      raise InputError(
        f"{self.spec} cannot be loaded: {_first_line(error)}"
      ) from None
    if "text" not in rows.column_names:
      raise InputError(
        f"{self.spec} has no field 'text'; it has "
        f"{', '.join(rows.column_names)}"
      )
    for i in range(len(rows)):
      where = f"{self.spec}, record {i}"
      try:
        text = rows[i]["text"]
      except Exception as error:  # arrow's: all kinds
        raise InputError(
          f"{where} cannot be read: {_first_line(error)}"
        ) from None
      if text is not None and not isinstance(text, str):
        raise InputError(f"{where} is {_kind(text)}; it must be a string")
      text = (text or "").removeprefix(_BOM)
      if text:
        yield Document(f"{self._split}:{i}", _sliced(text))


# {word before the colon: (class, what follows the colon or None)}
SOURCES = {
  "interpreter": (InterpreterSource, None),
  "text": (TextSource, "GLOB"),
  "jsonl": (JsonSource, "GLOB[#FIELD]"),
  "tfds": (TfdsSource, "NAME[:SPLIT]"),
  "hf": (HubSource, "NAME[:SPLIT]"),
}


def _sha256(content) -> str:
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _sliced(text: str) -> Iterator[str]:
  return (text[i : i + BLOCK] for i in range(0, len(text), BLOCK))


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines()
  return lines[0][:200] if lines else type(error).__name__


def _version_key(folder: str) -> tuple:
  numbers = re.findall(r"\d+", os.path.basename(folder))
  return tuple(map(int, numbers)), folder


def _name_and_split(argument: str) -> tuple[str, str]:
  """Returns (NAME, SPLIT) of NAME[:SPLIT]; a version (1.0.0) is NAME's."""
  argument = files.user_path("data.source", argument)
  if os.path.isdir(argument):
    return argument, "train"
  # A colon inside brackets belongs to a slice, as in train[:10%].
  match = re.fullmatch(r"(.+?):((?:[^:/\[\]]|\[[^\]]*\])*)", argument)
  if not match or re.fullmatch(r"\d+\.\d+\.\d+", match[2]):
    return argument, "train"
  return match[1], match[2] or "train"


def _find_files(pattern: str) -> list[tuple[str, str]]:
  """Returns sorted (name, path); names are relative to the fixed folder."""
  pattern = files.user_path("data.source", pattern)
  if os.path.isdir(pattern):
    raise InputError(
      f"{pattern} is a directory; name files, such as "
      f"{os.path.join(pattern, '**', '*.txt')}"
    )
  root, paths = _expand(pattern)
  paths = sorted(p for p in paths if not os.path.isdir(p))
  if not paths:
    raise InputError(
      f"no file matches {pattern!r} (from {_current_folder()}); give the path "
      "of at least one file"
    )
  for path in paths:
    if not os.path.isfile(path):
      raise InputError(f"{path} is not a regular file")
  names = [os.path.relpath(p, root).replace(os.sep, "/") for p in paths]
  return sorted(zip(names, paths, strict=True))


def _expand(pattern: str) -> tuple[str, list[str]]:
  """Returns (the folder before the first wildcard, the paths that match).

  The path of something that is there is no pattern: a folder [1] means itself
  and never 1. Further on a bracket may be either, and where both are there it
  is not guessed.
  """
  if os.path.lexists(pattern):
    return os.path.dirname(pattern) or ".", [pattern]
  parts = pattern.split("/")
  place = 0
  while place < len(parts) - 1 and _is_fixed(parts, place):
    place += 1
  root = "/".join(parts[:place]) or ("/" if pattern[0] == "/" else ".")
  fixed = "".join(part + "/" for part in parts[:place])
  rest = "/".join(parts[place:])
  found = _glob(fixed, rest)
  if "[" in rest:
    literal = _glob(fixed, rest.replace("[", "[[]"))
    if found and literal and set(found) != set(literal):
      raise InputError(
        f"{pattern!r} means {found[0]} where brackets hold a choice of "
        f"characters and {literal[0]} where they stand for themselves; write "
        "[[] for a bracket that stands for itself"
      )
    found = found or literal
  return root, found


def _is_fixed(parts: list[str], place: int) -> bool:
  """Returns whether a part of a path is no pattern, or is there as it is."""
  part = parts[place]
  if not glob.has_magic(part):
    return True
  path = "/".join(parts[: place + 1])
  return not re.search(r"[*?]", part) and os.path.lexists(path)


def _glob(fixed: str, rest: str) -> list[str]:
  try:
    return glob.glob(glob.escape(fixed) + rest, recursive=True)
  except RecursionError:
    raise InputError(
      f"data.source has {rest.count('/')} folders below each other; give a "
      "shorter path"
    ) from None


def _pattern_and_field(argument: str) -> tuple[str, str]:
  """Returns (GLOB, FIELD) of GLOB[#FIELD]; what is there decides which #."""
  argument = files.user_path("data.source", argument)
  whole = (argument, "text")
  cut = [
    (argument[: found.start()], argument[found.end() :] or "text")
    for found in re.finditer("#", argument)
    if found.start()
  ]
  for pattern, field in [whole, *cut]:
    if os.path.lexists(pattern) and not os.path.isdir(pattern):
      return pattern, field
  for pattern, field in cut:
    if not os.path.isdir(pattern) and _expand(pattern)[1]:
      return pattern, field
  return whole if not cut or _expand(argument)[1] else cut[-1]


def _current_folder() -> str:
  try:
    return os.getcwd()
  except OSError:
    return "a folder that was removed"


def _total_size(found: list[tuple[str, str]]) -> int | None:
  """Returns the bytes of files, None where some are packed or gone."""
  if any(unpack.is_packed(path) for _, path in found):
    return None
  try:
    return sum(os.path.getsize(path) for _, path in found)
  except OSError:
    return None


def _kind(value, article: str = "a JSON ") -> str:
  """Returns what a value of JSON is, for a sentence."""
  if value is None:
    return "null"
  return f"{article or 'a '}{type(value).__name__}"


def _files_identity(kind: str, files: list[tuple[str, str]]) -> str:
  try:
    stats = [(name, os.stat(path)) for name, path in files]
  except OSError as error:
    raise InputError(
      f"cannot read {error.filename}: {error.strerror}"
    ) from None
  rows = [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
  return _sha256([kind, rows])


def _read_text(path: str) -> Iterator[str]:
  decoder = codecs.getincrementaldecoder("utf-8")()
  start = 0  # byte of the text at which what the decoder holds begins
  is_first = True
  for block in itertools.chain(unpack.read_blocks(path, BLOCK), [b""]):
    held = len(decoder.getstate()[0])
    try:
      text = decoder.decode(block, final=not block)
    except UnicodeDecodeError as error:
      raise InputError(
        f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at "
        f"offset {start - held + error.start}; convert it to UTF-8"
      ) from None
    start += len(block)
    if text and is_first:
      text, is_first = text.removeprefix(_BOM), False
    if text:
      yield text


def _drop_bom(blocks: Iterator[bytes]) -> Iterator[bytes]:
  yield next(blocks, b"").removeprefix(_BOM.encode())
  yield from blocks


def _join(blocks, path: str) -> bytes:
  parts, size = [], 0
  for block in blocks:
    parts.append(block)
    size += len(block)
    if size > MAX_LIST_BYTES:
      raise InputError(
        f"{path} is a JSON list of more than {MAX_LIST_BYTES:,} bytes, which "
        "would be read whole; write it as JSON lines, an element a line"
      )
  return b"".join(parts)


def _split_lines(blocks, path: str) -> Iterator[bytes]:
  # Only b"\n" ends a line of JSON; parts are joined once a line is whole.
  parts, size, number = [], 0, 1
  for block in blocks:
    *lines, last = block.split(b"\n")
    for line in lines:
      yield b"".join([*parts, line])
      parts, size, number = [], 0, number + 1
    parts.append(last)
    size += len(last)
    if size > MAX_LINE_BYTES:
      raise InputError(
        f"{path}, line {number} has more than {MAX_LINE_BYTES:,} bytes; a "
        "document that long must be divided, or given as text:GLOB"
      )
  yield b"".join(parts)


def _parse_json(data: bytes, path: str, number: int | None):
  where = path if number is None else f"{path}, line {number}"
  text = _decode(data, where)
  try:
    return files.parse_json(text, is_bounded=False)
  except files.Damage as damage:
    if str(damage).startswith("is not JSON"):
      raise InputError(f"{where} {damage}") from None
    raise InputError(
      f"{where} is not JSON that can be read: it {damage}"
    ) from None


def _decode(data: bytes, where: str) -> str:
  try:
    return data.decode("utf-8")
  except UnicodeDecodeError as error:
    raise InputError(
      f"{where} is not UTF-8: byte {data[error.start]:#04x} at offset "
      f"{error.start}; convert it to UTF-8"
    ) from None


def _read_info(folder: str) -> list[str]:
  path = os.path.join(folder, "dataset_info.json")
  try:
    info = files.read_json(path)
  except files.Damage as damage:
    raise InputError(f"{path} {damage}; prepare the set again") from None
  if not isinstance(info, dict):
    raise InputError(f"{path} is {_kind(info)}; it must be an object")
  return [str(info[key]) for key in ("name", "version") if key in info]


def _import_tfds():
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise InputError(
      f"tfds: sources need tensorflow-datasets ({error}); in the folder of "
      f"this project, install it with {files.pip()}"
    ) from None
  return tensorflow_datasets
