"""gpt_jax: transformers in JAX and Flax, from a laptop to a pod."""

__version__ = "0.1.0"


def load(workdir: str, **options):
  """Opens a trained run in Python: api.load, imported when it is called."""
  from gpt_jax import api

  return api.load(workdir, **options)
