"""Lists the commands of the lab: python -m gpt_jax.lab."""

from gpt_jax import cli


def main(argv: list[str]) -> int:
  return cli.show_commands(argv, "lab.")


if __name__ == "__main__":
  cli.run(main)
