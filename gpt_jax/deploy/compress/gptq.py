"""GPTQ: rounding that makes up for its own errors (Frantar et al. 2023).

A matrix W (F outputs, D inputs) is rounded to Q so that the outputs on X, D by
N inputs of calibration, change least:

  E(Q) = |(W - Q) X|^2 = trace((W - Q) G (W - Q)^T),   G = X X^T

Of each row this is a quadratic with the Hessian H = 2 G. The paper rounds the
inputs in order, all rows at once. Fixing w_i at q_i costs (equation 2)

  (w_i - q_i)^2 / [H^-1]_ii

and the best change of the weights that are still free is (equation 2)

  delta = -(w_i - q_i) / [H^-1]_ii * [H^-1]_i,:

where H^-1 is that of the free inputs alone. Step 3 of the paper: with the upper
Cholesky factor U, H^-1 = U^T U, row i of U holds what both need:

  [H^-1]_ii = U_ii^2,   [H^-1]_i,: = U_ii U_i,:,   so that
  delta = -(w_i - q_i) / U_ii * U_i,:                     (algorithm 1)

H is damped by a share of its mean diagonal, so that inputs that calibration
never saw have an inverse. The factor 2 cancels and is left out.

Inputs go in the order of falling G_ii (the authors' "act order"), and each
group's scale is that of plain rounding, found before any weight is changed.

Design choice: the outcome is compared with plain rounding row by row, and the
better one is taken, since the greedy order promises nothing.
"""

import numpy as np

from gpt_jax.ops import quantized

# Inputs of a block, whose corrections are applied together to all inputs after
# the block (step 2).
BLOCK = 128
DAMPING = 0.01


def quantize(w_FD: np.ndarray, gram_DD: np.ndarray, num_bits: int, C: int):
  """Returns (values_GFC int8, scale_GF float32) of a matrix.

  Args:
    gram_DD: X X^T.
    C: number of inputs that share a scale.
  """
  plain = round_rows(w_FD, num_bits, C)
  found = _compensate(w_FD, gram_DD, plain[1], num_bits, C), plain[1]
  is_worse_F = error_of(w_FD, found, gram_DD) > error_of(w_FD, plain, gram_DD)
  return np.where(is_worse_F[None, :, None], plain[0], found[0]), plain[1]


def error_of(w_FD: np.ndarray, rounded, gram_DD: np.ndarray) -> np.ndarray:
  """Returns E of each row, float64.

  Args:
    rounded: (values_GFC, scale_GF).
  """
  delta_FD = (w_FD - restore(*rounded)).astype(np.float64)
  return np.einsum("FD,FD->F", delta_FD @ gram_DD, delta_FD)


def restore(values_GFC: np.ndarray, scale_GF: np.ndarray) -> np.ndarray:
  """Returns the matrix that integers and scales stand for, float32."""
  w_GFC = values_GFC.astype(np.float32) * scale_GF[..., None]
  return w_GFC.swapaxes(0, 1).reshape(scale_GF.shape[1], -1)


def inverse_factor(gram_DD: np.ndarray) -> np.ndarray:
  """Returns U_DD, upper, with U^T U the inverse of the damped X X^T."""
  D = len(gram_DD)
  gram_DD = gram_DD.astype(np.float64)
  mean = np.trace(gram_DD) / D or 1.0
  inverse_DD = np.linalg.inv(gram_DD + DAMPING * mean * np.eye(D))
  return np.linalg.cholesky(inverse_DD).T


def _compensate(w_FD, gram_DD, scale_GF, num_bits: int, C: int):
  """Returns values_GFC by algorithm 1, for given scales."""
  F, D = w_FD.shape
  order_D = np.argsort(-np.diag(gram_DD), kind="stable")
  U_DD = inverse_factor(gram_DD[np.ix_(order_D, order_D)])
  scale_FD = np.repeat(scale_GF.astype(np.float64), C, axis=0).T[:, order_D]
  rest_FD = w_FD.astype(np.float64)[:, order_D]  # the free weights, changed
  values_FD = np.zeros((F, D), np.int8)
  low, high = quantized.LIMITS[num_bits]
  for start in range(0, D, BLOCK):
    end = min(start + BLOCK, D)
    error_FB = np.zeros((F, end - start))
    for i in range(start, end):
      q_F = np.clip(np.rint(rest_FD[:, i] / scale_FD[:, i]), low, high)
      values_FD[:, order_D[i]] = q_F
      error_F = (rest_FD[:, i] - q_F * scale_FD[:, i]) / U_DD[i, i]
      rest_FD[:, i:end] -= np.outer(error_F, U_DD[i, i:end])
      error_FB[:, i - start] = error_F
    rest_FD[:, end:] -= error_FB @ U_DD[start:end, end:]
  return values_FD.reshape(F, -1, C).swapaxes(0, 1)


def round_rows(w_FD: np.ndarray, num_bits: int, C: int):
  """Returns (values_GFC, scale_GF), each weight rounded to nearest."""
  w_GFC = w_FD.astype(np.float32).reshape(len(w_FD), -1, C).swapaxes(0, 1)
  values_GFC, scale_GF = quantized.round_groups(w_GFC, num_bits)
  return np.asarray(values_GFC, np.int8), np.asarray(scale_GF)
