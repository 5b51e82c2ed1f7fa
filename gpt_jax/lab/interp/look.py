"""One page with every view of what a model does with a text."""

import numpy as np

from gpt_jax.api import Run
from gpt_jax.config import InputError
from gpt_jax.lab.interp import (
  attribution,
  heads,
  lens,
  page,
  passes,
  patching,
  sae,
  steps,
)

# Largest number of tokens on a page: attention maps grow with its square.
MOST = 64
# Heads are scored on TEXTS texts of REPEATED random tokens that appear twice.
REPEATED, TEXTS = 24, 4


def look(
  run: Run,
  text: str,
  other: str | None = None,
  rows_BT: np.ndarray | None = None,
  layer: int | None = None,
) -> str:
  """Returns the page of a text.

  Args:
    other: a text of as many tokens but with another next token; with it, the
      page shows activation patching.
    rows_BT: ids of more text; with them, the page shows a tuned lens and a
      sparse autoencoder.
    layer: the layer whose stream the autoencoder reads; None is the middle one.

  Raises:
    InputError: a text is too long, or the two differ in length.
  """
  found = passes.record(run, text)
  T, L = len(found.ids), len(found.attn_LTD)
  if not 2 <= T <= MOST:
    raise InputError(
      f"the text has {T} token{'s' * (T > 1)}; a page shows 2 to {MOST}, so "
      "give another"
    )
  answer = int(found.logits_TV[-1].argmax())
  said = passes.token_texts(run, [answer])[0]
  sections = [
    *([("Step by step", steps.show(found, 0, 0))] if T <= steps.MOST else []),
    ("Attention", _attention(found)),
    ("Heads", _heads(run, found)),
    ("Logit lens", _lens(run, found, lens.logit_lens(run, found))),
    ("Attribution", _attribution(run, found, answer)),
    ("Direct logits", _direct(run, found, answer)),
    ("Ablation", _ablation(run, found, answer)),
  ]
  if other is not None:
    sections.append(("Patching", _patching(run, found, other, answer)))
  if rows_BT is not None:
    layer = (L - 1) // 2 if layer is None else layer
    tuned = lens.tuned_lens(run, found, lens.train_lens(run, rows_BT))
    sections.append(("Tuned lens", _lens(run, found, tuned)))
    sections.append(("Features", _features(run, rows_BT, layer)))
  intro = page.colored(found.tokens, np.zeros(T))
  intro += page.paragraph(f"The model's next token is {said!r}.")
  return page.build(f"Inside: {text[:60]}", sections, intro)


def _names(found: passes.Record) -> list[str]:
  return [page.show_token(token) for token in found.tokens]


def _layers(count: int) -> list[str]:
  return [f"layer {i}" for i in range(count)]


def _head_names(count: int) -> list[str]:
  return [f"head {i}" for i in range(count)]


def _attention(found: passes.Record) -> str:
  text = (
    "A row is a query, a column a key; the stronger the cell, the more of its "
    "value the head takes. Each row sums to one."
  )
  return page.paragraph(text) + page.maps(found.weights_LNTS)


