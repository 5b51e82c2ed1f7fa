"""Cleans texts before they are prepared: `gpt_jax.data clean`.

Texts are cleaned one document at a time. Nothing here imports jax, so that a
machine without it can clean.
"""
