"""Runs the user's command that prints a key, such as a password manager's.

Design choice: the command comes from the environment and never from a config,
since the config of a run may have been written by someone else.
"""

import os
import subprocess

from gpt_jax.exits import InputError

VARIABLE = "GPT_JAX_KEY_COMMAND"
SECONDS = 300


def is_set() -> bool:
  """Returns whether there is a command."""
  return bool(os.environ.get(VARIABLE))


def run() -> bytes:
  """Returns what the command prints.

  Raises:
    InputError: there is none, or it failed.
  """
  if not is_set():
    raise InputError(
      f"{VARIABLE} is not set; set it to the command that prints the key"
    )
  try:
    done = subprocess.run(
      ["/bin/sh", "-c", os.environ[VARIABLE]],
      stdout=subprocess.PIPE,
      timeout=SECONDS,
    )
  except subprocess.TimeoutExpired:
    raise InputError(
      f"the command of {VARIABLE} did not end within {SECONDS} seconds; give "
      "one that prints the key"
    ) from None
  if done.returncode:
    raise InputError(
      f"the command of {VARIABLE} ended with status {done.returncode}; give "
      "one that prints the key"
    )
  return done.stdout
