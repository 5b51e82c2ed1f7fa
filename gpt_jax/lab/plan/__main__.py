"""Runs the command: python -m gpt_jax.lab.plan FLAGS."""

import sys

from gpt_jax import cli
from gpt_jax.lab import plan

if __name__ == "__main__":
  cli.run(plan.main, sys.argv[1:])
