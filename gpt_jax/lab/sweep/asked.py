"""Turns a config file's sweep(add) into cells.

Everything is checked here, before anything is run: unknown keys, repeated
cells, cyclic branches. A cell with invalid values is refused; the other cells
still run.
"""

import dataclasses
import functools
import operator

from gpt_jax import cli
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.lab.sweep import identity, trunks
from gpt_jax.lab.sweep.cells import (
  Cell,
  Refusal,
  Sweep,
  diff,
  flat,
  short_name,
)


@dataclasses.dataclass(frozen=True)
class _Asked:
  """One call of add, for one seed, before it is checked."""

  name: str
  values: dict
  branch: tuple[str, int] | None

  @property
  def title(self) -> str:
    seed = self.values.get("seed")
    return self.name if seed is None else f"{self.name} seed {seed}"


def load(
  path: str,
  overrides: dict[str, str],
  code: str | None = None,
  devices: int | None = None,
) -> Sweep:
  """Returns the sweep of FILE[:VARIANT].

  Args:
    overrides: {config key: value} of the command line, for all cells.
    code: the code version that ids are made with; None is today's.
    devices: the value of --devices that each cell is run with, or None.

  Raises:
    InputError: the file has no sweep(add), it adds no cell or the same cell
      twice, a key is unknown, or branches form a cycle.
  """
  base = cli.load_config(path, overrides)
  file = path.partition(":")[0]
  asked: list[_Asked] = []
  cli.call_sweep(path, functools.partial(_add, asked))
  if not asked:
    raise InputError(f"sweep(add) of {file} adds no cell; call add(...)")
  for cell in asked:
    for key in cell.values:
      if key in overrides:
        raise InputError(
          f"--config.{key} is given and sweep(add) of {file} sets it too; "
          "change it there"
        )
  code = code or identity.code_version()
  start = [f"--config={path}"]
  start += [f"--devices={devices}"] if devices else []
  cells, refused = [], []
  for place, cell in enumerate(asked):
    try:
      cells.append(_resolve(cell, base, start, overrides, code, place))
    except InputError as error:
      refused.append(Refusal(cell.title, str(error)))
  _check_distinct(cells, file)
  branches = {i: one.branch for i, one in enumerate(asked) if one.branch}
  names = {one.name for one in asked}
  return trunks.join(Sweep(cells, refused), branches, names, file)


def _add(asked, *words, seeds=None, branch_from=None, **values) -> None:
  """The `add` of sweep(add): add(name, {"optim.learning_rate": 1e-3}, ...).

  Args:
    words: a name, a dict of keys and values, or both.
    seeds: whole numbers, one cell each; None takes the config's seed.
    branch_from: (name, step) of the trunk, whose checkpoint the cell starts
      from.
  """
  name = None
  for word in words:
    if isinstance(word, str):
      name = word
    elif hasattr(word, "items"):
      values = dict(word.items()) | values
    else:
      raise InputError(
        f"add() was given {word!r}; it takes a name and a dict of config keys"
      )
  for key in values:
    if key not in config_lib.KEYS:
      raise InputError(
        f"sweep(add): unknown config key {key}; {config_lib.nearest_key(key)}"
      )
  # Loops over grids may give numpy scalars.
  values = {k: v.item() if hasattr(v, "item") else v for k, v in values.items()}
  if branch_from is not None:
    pair = tuple(branch_from) if isinstance(branch_from, (tuple, list)) else ()
    kinds = [type(word) for word in pair]
    if kinds != [str, int] or pair[1] < 1:
      raise InputError(
        f"branch_from is {branch_from!r}; it must be (NAME, STEP) of another "
        "cell, with a step of 1 or more"
      )
    branch_from = pair
  rest = {k: v for k, v in values.items() if k != "seed"}
  name = name or ", ".join(f"{short_name(k)}={v}" for k, v in rest.items())
  for more in [{}] if seeds is None else _seeds(seeds, values):
    asked.append(_Asked(name or "base", values | more, branch_from))


def _seeds(seeds, values: dict) -> list[dict]:
  """Returns [{"seed": N}, ...] for the seeds that add(seeds=...) was given."""
  if "seed" in values:
    raise InputError(
      f"add() was given seeds={seeds!r} and a seed of {values['seed']!r}; "
      "leave one out"
    )
  try:
    given = [] if isinstance(seeds, bytes) else list(seeds)
    found = [operator.index(seed) for seed in given]
  except TypeError:
    found = []
  if not found or any(type(seed) is bool for seed in given):
    raise InputError(
      f"add() was given seeds={seeds!r}; it must be a list of whole numbers, "
      "as in seeds=[0, 1, 2] or seeds=range(3)"
    )
  return [{"seed": seed} for seed in found]


def _resolve(cell: _Asked, base, start, overrides, code, place) -> Cell:
  nested = base.to_dict()
  for key, value in cell.values.items():
    *sections, last = key.split(".")
    node = nested
    for section in sections:
      node = node[section]
    node[last] = value
  config = config_lib.freeze(nested)
  data, text = identity.data_identity(config.data)
  given = overrides | {k: str(v) for k, v in cell.values.items()}
  argv = [*start, *(f"--config.{k}={v}" for k, v in given.items())]
  return Cell(
    id=identity.make_id(config, data, code),
    name=cell.name,
    values=cell.values,
    config=config,
    data=data,
    text=text,
    code=code,
    argv=tuple(argv),
    trunk=None,
    place=place,
  )


def _check_distinct(cells: list[Cell], file: str) -> None:
  names, ids = {}, {}
  for cell in cells:
    other = ids.setdefault(cell.id, cell)
    if other is not cell:
      keys = diff(config_lib.flatten(other.config), flat(cell), is_all=True)
      what = "have the same config"
      if keys:
        what = f"differ only in keys that change no result ({', '.join(keys)})"
      raise InputError(
        f"sweep(add) of {file}: cells {other.title!r} and {cell.title!r} {what}"
        "; leave one out"
      )
    if names.setdefault(cell.title, cell) is not cell:
      raise InputError(
        f"sweep(add) of {file}: two cells are called {cell.title!r}; give them "
        "names"
      )
