"""Runs the command: python -m gpt_jax.lab.sweep VERB."""

import sys

from gpt_jax import cli
from gpt_jax.lab import sweep

if __name__ == "__main__":
  # `run` leaves its results in a folder, so it goes on if it cannot print.
  cli.run(sweep.main, sys.argv[1:], is_run=sys.argv[1:2] == ["run"])
