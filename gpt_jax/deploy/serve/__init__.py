"""A server of a run, with OpenAI's API: `python -m gpt_jax.serve`."""
