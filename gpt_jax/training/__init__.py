"""How is it learned? State, step, loop and what is reported of it."""
