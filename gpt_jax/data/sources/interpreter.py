"""interpreter: the standard library and manual of the running Python."""

import ast
import os
import platform
import sysconfig
from collections.abc import Iterator

from gpt_jax import digest
from gpt_jax.data.sources.document import Document, slice_text
from gpt_jax.exits import InputError

# Tests, third-party packages, byte tables of character sets, and binaries.
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


class InterpreterSource:
  """One document for each module, and for each topic of the manual.

  Design choice: documents are split by name alone, although a few one-line
  files repeat (135 of a million held-out bytes), because published figures are
  for this split.
  """

  is_divided_by_text = False
  files = ()

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
    sizes = [(name, os.path.getsize(path)) for name, path in self._modules()]
    if os.path.isfile(self._topics):
      sizes.append(("topics", os.path.getsize(self._topics)))
    return digest.of_json(["interpreter", platform.python_version(), sizes])

  def num_bytes(self) -> int | None:
    return sum(os.path.getsize(path) for _, path in self._modules())

  def documents(self) -> Iterator[Document]:
    for name, path in self._modules():
      with open(path, "rb") as file:
        data = file.read()
      try:
        text = data.decode("utf-8")
      except UnicodeDecodeError:
        continue  # Python allows source files in other encodings
      if text:
        yield Document(name, slice_text(text))
    yield from self._topic_documents()

  def _modules(self) -> list[tuple[str, str]]:
    found = []
    for folder, folders, names in os.walk(self._root):
      folders[:] = [f for f in folders if f not in _SKIPPED_FOLDERS]
      for file in names:
        # _sysconfigdata describes the build of one machine.
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
          yield Document(f"topics/{topic}", slice_text(text))
