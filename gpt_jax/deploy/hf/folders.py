"""Folders that are written whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Generator

from gpt_jax.config import InputError


@contextlib.contextmanager
def whole_folder(name: str, folder: str) -> Generator[str]:
  """Yields a folder beside `folder`, which becomes it when all went well.

  What an interrupted call left is removed by the next.

  Args:
    name: of the flag that gave the folder.

  Raises:
    InputError: it exists and is not an empty folder.
  """
  folder = os.path.abspath(folder)
  if os.path.lexists(folder) and not (
    os.path.isdir(folder) and not os.listdir(folder)
  ):
    raise InputError(
      f"{name} is {folder}, which exists; give a folder that does not"
    )
  partial = folder + ".partial"
  shutil.rmtree(partial, ignore_errors=True)
  try:
    os.makedirs(partial)
  except OSError as error:
    raise InputError(
      f"{name} is {folder}, which cannot be made: {error.strerror}"
    ) from None
  try:
    yield partial
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
  if os.path.isdir(folder):
    os.rmdir(folder)
  os.rename(partial, folder)
