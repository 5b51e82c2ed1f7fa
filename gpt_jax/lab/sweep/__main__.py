"""Runs the command: python -m gpt_jax.lab.sweep VERB."""

import sys

from gpt_jax import cli
from gpt_jax.lab import sweep

if __name__ == "__main__":
  # What is printed of running cells is a comment; the other verbs print.
  cli.run(sweep.main, sys.argv[1:], is_run=sys.argv[1:2] == ["run"])
