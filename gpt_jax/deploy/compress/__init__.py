"""Smaller models of a trained one: python -m gpt_jax.deploy.compress --help."""
