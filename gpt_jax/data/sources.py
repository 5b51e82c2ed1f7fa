"""Where text comes from: named documents, streamed in bounded pieces.

The questionable decision: a source is known by its files' names, sizes and
times of change, not by their content, so that finding a prepared set again
costs a listing and not a reading of the corpus.
"""

import ast
import codecs
import dataclasses
import glob
import gzip
import hashlib
import json
import os
import platform
import re
import sysconfig
import zlib
from collections.abc import Iterator
from typing import Protocol

from gpt_jax.config import InputError

SCHEMES = (
  "interpreter",
  "text:GLOB",
  "jsonl:GLOB[#FIELD]",
  "tfds:NAME[:SPLIT]",
  "hf:NAME[:SPLIT]",
)

# Bytes read at once, and characters in a piece at most.
BLOCK = 1 << 20

_KNOWN = r"(?:interpreter\b|(?:text|jsonl|tfds|hf):)"
_WEIGHT = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_BORDER = re.compile(rf",(?=\s*(?:{_WEIGHT}\s*\*\s*)?{_KNOWN})")
_WEIGHTED = re.compile(rf"\s*(?:(-?{_WEIGHT})\s*\*\s*)?(.*)", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")

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
  """What every source offers."""

  spec: str

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
  for part in _BORDER.split(spec):
    weight, source = _WEIGHTED.fullmatch(part).groups()
    source = source.strip()
    if not re.match(_KNOWN, source):
      raise InputError(
        f"{source!r} is not a source of text; it must be one of "
        f"{', '.join(SCHEMES)}, with WEIGHT* before each of several"
      )
    value = 1.0 if weight is None else float(weight)
    if not value > 0:
      raise InputError(
        f"the weight of {source!r} is {weight}; it must be above 0"
      )
    parts.append((value, source))
  total = sum(weight for weight, _ in parts)
  return [(weight / total, source) for weight, source in parts]


def open_source(spec: str) -> Source:
  """Returns the source of one spec (no mixture).

  Raises:
    InputError: the scheme is unknown, or nothing is there.
  """
  scheme, _, argument = spec.partition(":")
  if spec == "interpreter":
    return InterpreterSource(spec)
  if scheme in ("text", "jsonl", "tfds", "hf") and argument:
    return {
      "text": TextSource,
      "jsonl": JsonSource,
      "tfds": TfdsSource,
      "hf": HubSource,
    }[scheme](spec, argument)
  raise InputError(
    f"{spec!r} is not a source of text; it must be one of {', '.join(SCHEMES)}"
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
      with open(path, "rb") as file:
        rows.append((name, hashlib.file_digest(file, "sha256").hexdigest()))
    except OSError as error:
      raise InputError(f"cannot read {path}: {error.strerror}") from None
  return _sha256(["content", rows])


class InterpreterSource:
  """The sources and the manual that come with the running Python."""

  def __init__(self, spec: str):
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
    for folder, folders, files in os.walk(self._root):
      folders[:] = [f for f in folders if f not in _SKIPPED_FOLDERS]
      for file in files:
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
  """One document a file; UTF-8, taken as it is."""

  def __init__(self, spec: str, pattern: str):
    self.spec = spec
    self._files = _find_files(pattern)

  def fingerprint(self) -> str:
    return _files_identity("text", self._files)

  def num_bytes(self) -> int | None:
    return sum(os.path.getsize(path) for _, path in self._files)

  def documents(self) -> Iterator[Document]:
    for name, path in self._files:
      if os.path.getsize(path):
        yield Document(name, _read_text(path))


class JsonSource:
  """One document a line (.jsonl, .gz, .zst) or an element of a .json list.

  Lists are read whole, lines one by one. A field that is a list of strings is
  joined with newlines.
  """

  def __init__(self, spec: str, argument: str):
    self.spec = spec
    pattern, _, field = argument.partition("#")
    self._field = field or "text"
    self._files = _find_files(pattern)

  def fingerprint(self) -> str:
    return _files_identity(f"jsonl#{self._field}", self._files)

  def num_bytes(self) -> int | None:
    packed = any(path.endswith((".gz", ".zst")) for _, path in self._files)
    if packed:
      return None
    return sum(os.path.getsize(path) for _, path in self._files)

  def documents(self) -> Iterator[Document]:
    for name, path in self._files:
      for number, value in self._values(path):
        text = self._text(value, path, number)
        if text:
          yield Document(f"{name}:{number}", _sliced(text))

  def _values(self, path: str) -> Iterator[tuple[int, object]]:
    blocks = _read_blocks(path)
    if path.endswith(".json"):
      data = b"".join(blocks)
      if data.lstrip()[:1] == b"[":
        yield from enumerate(_parse_json(data, path, None), 1)
        return
      blocks = [data]
    for number, line in enumerate(_split_lines(blocks), 1):
      if line.strip():
        yield number, _parse_json(line, path, number)

  def _text(self, value, path: str, number: int) -> str:
    where = f"{path}, document {number}"
    if not isinstance(value, dict):
      raise InputError(
        f"{where} is a JSON {type(value).__name__}; it must be an object "
        f"with a field {self._field!r}"
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
        f"{where}: field {self._field!r} is a {type(text).__name__}; it must "
        "be a string or a list of strings"
      )
    if _SURROGATE.search(text):
      raise InputError(
        f"{where}: field {self._field!r} holds half of a surrogate pair at "
        f"character {_SURROGATE.search(text).start()}; it must be valid Unicode"
      )
    return text


class TfdsSource:
  """A TensorFlow Datasets set, read through array_record, no TensorFlow.

  NAME is that of a registered set (CONFIG and version as TFDS writes them) or
  the folder of a prepared one. A set that is not on this machine is prepared
  when its fingerprint is first asked for.
  """

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
      value = rows[i][field]
      where = f"{self.spec}, record {i}"
      text = value if isinstance(value, str) else _decode(value, where)
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
        f"{self.spec} needs the package `datasets`; "
        "install it with pip install 'gpt_jax[hf]'"
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
      text = rows[i]["text"]
      if text:
        yield Document(f"{self._split}:{i}", _sliced(text))


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
  # A colon inside brackets belongs to a slice, as in train[:10%].
  match = re.fullmatch(r"(.+?):((?:[^:/\[\]]|\[[^\]]*\])*)", argument)
  if not match or re.fullmatch(r"\d+\.\d+\.\d+", match[2]):
    return argument, "train"
  return match[1], match[2] or "train"


def _find_files(pattern: str) -> list[tuple[str, str]]:
  """Returns sorted (name, path); names are relative to the fixed folder."""
  pattern = os.path.expanduser(pattern)
  exact = os.path.lexists(pattern)
  paths = [pattern] if exact else glob.glob(pattern, recursive=True)
  if exact and os.path.isdir(pattern):
    raise InputError(
      f"{pattern} is a directory; name files, such as "
      f"{os.path.join(pattern, '**', '*')}"
    )
  paths = sorted(p for p in paths if not os.path.isdir(p))
  if not paths:
    raise InputError(
      f"no file matches {pattern!r} (from {os.getcwd()}); give the path of at "
      "least one file"
    )
  for path in paths:
    if not os.path.isfile(path):
      raise InputError(f"{path} is not a regular file")
  fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
  root = os.path.dirname(pattern if exact else fixed) or "."
  names = [os.path.relpath(p, root).replace(os.sep, "/") for p in paths]
  return sorted(zip(names, paths, strict=True))


def _files_identity(kind: str, files: list[tuple[str, str]]) -> str:
  try:
    stats = [(name, os.stat(path)) for name, path in files]
  except OSError as error:
    raise InputError(
      f"cannot read {error.filename}: {error.strerror}"
    ) from None
  rows = [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
  return _sha256([kind, rows])


def _open(path: str):
  try:
    return open(path, "rb")
  except OSError as error:
    raise InputError(f"cannot read {path}: {error.strerror}") from None


def _read_text(path: str) -> Iterator[str]:
  decoder = codecs.getincrementaldecoder("utf-8")()
  start = 0  # byte of the file at which what the decoder holds begins
  with _open(path) as file:
    while True:
      block = file.read(BLOCK)
      held = len(decoder.getstate()[0])
      try:
        text = decoder.decode(block, final=not block)
      except UnicodeDecodeError as error:
        raise InputError(
          f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at "
          f"offset {start - held + error.start}; convert it to UTF-8"
        ) from None
      start += len(block)
      if text:
        yield text
      if not block:
        return


def _read_blocks(path: str) -> Iterator[bytes]:
  """Yields a file's bytes, unpacked by its name's end."""
  with _open(path) as file:
    if path.endswith(".zst"):
      yield from _unpack_zst(file, path)
      return
    packed = path.endswith(".gz")
    stream = gzip.GzipFile(fileobj=file) if packed else file
    while True:
      try:
        block = stream.read(BLOCK)
      except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file: {error}") from None
      if not block:
        return
      yield block


def _unpack_zst(file, path: str) -> Iterator[bytes]:
  # A stream reader would pass over a missing end in silence.
  import zstandard

  unpacker, whole = None, False
  rest = b""
  while True:
    block = rest or file.read(1 << 16)
    rest = b""
    if not block:
      break
    if unpacker is None:
      unpacker = zstandard.ZstdDecompressor().decompressobj()
    try:
      out = unpacker.decompress(block)
    except zstandard.ZstdError as error:
      raise InputError(f"{path} is not a zstd file: {error}") from None
    whole = unpacker.eof
    if whole:
      rest, unpacker = unpacker.unused_data, None
    if out:
      yield out
  if not whole:
    raise InputError(f"{path} is not a whole zstd file: its end is missing")


def _split_lines(blocks) -> Iterator[bytes]:
  # Only b"\n" ends a line of JSON; parts are joined once a line is whole.
  parts = []
  for block in blocks:
    *lines, last = block.split(b"\n")
    for line in lines:
      yield b"".join([*parts, line])
      parts = []
    parts.append(last)
  yield b"".join(parts)


def _parse_json(data: bytes, path: str, number: int | None):
  where = path if number is None else f"{path}, line {number}"
  try:
    return json.loads(_decode(data, where))
  except (json.JSONDecodeError, RecursionError) as error:
    raise InputError(f"{where} is not JSON: {error}") from None


def _decode(data: bytes, where: str) -> str:
  try:
    return data.decode("utf-8")
  except UnicodeDecodeError as error:
    raise InputError(
      f"{where} is not UTF-8: byte {data[error.start]:#04x} at offset "
      f"{error.start}; convert it to UTF-8"
    ) from None


def _read_info(folder: str) -> list[str]:
  with open(os.path.join(folder, "dataset_info.json"), "rb") as file:
    info = json.load(file)
  return [str(info[key]) for key in ("name", "version") if key in info]


def _import_tfds():
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise InputError(
      f"tfds: sources need tensorflow-datasets ({error}); "
      "install it with pip install gpt_jax"
    ) from None
  return tensorflow_datasets
