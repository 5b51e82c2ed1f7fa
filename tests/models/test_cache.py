"""The cache: which keys a layer of each kind is given."""

import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models import cache


@pytest.mark.parametrize("kind", ["global", "a kind to come"])
def test_only_local_layers_have_a_ring(kind):
  start, end = jnp.array([6]), jnp.array([8])
  slots = cache.key_slots(kind, 16, 2, start, end)
  np.testing.assert_array_equal(slots, np.arange(16)[None])
  old = jnp.zeros((1, 1, 16, 4))
  new = jnp.ones((1, 1, 2, 4))
  (keys, _), (kept, _) = cache.update((old, old), (new, new), kind, start, end)
  assert keys is kept and keys.shape == old.shape
  np.testing.assert_array_equal(np.flatnonzero(keys[0, 0, :, 0]), [6, 7])
  ring = cache.key_slots("local", 4, 2, start, end)  # the control
  np.testing.assert_array_equal(ring, [[4, 5, 2, 3, 6, 7]])
