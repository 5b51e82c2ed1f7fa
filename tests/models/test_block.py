"""Where a block has its norms."""

import dataclasses

import jax
import numpy as np
import pytest
from forms import apply, make, tokens_of

from gpt_jax.models import build_model


@pytest.mark.parametrize("form", ["sandwich", "llama"])
def test_with_norms_after_sublayers_their_size_does_not_count(form):
  model, params = make(form)
  # Without an eps that small outputs would be compared with.
  model = build_model(dataclasses.replace(model.config, norm_eps=1e-12))

  def grow(path, p):
    name = path[-1].key
    return 10 * p if name in ("o", "out") else p

  grown = jax.tree_util.tree_map_with_path(grow, params)
  before, after = (apply(model, p, tokens_of()) for p in (params, grown))
  found = np.abs(before - after)[..., :61].max()
  # llama is the control: without those norms it does.
  assert (found < 1e-2) == (form == "sandwich"), found
