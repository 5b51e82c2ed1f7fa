"""Runs the command: python -m gpt_jax.lab.scaling FLAGS."""

import sys

from gpt_jax import cli
from gpt_jax.lab import scaling

if __name__ == "__main__":
  cli.run(scaling.main, sys.argv[1:])
