"""What happens inside a run: python -m gpt_jax.lab.interp --help."""
