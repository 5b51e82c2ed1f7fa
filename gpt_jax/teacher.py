"""The teacher in distillation, whose logits a student learns from.

Hinton et al. 2015. The teacher is a model whose frozen parameters are in the
training state, or its stored largest logits, which each batch then holds.
Either way the loss gets one more sum, the divergence of the student from it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax import sharding
from gpt_jax.config import DistillConfig
from gpt_jax.data import logits
from gpt_jax.models import Model
from gpt_jax.ops.divergence import Divergence
from gpt_jax.ops.matmul import matmul
from gpt_jax.ops.visibility import MASK_VALUE


class Teacher(NamedTuple):
  """The teacher of a config: its options and its model.

  Attributes:
    distill: distill section of the config.
    model: None where the logits are stored.
  """

  distill: DistillConfig
  model: Model | None

  @property
  def scale(self) -> float:
    """The weight of the divergence, in a loss that is a mean over targets.

    Gradients of softened targets shrink with the square of the temperature
    (Hinton et al. 2015, section 2.1), which this undoes.
    """
    return self.distill.weight * self.distill.temperature**2

  def can_reorder(self, length: int) -> bool:
    """Returns whether the teacher's rows may be reordered, see Model."""
    return self.model is None or self.model.can_reorder(length, False)

  def tell(self, params, batch: dict, inputs: dict, order_1T, is_headless):
    """Returns what `diverge` compares the student with.

    Args:
      params: the teacher's parameters; None where its logits are stored.
      batch: holds the stored logits.
      inputs, order_1T, is_headless: of the student's forward pass.
    """
    if self.model is None:
      return batch[logits.IDS], batch[logits.LOG_PROBS]
    params = jax.lax.stop_gradient(params)
    return self.model.apply(
      params, **inputs, order_1T=order_1T, is_headless=is_headless
    )

  def diverge(self, student: Model, own, told, mask_BT, num_chunks: int):
    """Returns the student's divergence from the teacher, summed over targets.

    Args:
      own: logits_BTV; with num_chunks above 1 the (x_BTD, w_VD) of a headless
        pass.
      told: result of `tell`.
      mask_BT: float32 weight of each target; None counts all.
      num_chunks: parts of the tokens, whose logits exist one part at a time:
        backward recomputes them.
    """
    if mask_BT is None:
      shape = (own if num_chunks == 1 else own[0]).shape[:2]
      mask_BT = jnp.ones(shape, jnp.float32)
    if num_chunks == 1:
      return self._sum(own, told, mask_BT)
    (x_BTD, w_VD), parts, teacher = own, [mask_BT], self.model
    if teacher is None:
      parts += told
      find = lambda *told: told
    else:
      parts.append(told[0])
      find = lambda x_BTD: _read_out(teacher, x_BTD, told[1])

    @jax.checkpoint
    def one(w_VD, x_BTD, mask_BT, *told):
      return self._sum(_read_out(student, x_BTD, w_VD), find(*told), mask_BT)

    add = lambda total, part: (total + one(w_VD, *part), None)
    cut = functools.partial(_cut, num_chunks)
    return jax.lax.scan(add, jnp.float32(0), (cut(x_BTD), *map(cut, parts)))[0]

  def _sum(self, logits_BTV, told, mask_BT):
    d = Divergence(self.distill.kl, self.distill.temperature)
    if self.model is None:
      ids_BTK, teacher_BTO = told
      return d.sum(d.log_probs_of(logits_BTV, ids_BTK), teacher_BTO, mask_BT)
    told_BTV = d.log_probs(_resize(told, logits_BTV.shape[-1]))
    return d.sum(d.log_probs(logits_BTV), told_BTV, mask_BT)


def _read_out(model: Model, x_BTD, w_VD):
  """Returns logits_BTV from the result of a headless pass."""
  dtype, V = model.config.grad_dtype, w_VD.shape[0]
  logits_BTV = matmul("BTD,VD->BTV", x_BTD, w_VD, dtype, jnp.float32)
  axes = ("batch", "length", "vocab")
  logits_BTV = sharding.constrain(logits_BTV, axes, model.rules)
  return model.cap_logits(logits_BTV, jnp.arange(V))


def _cut(num_chunks: int, x_BT: Any):
  """Returns (C, B, t, ...): every C-th token of (B, T, ...), padded with zeros.

  Strided, so that a part is spread over the devices that split the rows.
  """
  B, T, *rest = x_BT.shape
  short = -T % num_chunks
  padded = jnp.pad(x_BT, [(0, 0), (0, short)] + [(0, 0)] * len(rest))
  return jnp.moveaxis(padded.reshape(B, -1, num_chunks, *rest), 2, 0)


def _resize(logits_BTV, size: int):
  """Returns logits with padding of the vocabulary added or removed."""
  short = size - logits_BTV.shape[-1]
  if short <= 0:
    return logits_BTV[..., :size]
  wide = ((0, 0), (0, 0), (0, short))
  return jnp.pad(logits_BTV, wide, constant_values=MASK_VALUE)
