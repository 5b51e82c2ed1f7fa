"""How fast is it, beside what was predicted and what a user would pick instead?

Whatever is timed runs in a process of its own, with nothing of another in it;
the command that asks never imports jax.
"""
