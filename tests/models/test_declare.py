"""Parameters as they are declared."""

import jax
import pytest
from flax.errors import ScopeParamShapeError
from forms import apply, make, tokens_of


def test_a_parameter_of_another_shape_is_refused():
  model, params = make("gpt2")
  apply(model, params, tokens_of())  # the control
  # Broadcast, it would be added as a bias of the declared shape is.
  bias = params["final_norm"]["bias"]
  wrong = jax.tree.map(lambda p: p[:1] if p is bias else p, params)
  with pytest.raises(ScopeParamShapeError):
    apply(model, wrong, tokens_of())
