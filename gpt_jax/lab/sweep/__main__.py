"""Runs the door: python -m gpt_jax.lab.sweep VERB."""

import sys

from gpt_jax import cli
from gpt_jax.lab import sweep

if __name__ == "__main__":
  cli.run(sweep.main, sys.argv[1:])
