"""A sweep's cells: what a config file asks for, and what names each.

A cell is one run: one config, one seed. Its id is a hash of what decides the
result, so that it is the same in every sweep and on every machine: the config
without its free keys, what the text holds, and the sources of this package
without lab/. Where a cell starts from is no part of it: a branch is refused
unless it equals a straight run.
"""

import dataclasses
import functools
import operator
import os
import shlex

import gpt_jax
from gpt_jax import cli, digest
from gpt_jax import config as config_lib
from gpt_jax.config import Config, InputError
from gpt_jax.data import sources, tokenizers

ID_DIGITS = 12
# Keys that may differ between a branch and its trunk, as long as their rates
# are the same up to where they part.
SCHEDULE = (
  "train.num_steps",
  "optim.schedule",
  "optim.learning_rate",
  "optim.warmup_steps",
  "optim.final_rate_frac",
  "optim.decay_frac",
)
# Free keys that round or draw otherwise: they too are the same in a branch.
_PACING = (
  "data.dir",
  "data.num_workers",
  "train.log_every_steps",
  "train.profile_steps",
  "train.wandb_project",
)
_PACING_SECTIONS = ("checkpoint.", "eval.", "sample.")


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a sweep.

  Attributes:
    id: hex digits, the name of its folder.
    name: of the group that differs in the seed alone.
    values: {key: value} that the sweep gave it, the seed included.
    config: frozen.
    data: hash of what it is trained on.
    text: hash of what it is validated on, before it is cut into tokens.
    code: hash of the sources that train it.
    argv: arguments of gpt_jax.train but --workdir.
    trunk: (id, step) that it starts from, or None.
    place: its place in the sweep.
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

  def record(self) -> dict:
    """Returns what cell.json holds."""
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
  """A cell whose values cannot be used; the others can."""

  title: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What a config file asks for, in an order in which trunks come first."""

  cells: list[Cell]
  refused: list[Refusal]


@dataclasses.dataclass(frozen=True)
class _Asked:
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
    overrides: of the command line, for all cells.
    code: the code version to name cells by; None is today's.
    devices: what --devices of each cell is, if given.

  Raises:
    InputError: there is no sweep, it asks for nothing or for the same twice, a
      key is unknown, or branches have no order.
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
  code = code or code_version()
  start = [f"--config={path}"]
  start += [f"--devices={devices}"] if devices else []
  cells, refused = [], []
  for place, cell in enumerate(asked):
    try:
      cells.append(_resolve(cell, base, start, overrides, code, place))
    except InputError as error:
      refused.append(Refusal(cell.title, str(error)))
  _check_distinct(cells, file)
  cells = _join(cells, asked, refused, file)
  return Sweep(cells, refused)


def _add(asked, *words, seeds=None, branch_from=None, **values) -> None:
  """What sweep(add) calls: add(name, {"optim.learning_rate": 1e-3}, ...).

  Args:
    words: a name, a dict of keys and values, or both.
    seeds: whole numbers, one cell each; None leaves the config's.
    branch_from: (name, step) of the cell whose checkpoint it starts from.
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
  # Of numpy, which loops over grids are made with.
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
  name = name or ", ".join(f"{_short(k)}={v}" for k, v in rest.items())
  for more in [{}] if seeds is None else _seeds(seeds, values):
    asked.append(_Asked(name or "base", values | more, branch_from))


def _seeds(seeds, values: dict) -> list[dict]:
  """Returns [{"seed": N}, ...] of what add(seeds=...) was given."""
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


def _short(key: str) -> str:
  return key.rpartition(".")[2]


