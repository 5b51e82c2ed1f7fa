"""Runs the command: python -m gpt_jax.lab.bench SUBJECT."""

import sys

from gpt_jax import cli
from gpt_jax.lab import bench

if __name__ == "__main__":
  cli.run(bench.main, sys.argv[1:])
