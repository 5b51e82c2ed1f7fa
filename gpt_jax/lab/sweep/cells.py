"""A sweep's cells, each of which is one run: one config with one seed."""

import dataclasses
import shlex

from gpt_jax import config as config_lib
from gpt_jax.config import Config, InputError


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a sweep.

  Attributes:
    id: hex digits, the name of the cell's folder.
    name: the name of its group: cells that differ only in the seed.
    values: {config key: value} that the sweep set, the seed included.
    config: the frozen config.
    data: hash of the text, its split and its tokenizer.
    text: hash of the validation text, independent of the tokenizer.
    code: hash of the code that trains the cell.
    argv: the arguments of gpt_jax.train, all but --workdir.
    trunk: (id, step) of the checkpoint that the cell starts from, or None.
    place: the cell's index in the sweep.
  """

  id: str
  name: str
  values: dict
  config: Config
  data: str
  text: str
  code: str
  argv: tuple[str, ...]
  trunk: tuple[str, int] | None
  place: int

  @property
  def title(self) -> str:
    return f"{self.name} seed {self.config.seed}"

  def the_trunk(self) -> tuple[str, int]:
    """Returns the trunk of a cell that is known to have one."""
    assert self.trunk is not None, f"{self.title} starts from nothing"
    return self.trunk

  def record(self) -> dict:
    """Returns the content of cell.json."""
    return {
      "id": self.id,
      "name": self.name,
      "place": self.place,
      "values": self.values,
      "trunk": self.trunk,
      "data": self.data,
      "text": self.text,
      "code": self.code,
      "argv": self.argv,
      "config": config_lib.flatten(self.config),
    }


@dataclasses.dataclass(frozen=True)
class Refusal:
  """A cell whose values cannot be used. The other cells still run."""

  title: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Sweep:
  """The cells of a config file, each after the trunk that it starts from."""

  cells: list[Cell]
  refused: list[Refusal]


def flat(cell: Cell) -> dict:
  return config_lib.flatten(cell.config)


def diff(a: dict, b: dict, is_all: bool = False) -> dict:
  """Returns {key: (value in a, value in b)} of two flat configs.

  Args:
    is_all: include free keys, which change no result.
  """
  return {
    key: (a.get(key), b.get(key))
    for key in config_lib.KEYS
    if a.get(key) != b.get(key) and (is_all or not config_lib.is_free(key))
  }


def diff_text(cell: Cell, other: Cell) -> str:
  """Returns the keys in which `cell` differs from `other`, without the seed."""
  changed = diff(flat(other), flat(cell))
  changed.pop("seed", None)
  return ", ".join(f"{short_name(k)} {b}" for k, (_, b) in changed.items())


def short_name(key: str) -> str:
  return key.rpartition(".")[2]


def command(cell: Cell, workdir: str) -> str:
  """Returns the arguments of gpt_jax.train as one shell-quoted line.

  Raises:
    InputError: an argument holds a line break.
  """
  for word in (*cell.argv, f"--workdir={workdir}"):
    if len(word.splitlines()) > 1 or word != word.rstrip("\r\n"):
      raise InputError(
        f"{cell.title}: {word!r} holds a line break, and --emit writes a line "
        "a cell; take it out, or leave this cell to `run`"
      )
  return shlex.join([*cell.argv, f"--workdir={workdir}"])
