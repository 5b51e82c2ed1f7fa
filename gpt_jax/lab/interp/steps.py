"""Shows one head's arithmetic on a short text, step by step."""

import numpy as np

from gpt_jax.lab.interp import page, passes

# Largest number of tokens, and of dims of a head, that the tables show.
MOST, DIMS = 8, 16

_SUM = (
  "Softmax makes a row of weights of a row of scores: each weight is "
  "exp(score), divided by the sum of exp(score) over the keys that the query "
  "sees. So the weights of a query always sum to one, whatever the scores are, "
  "as the last column shows. Numbers that are made up to illustrate attention "
  "need not: if they do not sum to one they are no softmax's weights but "
  "relevances, and dividing each by their sum would make them weights of the "
  "same proportions."
)


def show(found: passes.Record, layer: int, head: int) -> str:
  """Returns HTML of queries, keys, values, weights and weighted sums."""
  names = [page.show_token(token) for token in found.tokens]
  q_TH, k_TH, v_TH, z_TH = (
    array[layer, :, head]
    for array in (found.q_LTNH, found.k_LTNH, found.v_LTNH, found.heads_LTNH)
  )
  w_TS = found.weights_LNTS[layer, head]
  H = q_TH.shape[1]
  dims = [str(i) for i in range(H)][:DIMS]
  cut = lambda array: array[:, :DIMS]
  s_TS = np.where(np.tri(len(names)) > 0, q_TH @ k_TH.T, np.nan)
  sums_T1 = w_TS.sum(-1, keepdims=True)
  some = "" if H <= DIMS else f" The first {DIMS} of {H} numbers are shown."
  parts = [
    page.paragraph(
      f"Layer {layer}, head {head}. Each token asks with its query, offers "
      f"itself with its key and gives its value.{some}"
    )
  ]
  for name, array in (("Queries", q_TH), ("Keys", k_TH), ("Values", v_TH)):
    parts += [f"<h3>{name}</h3>", page.grid(cut(array), names, dims)]
  parts += [
    "<h3>Products of queries and keys</h3>",
    page.paragraph(
      "A query, down, with each key, across, that it sees: itself and those "
      "before it. The model multiplies them by its factor, 1 / sqrt("
      f"{H}) = {H**-0.5:.4f} in the standard form, and they are the scores."
    ),
    page.grid(s_TS, names, names),
    "<h3>Weights</h3>",
    page.paragraph(_SUM),
    page.grid(
      np.concatenate([w_TS, sums_T1], 1), names, [*names, "sum"], ".3f", 1.0
    ),
    "<h3>Weighted sums</h3>",
    page.paragraph(
      "Each query's weights times the values, added up: what the head gives."
    ),
    page.grid(cut(z_TH), names, dims),
  ]
  return "".join(parts)
