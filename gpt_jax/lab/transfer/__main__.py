"""Runs the command: python -m gpt_jax.lab.transfer FLAGS."""

import sys

from gpt_jax import cli
from gpt_jax.lab import transfer

if __name__ == "__main__":
  cli.run(transfer.main, sys.argv[1:])
