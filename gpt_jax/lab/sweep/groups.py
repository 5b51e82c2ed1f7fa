"""Groups of runs that differ only in the seed, and how the groups compare."""

import dataclasses
import json
import math

from gpt_jax import config as config_lib
from gpt_jax.config import InputError, nearest
from gpt_jax.lab.sweep import folder, losses, paired


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs that differ only in the seed.

  Attributes:
    name: unique among the groups of a report.
    states: of the group's cells.
  """

  name: str
  states: list[folder.State]

  @property
  def ended(self) -> list[folder.State]:
    """The group's runs that have ended with a loss."""
    return [s for s in self.states if s.final is not None]

  def losses(self, unit: str = losses.NATS) -> dict[int, float]:
    """Returns {seed: final loss} of runs that ended; inf where one diverged."""
    found = {
      s.seed: losses.value(s, unit) for s in self.ended if s.seed is not None
    }
    for state in self.states:
      if state.word == folder.DIVERGED and state.seed is not None:
        found[state.seed] = math.inf
    return found

  @property
  def is_sound(self) -> bool:
    """Whether a run has ended, and none has diverged."""
    found = self.losses().values()
    return bool(found) and all(map(math.isfinite, found))


def group(states: list[folder.State], names: dict[str, str]) -> list[Group]:
  """Returns the groups, in the order of the cells."""
  found: dict[str, list[folder.State]] = {}
  for state in states:
    if state.config is None:
      continue
    kept = {
      k: v
      for k, v in asked(state).items()
      if k != "seed" and not config_lib.is_free(k)
    }
    code = state.record.get("code")
    key = json.dumps([kept, state.record.get("data"), code], sort_keys=True)
    found.setdefault(key, []).append(state)
  groups, taken = [], set()
  for members in found.values():
    first = members[0]
    name = names.get(first.id, first.name)
    if name in taken:  # by a group of another code version or sweep
      name = f"{name} ({first.id})"
    taken.add(name)
    groups.append(Group(name, members))
  return groups


def asked(state: folder.State) -> dict:
  """Returns the flat config of a cell as the sweep asked for it.

  model.vocab_size may be None; a run fills it in once its text is prepared.
  """
  flat = config_lib.flatten(state.the_config())
  size = state.record.get("config", flat).get("model.vocab_size")
  return flat | {"model.vocab_size": size}


def compare(
  groups: list[Group], baseline: str | None
) -> list[paired.Comparison]:
  """Returns the other groups compared with the baseline.

  Args:
    baseline: a group's name; None takes the first that ended without diverging.

  Raises:
    InputError: there is no such group.
  """
  named = [g.name for g in groups]
  if baseline is not None and baseline not in named:
    raise InputError(
      f"--baseline={baseline} is no name of a cell; {nearest(baseline, named)}"
    )
  groups = [g for g in groups if g.losses() or g.name == baseline]
  if len(groups) < 2:
    return []
  first = next((g for g in groups if g.is_sound), groups[0])
  base = next((g for g in groups if g.name == baseline), first)
  found = []
  for one in groups:
    if one is base:
      continue
    unit, why = find_unit(base.states + one.states)
    if unit:
      pair = (base.name, base.losses(unit)), (one.name, one.losses(unit))
      found.append(paired.pair(*pair, "" if unit == losses.NATS else unit))
    else:
      found.append(paired.Comparison(one.name, base.name, (), why=why))
  return paired.judge(found)


def find_unit(states: list[folder.State]) -> tuple[str, str]:
  """Returns losses.find_unit of the runs that have ended with a loss."""
  ended = [s for s in states if s.final is not None]
  return losses.find_unit(ended) if ended else (losses.NATS, "")


def axes_of(states: list[folder.State]) -> list[str]:
  """Returns the keys that differ among cells, without seed and free keys."""
  flats = [asked(s) for s in states if s.config is not None]
  return [
    key
    for key in config_lib.KEYS
    if key != "seed"
    and not config_lib.is_free(key)
    and len({flat[key] for flat in flats}) > 1
  ]


def numeric(axes: list[str], states: list[folder.State]) -> list[str]:
  """Returns the axes along which runs that ended have different numbers."""
  out = []
  for key in axes:
    values = {asked(s)[key] for s in states if drawn_loss(s) is not None}
    if len(values) > 1 and all(type(v) in (int, float) for v in values):
      out.append(key)
  return out


def drawn_loss(state: folder.State, unit: str = losses.NATS) -> float | None:
  """Returns a run's loss for a figure: inf if diverged, None before its end."""
  if state.final is not None:
    return losses.value(state, unit)
  return math.inf if state.word == folder.DIVERGED and state.config else None
