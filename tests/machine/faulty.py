"""faulty://: memory:// on a network that fails as a test says."""

import time

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

# {operation: what each of the next calls does: an error, or seconds to hang}
PLAN: dict[str, list] = {}
# Operations so far, for those that count them.
CALLS: list[tuple[str, str]] = []


class FaultyFileSystem(MemoryFileSystem):
  """A store whose every operation looks into PLAN first."""

  protocol = "faulty"
  store: dict = {}
  pseudo_dirs = [""]

  @classmethod
  def _strip_protocol(cls, path):
    return MemoryFileSystem._strip_protocol(
      path.replace("faulty://", "memory://")
    )

  def _fail(self, operation: str, path: str) -> None:
    CALLS.append((operation, path))
    planned = PLAN.get(operation, [])
    what = planned.pop(0) if planned else None
    if isinstance(what, Exception):
      raise what
    if what is not None:
      time.sleep(what)

  def find(self, path, **kwargs):
    self._fail("find", path)
    return super().find(path, **kwargs)

  def info(self, path, **kwargs):
    self._fail("info", path)
    return super().info(path, **kwargs)

  def cat_file(self, path, *args, **kwargs):
    self._fail("read", path)
    return super().cat_file(path, *args, **kwargs)

  def get_file(self, rpath, lpath, **kwargs):
    self._fail("read", rpath)
    with open(lpath, "wb") as file:
      file.write(super().cat_file(rpath)[: PLAN.get("cut", [None])[0]])

  def pipe_file(self, path, value, mode="overwrite", **kwargs):
    self._fail("write", path)
    return super().pipe_file(path, value, mode=mode, **kwargs)

  def put_file(self, lpath, rpath, **kwargs):
    self._fail("write", rpath)
    with open(lpath, "rb") as file:
      super().pipe_file(rpath, file.read())


def register() -> None:
  fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
