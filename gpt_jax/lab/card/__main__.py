"""Runs the command: python -m gpt_jax.lab.card."""

import sys

from gpt_jax import cli
from gpt_jax.lab import card

if __name__ == "__main__":
  cli.run(card.main, sys.argv[1:])