def _heads(run: Run, found: passes.Record) -> str:
  stats = heads.describe(found.weights_LNTS)
  L, N = stats.entropy_LN.shape
  shown = {
    "Entropy of the weights, nats": stats.entropy_LN,
    "Distance to what is attended to, tokens": stats.distance_LN,
    "Weight of the token before": stats.previous_LN,
    "Weight of the first token": stats.first_LN,
  }
  length = min(REPEATED, run.model.config.max_len // 2)
  if length > 1:
    rows = heads.repeated(run, length, TEXTS, seed=0)
    name = f"Induction score, on {length} random tokens repeated"
    shown[name] = heads.induction_scores(run, rows)
  # Values of at most 1, such as weights, are shaded relative to 1; others
  # relative to their largest.
  of_one = lambda values: 1.0 if values.max() <= 1 else None
  parts = [
    f"<div><h3>{name}</h3>"
    + page.grid(values, _layers(L), _head_names(N), largest=of_one(values))
    + "</div>"
    for name, values in shown.items()
  ]
  return f'<div class="beside">{"".join(parts)}</div>'


def _lens(run: Run, found: passes.Record, logits_XTV: np.ndarray) -> str:
  shifted = logits_XTV - logits_XTV.max(-1, keepdims=True)
  p = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
  first = p.argmax(-1)
  flat = passes.token_texts(run, first.ravel().tolist())
  texts = np.array(flat, object).reshape(first.shape)
  rows = ["embedding", *_layers(len(first) - 1)]
  text = (
    "The likeliest next token if the model ended after each layer, below each "
    "token of the text; the cell's strength is its probability."
  )
  table = page.words(p.max(-1), texts, rows, _names(found))
  return page.paragraph(text) + table


def _attribution(run: Run, found: passes.Record, answer: int) -> str:
  slope = attribution.gradient_times_input(run, found, answer)
  path, rise = attribution.integrated_gradients(run, found, answer)
  text = (
    "Which tokens raise the logit of the next token, and which lower it. "
    f"Integrated gradients add up to {path.sum():.4f}, and the logit rises by "
    f"{rise:.4f} from the mean embedding."
  )
  parts = [page.paragraph(text), "<h3>Gradient times input</h3>"]
  parts += [page.colored(found.tokens, slope), "<h3>Integrated gradients</h3>"]
  return "".join([*parts, page.colored(found.tokens, path)])


def _direct(run: Run, found: passes.Record, answer: int) -> str:
  try:
    given = attribution.direct_logits(run, found, answer)
  except InputError as error:
    return page.paragraph(str(error))
  L = len(given["attn"])
  text = (
    "What each part writes into the logit of the next token, the final norm "
    f"held as it is: the embedding {given['embed']:+.3f}, and layers:"
  )
  both = np.stack([given["attn"], given["mlp"]], 1)
  parts = [page.paragraph(text)]
  parts.append(page.grid(both, _layers(L), ["attention", "MLP"], "+.3f"))
  if "heads" in given:
    names = _head_names(given["heads"].shape[1])
    parts.append(page.grid(given["heads"], _layers(L), names, "+.3f"))
  return "".join(parts)


def _ablation(run: Run, found: passes.Record, answer: int) -> str:
  rise = patching.ablate(run, found, "heads", answer)
  L, N = rise.shape
  text = "How much the loss of the next token rises without a head, in nats."
  return page.paragraph(text) + page.grid(
    rise, _layers(L), _head_names(N), "+.3f"
  )


def _patching(run: Run, found: passes.Record, other: str, answer: int) -> str:
  ids = run.encode(other)
  away = int(passes.record(run, ids).logits_TV[-1].argmax())
  if away == answer:
    raise InputError(
      "both texts have the same next token; give an --other whose next token "
      "is another"
    )
  parts = [
    page.paragraph(
      f"The other text is {other!r}. Where its activations are replaced by "
      "those of the first, how much of the first one's next token comes back: "
      "0 is none, 1 is all."
    )
  ]
  for kind in ("residual", "heads"):
    share = patching.sweep(run, found, ids, kind, answer, away)
    columns = _names(found) if kind == "residual" else _head_names(len(share.T))
    parts.append(f"<h3>{kind}</h3>")
    parts.append(page.grid(share, _layers(len(share)), columns, largest=1.0))
  return "".join(parts)


def _features(run: Run, rows_BT: np.ndarray, layer: int) -> str:
  x_BTD = sae.streams(run, rows_BT, layer)
  flat = x_BTD.reshape(-1, x_BTD.shape[-1])
  own = sae.train(flat, layer, 4 * x_BTD.shape[-1])
  figures = sae.quality(own, flat)
  parts = [
    page.paragraph(
      f"A sparse autoencoder of the stream after layer {layer}: it explains "
      f"{100 * figures['explained']:.1f} % of the variance with "
      f"{figures['on_per_token']:.1f} features a token; "
      f"{100 * figures['in_use']:.0f} % of {len(own.bias_F)} features are in "
      "use. Each is shown where it is largest."
    )
  ]
  for feature in sae.describe(run, own, rows_BT, x_BTD):
    raised = ", ".join(page.show_token(token) for token in feature.raised)
    parts.append(
      f"<h3>feature {feature.index}</h3><p class='soft'>on in "
      f"{100 * feature.density:.1f} % of tokens; raises {raised}</p>"
    )
    parts += [_excerpt(example) for example in feature.examples]
  return "".join(parts)


def _excerpt(example: sae.Example, around: int = 16) -> str:
  at = int(np.argmax(example.values))
  part = slice(max(0, at - around), at + around // 2)
  return page.colored(example.tokens[part], np.array(example.values[part]))
