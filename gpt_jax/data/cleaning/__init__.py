"""What is done to a text before it is prepared: `gpt_jax.data clean`.

Pure Python on one document at a time. Nothing here imports jax, so that a
machine without it can clean.
"""
