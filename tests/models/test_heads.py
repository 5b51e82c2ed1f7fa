"""Norms, rotations and residuals of heads that a config cannot have."""

import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax.config import InputError

REFUSED = {
  "qk_norm_over is heads and model.qk_norm is False": dict(
    qk_norm_over="heads"
  ),
  "rope_frac is 0.5, .* model.position is learned": dict(rope_frac=0.5),
  "rope_frac is 0.5, .* or attention is latent": dict(
    rope_frac=0.5, position="rope", kv_lora_rank=8, qk_rope_head_dim=4
  ),
  "rope_frac of the head width must be even; it is 0": dict(
    rope_frac=0.01, position="rope"
  ),
  "parallel_residual is True, .* model.norm_placement is post": dict(
    parallel_residual=True, norm_placement="post"
  ),
  "parallel_residual is True, .* model.family encoder_decoder": dict(
    parallel_residual=True, family="encoder_decoder"
  ),
  "rope_scaling is 'yarn:2:16:1', .* model.rope_theta is 1": dict(
    rope_scaling="yarn:2:16:1", rope_theta=1.0, position="rope"
  ),
  "model.pooler is True and model.family is decoder": dict(pooler=True),
  "scaled_readout is True and model.parametrization is mup": dict(
    scaled_readout=True, parametrization="mup", base_dim=8
  ),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_heads_cannot_be_is_refused(sentence):
  config = base.get_config()
  if "encoder_decoder" in sentence:
    config.data.objective = "span_corruption"
    config.data.seq_len = 64
  config_lib.freeze(config)
  config.model.update(REFUSED[sentence])
  with pytest.raises(InputError, match=sentence):
    config_lib.freeze(config)
