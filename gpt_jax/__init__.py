"""gpt_jax: transformers in JAX and Flax, from a laptop to a pod."""

__version__ = "0.1.0"

# Each function imports what it needs when it is called.


def load(workdir: str, **options):
  """Opens a trained run in Python: api.load."""
  from gpt_jax import api

  return api.load(workdir, **options)


def fit(config, workdir: str, changes: dict | None = None):
  """Trains a run in Python, and opens it: api.fit."""
  from gpt_jax import api

  return api.fit(config, workdir, changes)


def sweep(root: str) -> dict[str, list]:
  """Returns the cells of a sweep as columns: lab.sweep.tables.read."""
  from gpt_jax.lab.sweep import tables

  return tables.read(root)


def scaling(workdirs: str, metric: str | None = None, **options):
  """Fits scaling laws to finished runs: lab.scaling.study.read."""
  from gpt_jax.lab.scaling import study

  return study.read(workdirs, metric, **options)
