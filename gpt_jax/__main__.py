"""Lists the commands, or runs one: python -m gpt_jax train --help.

The installed command gpt_jax is this module.
"""

import runpy
import sys

from gpt_jax import cli, commands


def main() -> None:
  words = sys.argv[1:]
  name = words[0] if words else ""
  if name in commands.COMMANDS:
    sys.argv = [f"gpt_jax {name}", *words[1:]]
    runpy.run_module(f"gpt_jax.{name}", run_name="__main__", alter_sys=True)
  else:
    cli.run(commands.show_commands, words)


if __name__ == "__main__":
  main()