def _resolve(cell: _Asked, base, start, overrides, code, place) -> Cell:
  nested = base.to_dict()
  for key, value in cell.values.items():
    *sections, last = key.split(".")
    node = nested
    for section in sections:
      node = node[section]
    node[last] = value
  config = config_lib.freeze(nested)
  data, text = data_identity(config.data)
  given = overrides | {k: str(v) for k, v in cell.values.items()}
  argv = [*start, *(f"--config.{k}={v}" for k, v in given.items())]
  return Cell(
    id=make_id(config, data, code),
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


def make_id(config: Config, data: str, code: str) -> str:
  """Returns what names a run: config without free keys, text, sources."""
  content = [config_lib.fingerprint(config), data, code]
  return digest.of_json(content)[:ID_DIGITS]


@functools.cache
def data_identity(data: config_lib.DataConfig) -> tuple[str, str]:
  """Returns hashes: of text, how it is divided and the vocabulary; and of the
  validation text alone, see losses.find_unit.

  Of the text and not of the prepared set, which is made from it by this code:
  an id must be known before anything is prepared, and not change then.
  """
  specs = [data.source] + ([data.valid_source] if data.valid_source else [])
  content = [
    [
      (weight, sources.content_identity(sources.open_source(spec)))
      for weight, spec in sources.parse_mixture(mixture)
    ]
    for mixture in specs
  ]
  how = [] if data.valid_source else [data.split, data.valid_frac]
  # Weights change what is trained on alone.
  valid = [[found for _, found in content[-1]], how]
  whole = [content, tokenizers.identity(data.tokenizer)]
  ids = digest.of_json(whole), digest.of_json(valid)
  return ids[0][:ID_DIGITS], ids[1][:ID_DIGITS]


@functools.cache
def code_version() -> str:
  """Returns a hash of the package's sources, lab/ left out."""
  root = os.path.dirname(os.path.abspath(gpt_jax.__file__))
  rows = []
  for folder, folders, files in os.walk(root):
    folders[:] = sorted(f for f in folders if f != "__pycache__")
    if folder == root:
      folders.remove("lab")
    for file in sorted(f for f in files if f.endswith(".py")):
      path = os.path.join(folder, file)
      with open(path, "rb") as stream:
        found = digest.of_file(stream)
      rows.append((os.path.relpath(path, root).replace(os.sep, "/"), found))
  return digest.of_json(rows)[:ID_DIGITS]


def _check_distinct(cells: list[Cell], file: str) -> None:
  names, ids = {}, {}
  for cell in cells:
    other = ids.setdefault(cell.id, cell)
    if other is not cell:
      keys = diff(config_lib.flatten(other.config), _flat(cell), is_all=True)
      what = "have the same config"
      if keys:
        what = f"differ in what changes no result alone ({', '.join(keys)})"
      raise InputError(
        f"sweep(add) of {file}: cells {other.title!r} and {cell.title!r} {what}"
        "; leave one out"
      )
    if names.setdefault(cell.title, cell) is not cell:
      raise InputError(
        f"sweep(add) of {file}: two cells are called {cell.title!r}; give them "
        "names"
      )


def _flat(cell: Cell) -> dict:
  return config_lib.flatten(cell.config)


def diff(a: dict, b: dict, is_all: bool = False) -> dict:
  """Returns {key: (value in a, value in b)} of two flat configs.

  Args:
    is_all: free keys too.
  """
  return {
    key: (a.get(key), b.get(key))
    for key in config_lib.KEYS
    if a.get(key) != b.get(key) and (is_all or not config_lib.is_free(key))
  }


def diff_text(cell: Cell, other: Cell) -> str:
  """Returns what changed from `other` to `cell`, short, the seed apart."""
  changed = diff(_flat(other), _flat(cell))
  changed.pop("seed", None)
  return ", ".join(f"{_short(k)} {b}" for k, (_, b) in changed.items())


def _join(cells, asked, refused, file) -> list[Cell]:
  """Returns the cells with their trunks, each after its own.

  A cell whose trunk is refused is added to `refused`.
  """
  by_place = {cell.place: cell for cell in cells}
  trunks = {}  # place: that of its trunk, None where that is refused
  for place, cell in by_place.items():
    if asked[place].branch is None:
      continue
    name = asked[place].branch[0]
    if all(c.name != name for c in asked):
      raise InputError(
        f"sweep(add) of {file}: {cell.title!r} branches from {name!r}, which "
        f"is no cell; {config_lib.nearest(name, {c.name for c in asked})}"
      )
    named = [c for c in cells if c.name == name]
    same = [c.place for c in named if c.config.seed == cell.config.seed]
    trunks[place] = same[0] if same else None
    if named and not same:
      raise InputError(
        f"sweep(add) of {file}: {cell.title!r} branches from {name!r}, which "
        f"has no cell of seed {cell.config.seed}"
      )
  done: dict[int, Cell | None] = {}

  def visit(place: int, above: tuple[int, ...]) -> Cell | None:
    cell = by_place[place]
    if place in above:
      names = [by_place[p].title for p in (*above, place)]
      raise InputError(
        f"sweep(add) of {file}: branches go round: {' from '.join(names)}"
      )
    if place not in done:
      if place in trunks:
        name, step = asked[place].branch
        trunk = None
        if trunks[place] is not None:
          trunk = visit(trunks[place], (*above, place))
        if trunk is None:
          refused.append(Refusal(cell.title, f"its trunk {name!r} is refused"))
          cell = None
        else:
          _check_parting(cell, trunk, step)
          cell = dataclasses.replace(cell, trunk=(trunk.id, step))
      done[place] = cell
    return done[place]

  for place in by_place:
    visit(place, ())
  return _with_kept_steps([cell for cell in done.values() if cell])


def _check_parting(cell: Cell, trunk: Cell, step: int) -> None:
  """Raises InputError unless a branch can equal a straight run."""
  for one in (cell, trunk):
    if step > one.config.train.num_steps:
      raise InputError(
        f"{cell.title!r} branches from step {step} of {trunk.title!r}, and "
        f"{one.title!r} has {one.config.train.num_steps} steps"
      )
  a, b = _flat(trunk), _flat(cell)
  wrong = [
    f"{key} ({x!r} there, {y!r} here)"
    for key, (x, y) in diff(a, b, is_all=True).items()
    if key not in (*SCHEDULE, *_PACING) and not key.startswith(_PACING_SECTIONS)
  ]
  if wrong:
    raise InputError(
      f"{cell.title!r} branches from {trunk.title!r} and differs from it in "
      f"{'; '.join(wrong)}; a branch has another schedule alone"
    )


def _with_kept_steps(cells: list[Cell]) -> list[Cell]:
  """Returns the cells, where trunks are told to keep what is branched from.

  A branch starts from what its trunk has kept at or before the step that was
  asked for, which changes no result.
  """
  steps: dict[str, set[int]] = {}
  for cell in cells:
    if cell.trunk is not None:
      steps.setdefault(cell.trunk[0], set()).add(cell.trunk[1])
  pace = {
    c.id: pace_saves(steps[c.id], c.config.checkpoint.every_steps)
    for c in cells
    if c.id in steps
  }
  out = []
  for cell in cells:
    if cell.id in pace:
      every, keep = pace[cell.id]
      more = (
        f"--config.checkpoint.every_steps={every}",
        f"--config.checkpoint.keep_every_steps={keep}",
      )
      cell = dataclasses.replace(cell, argv=(*cell.argv, *more))
    if cell.trunk is not None:
      trunk, step = cell.trunk
      step -= step % pace[trunk][1]
      cell = dataclasses.replace(cell, trunk=(trunk, step) if step else None)
    out.append(cell)
  return out


# Checkpoints that a trunk keeps for each step that is branched from.
KEPT_PER_STEP = 4


def pace_saves(steps: set[int], asked: int) -> tuple[int, int]:
  """Returns (every, keep): a trunk saves every `every` steps and keeps every
  `keep` steps, so that branches from `steps` repeat as few as may be.

  Their common divisor repeats none, and may be 1: then all would be kept. At
  most KEPT_PER_STEP are kept for each of `steps`, and saves come no more than
  twice as often as `asked`.
  """
  last, most = max(steps), KEPT_PER_STEP * len(steps)
  asked = asked or last  # 0 never saves
  found = []
  for near in {s // n for s in steps for n in range(1, most + 1)} - {0}:
    if last // near > most:
      continue
    parts = -(-near // asked)
    for n in range(parts, min(2 * parts, parts + 1000) + 1):
      every = near // n
      if every:
        repeated = sum(s % (every * n) for s in steps)
        found.append((repeated, -every * n, -every))
  _, keep, every = min(found)
  return -every, -keep


def command(cell: Cell, workdir: str) -> str:
  """Returns the arguments of gpt_jax.train as one line of a shell.

  Raises:
    InputError: one holds a line break.
  """
  for word in (*cell.argv, f"--workdir={workdir}"):
    if len(word.splitlines()) > 1 or word != word.rstrip("\r\n"):
      raise InputError(
        f"{cell.title}: {word!r} holds a line break, and --emit writes a line "
        "a cell; take it out, or leave this cell to `run`"
      )
  return shlex.join([*cell.argv, f"--workdir={workdir}"])
