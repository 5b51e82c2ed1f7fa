"""A config as flat keys: for storing, for its fingerprint, and differences."""

import dataclasses

from gpt_jax import digest
from gpt_jax.config.options import ParsedOption
from gpt_jax.config.schema import KEYS, Config


def flatten(config: Config) -> dict:
  """Returns {"section.key": value} in the order of declaration."""
  flat = {}
  for name, value in dataclasses.asdict(config).items():
    if isinstance(value, dict):
      flat.update({f"{name}.{key}": v for key, v in value.items()})
    else:
      flat[name] = value
  return {
    k: str(v) if isinstance(v, ParsedOption) else v for k, v in flat.items()
  }


def nest(flat: dict) -> dict:
  """Returns nested sections from a stored {"section.key": value}.

  Keys that were added since it was stored get the values of schema.Added.

  Raises:
    ValueError: a key is below one that holds a value; the message is a clause
      that follows the name of the file.
  """
  older = {k: key.added.value for k, key in KEYS.items() if key.added}
  nested: dict = {}
  for dotted, value in (older | flat).items():
    node = nested
    *sections, key = dotted.split(".")
    for section in sections:
      node = node.setdefault(section, {})
      if not isinstance(node, dict):
        raise ValueError(f"holds {dotted} below a value")
    node[key] = value
  return nested


def fingerprint(config: Config) -> str:
  """Returns 16 hex digits that identify what a run with this config learns.

  Free keys are left out, as are added keys with the value of schema.Added.
  """

  def is_part(key: str, value: object) -> bool:
    added = KEYS[key].added
    return not is_free(key) and not (added and added.value == value)

  kept = {k: v for k, v in flatten(config).items() if is_part(k, v)}
  return digest.of_json(kept)[:16]


def is_free(key: str) -> bool:
  """Returns whether a run may be resumed with another value of `key`."""
  return key in KEYS and KEYS[key].is_free


def differing_keys(old: Config, new: Config) -> list[str]:
  """Returns "key (old value, new value)" for every key that is not free."""
  a, b = flatten(old), flatten(new)
  return [
    f"{key} ({a[key]!r} there, {b[key]!r} here)"
    for key in a
    if a[key] != b[key] and not is_free(key)
  ]
