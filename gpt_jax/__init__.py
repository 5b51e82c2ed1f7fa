"""gpt_jax: GPT-style transformers in JAX and Flax, from a laptop to a pod."""

__version__ = "0.1.0"
