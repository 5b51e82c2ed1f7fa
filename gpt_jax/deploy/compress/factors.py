"""Low-rank factors of matrices, weighted by their inputs on a text.

The rank-R product that is nearest to W (F by D) on inputs X, with X X^T = G and
G = S S^T, minimises |(W - W') S|: by Eckart and Young W' S is the singular
value decomposition U s V^T of W S, cut after R (as in SVD-LLM, Wang et al.
2024):

  W'^T = S^-T V s U^T = A B,   A = S^-T V sqrt(s),   B = sqrt(s) U^T
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from gpt_jax.deploy.compress import calibrate, layerwise
from gpt_jax.deploy.compress.gptq import DAMPING
from gpt_jax.models import Model, adapters
from gpt_jax.ops import factored
from gpt_jax.ops.quantized import split_dims


def factor(model: Model, params: Any, percent: int, rows_BT: np.ndarray):
  """Returns the parameters with a Factored for each matrix of a layer.

  Args:
    params: stacked.
    percent: number of weights in a matrix's two factors, of its own number.
  """

  def fit(w, role, gram_DD):
    w_FD = calibrate.by_rows(w, role)
    rank = adapters.rank_of(w_FD.size, sum(w_FD.shape), percent)
    a_DR, b_RF = decompose(w_FD, gram_DD, rank)
    outs = split_dims(w, role)[1]
    ins = w.shape[: w.ndim - len(outs)]
    put = lambda x, *dims: jnp.asarray(x.reshape(dims), w.dtype)
    pair = factored.Factored(put(a_DR, *ins, rank), put(b_RF, rank, *outs))
    return pair, factored.merge(pair)

  return layerwise.refit(model, params, rows_BT, fit)


def decompose(w_FD: np.ndarray, gram_DD: np.ndarray, rank: int):
  """Returns (a_DR, b_RF) float32, whose product is nearest to w_FD.T."""
  D = len(gram_DD)
  mean = np.trace(gram_DD) / D or 1.0
  S_DD = np.linalg.cholesky(gram_DD + DAMPING * mean * np.eye(D))
  U_FK, s_K, V_KD = np.linalg.svd(w_FD @ S_DD, full_matrices=False)
  root_R = np.sqrt(s_K[:rank])
  a_DR = np.linalg.solve(S_DD.T, V_KD[:rank].T * root_R)
  b_RF = (U_FK[:, :rank] * root_R).T
  return a_DR.astype(np.float32), b_RF.astype(np.float32)
