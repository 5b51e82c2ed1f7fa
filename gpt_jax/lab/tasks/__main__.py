"""Runs the command: python -m gpt_jax.lab.tasks FLAGS."""

import sys

from gpt_jax import cli
from gpt_jax.lab import tasks

if __name__ == "__main__":
  cli.run(tasks.main, sys.argv[1:])
