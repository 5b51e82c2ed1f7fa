"""Lists the commands of the lab: python -m gpt_jax.lab."""

from gpt_jax import cli, commands


def main(argv: list[str]) -> int:
  return commands.show_commands(argv, "lab.")


if __name__ == "__main__":
  cli.run(main)
