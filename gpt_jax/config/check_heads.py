"""Refuses widths, norms and rotations of attention heads that conflict."""

from gpt_jax.config.derived import has_source, head_dim, rope_dim
from gpt_jax.config.schema import ModelConfig
from gpt_jax.exits import InputError


def check_heads(m: ModelConfig) -> None:
  """Refuses norms and rotations of heads, and residuals, that conflict.

  Raises:
    InputError: the sentence names the keys.
  """
  _check_latent(m)
  if m.pooler and m.family != "encoder":
    raise InputError(
      f"model.pooler is True and model.family is {m.family}, whose first token "
      "sees no other; it is for encoders: leave it False"
    )
  if m.qk_norm_over != "head" and not m.qk_norm:
    raise InputError(
      f"model.qk_norm_over is {m.qk_norm_over} and model.qk_norm is False; set "
      "model.qk_norm, or leave it head"
    )
  if m.position == "rope" and (rope_dim(m) % 2 or not rope_dim(m)):
    width = "model.qk_rope_head_dim" if m.kv_lora_rank else "the head width"
    width = "model.rope_frac of the head width" if m.rope_frac < 1 else width
    raise InputError(
      f"model.position='rope' rotates pairs of dims, so {width} must be "
      f"even; it is {rope_dim(m)}"
    )
  if m.rope_scaling.mechanism == "yarn" and m.rope_theta == 1:
    raise InputError(
      f"model.rope_scaling is {m.rope_scaling!r}, which stretches the longer "
      "wavelengths, and model.rope_theta is 1, by which all are one; it must "
      "be more"
    )
  count = len(m.rope_scaling.numbers) - 1
  if m.rope_scaling.mechanism == "longrope" and count != rope_dim(m) // 2:
    raise InputError(
      f"model.rope_scaling has {count} factors of wavelengths, and "
      f"{rope_dim(m)} dims of a head turn; it must have {rope_dim(m) // 2}"
    )
  if m.rope_frac < 1 and (m.position != "rope" or m.kv_lora_rank is not None):
    raise InputError(
      f"model.rope_frac is {m.rope_frac:g}, of heads that rope turns in part, "
      f"and model.position is {m.position}, or attention is latent, which has "
      "model.qk_rope_head_dim; leave it 1"
    )
  if m.parallel_residual and (m.norm_placement == "post" or has_source(m)):
    raise InputError(
      "model.parallel_residual is True, an MLP beside attention, and "
      f"model.norm_placement is {m.norm_placement} and model.family "
      f"{m.family}; it is made for norms within the residual and blocks of two "
      "sublayers"
    )


def _check_latent(m: ModelConfig) -> None:
  """Refuses widths of latent attention that lack another or conflict."""
  if m.kv_lora_rank is None:
    for key in ("q_lora_rank", "qk_rope_head_dim", "v_head_dim"):
      if getattr(m, key) is not None:
        raise InputError(
          f"model.{key} is {getattr(m, key)}, a width of latent attention, and "
          "model.kv_lora_rank is None; set both, or neither"
        )
    return
  asked = f"model.kv_lora_rank is {m.kv_lora_rank}, latent attention,"
  if m.position != "rope" or m.qk_rope_head_dim is None:
    raise InputError(
      f"{asked} whose positions are dims of a head that are rotated, with "
      f"model.position {m.position} and model.qk_rope_head_dim "
      f"{m.qk_rope_head_dim}; it needs rope, and their number"
    )
  if m.qk_rope_head_dim >= head_dim(m):
    raise InputError(
      f"model.qk_rope_head_dim is {m.qk_rope_head_dim}, a part of the head's "
      f"{head_dim(m)} dims; it must be less, or model.head_dim more"
    )
  if m.num_kv_heads not in (None, m.num_heads):
    raise InputError(
      f"{asked} in which each query head has keys of its own, and "
      f"model.num_kv_heads is {m.num_kv_heads}; leave it None"
    )
  for name, what in (("qk_norm", "a norm"), ("qkv_bias", "biases")):
    if getattr(m, name):
      raise InputError(
        f"{asked} which caches keys before they are projected, and model."
        f"{name} is True, {what} of what is projected; leave it False"
      )
