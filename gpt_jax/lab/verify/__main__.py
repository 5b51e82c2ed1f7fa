"""Runs the command: python -m gpt_jax.lab.verify FLAGS."""

import sys

from gpt_jax import cli
from gpt_jax.lab import verify

if __name__ == "__main__":
  cli.run(verify.main, sys.argv[1:])
