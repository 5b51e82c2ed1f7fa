"""Folders that are written whole or not at all, and a run's workdir in one."""

import contextlib
import os
import shutil
from collections.abc import Callable, Generator
from typing import Any

from gpt_jax import config as config_lib
from gpt_jax import files
from gpt_jax.config import Config, InputError
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.machine import runtime
from gpt_jax.runs import checkpoint
from gpt_jax.runs import workdir as workdir_lib


@contextlib.contextmanager
def whole_folder(name: str, folder: str) -> Generator[str]:
  """Yields a temporary folder, which is renamed to `folder` if all goes well.

  What an interrupted call left is removed by the next call.

  Args:
    name: of the flag that gave the folder, for errors.

  Raises:
    InputError: `folder` exists and is not an empty folder, or cannot be made.
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


def write_run(
  folder: str,
  config: Config,
  make_params: Callable[[], Any],
  tokenizer: Tokenizer,
  data_fingerprint: str,
  labels: Any = None,
  abstract: Any = None,
  others: dict[str, Any] | None = None,
) -> None:
  """Writes a workdir whose checkpoint 0 holds parameters alone.

  Args:
    make_params: returns the parameters.
    labels, others: as in workdir.write_config.
    abstract: abstract parameters with shardings. With them, the save is
      compiled before the parameters are made, since both take memory.
  """
  facts = {
    "config_fingerprint": config_lib.fingerprint(config),
    "data_fingerprint": data_fingerprint,
    "tokenizer_fingerprint": tokenizer.fingerprint(),
  }
  keeper = checkpoint.Checkpointer(
    os.path.join(folder, "checkpoints"), config.checkpoint, facts
  )
  if abstract is not None:
    keeper.prepare({"params": abstract})
    runtime.give_back_memory()
  keeper.save(0, {"params": make_params()}, force=True)
  keeper.close()
  path = os.path.join(folder, "tokenizer.json")
  files.write_text(path, tokenizer.to_json())
  workdir_lib.write_config(
    folder, config, data_fingerprint, tokenizer.fingerprint(), labels, others
  )
