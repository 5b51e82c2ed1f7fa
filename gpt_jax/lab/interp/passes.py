"""Forward passes whose activations are recorded or changed at named points.

A point is the output of a module: "embed"; the residual stream after a layer,
"blocks_3"; the outputs of its sublayers, "blocks_3/attn" and "blocks_3/mlp";
and "blocks_3/attn/heads", (T, N, H), the outputs of its heads before the output
matrix.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.api import Run
from gpt_jax.config import InputError
from gpt_jax.deploy.compress.calibrate import apart
from gpt_jax.models import Model
from gpt_jax.parametrization import residual_multiplier


class Record(NamedTuple):
  """One text's activations, NumPy float32. X is L + 1, L the number of layers.

  Attributes:
    ids: of the tokens.
    tokens: their texts.
    logits_TV: without those of padding ids.
    residual_XTD: the stream after the embedding and after each layer.
    attn_LTD, mlp_LTD: what these sublayers add to the stream.
    heads_LTNH: each head's weighted sums of values.
    q_LTNH, k_LTNH, v_LTNH: queries and keys after RoPE, and values; keys and
      values that query heads share are repeated.
    weights_LNTS: attention weights; each row sums to one.
  """

  ids: list[int]
  tokens: list[str]
  logits_TV: np.ndarray
  residual_XTD: np.ndarray
  attn_LTD: np.ndarray
  mlp_LTD: np.ndarray
  heads_LTNH: np.ndarray
  q_LTNH: np.ndarray
  k_LTNH: np.ndarray
  v_LTNH: np.ndarray
  weights_LNTS: np.ndarray


def open_model(run: Run) -> Model:
  """Returns the run's model with unstacked layers and dense attention.

  Raises:
    InputError: the model is no decoder, or has experts or latent attention.
  """
  c = run.model.config
  others = {
    f"an {c.family.replace('_', '-')}": c.family != "decoder",
    "a decoder that scores classes": not run.model.can_generate,
    "one with experts": c.num_experts is not None,
    "one with latent attention": c.kv_lora_rank is not None,
    "one with layers of other forms": run.model.stacks != ("blocks",),
  }
  if found := [form for form, is_so in others.items() if is_so]:
    raise InputError(
      "a look inside is for decoders without experts and latent attention, and "
      f"this run is {found[0]}; give another run"
    )
  model = apart(run.model)
  own = dataclasses.replace(model.config, attention="dense")
  return dataclasses.replace(model, config=own)


def record(run: Run, text: str | Sequence[int]) -> Record:
  """Returns the activations of one forward pass."""
  model, ids = open_model(run), run._ids(text)
  found = _recorded(model)(run._rounded, jnp.asarray([ids], jnp.int32))
  logits_TV, residual, attn, mlp, heads, parts = jax.device_get(found)
  N = model.config.num_heads
  q, k, v, p = (np.stack([layer[i] for layer in parts]) for i in range(4))
  # (L, 1, K, G, T, H) to (L, T, N, H), N = K G; keys and values have no G.
  of_q = lambda x: x[:, 0].reshape(len(x), N, *x.shape[4:])
  repeat = lambda x: np.repeat(x[:, 0], N // x.shape[2], axis=1)
  turn = lambda x: x.swapaxes(1, 2)
  V = config_lib.vocab_size(model.config)
  return Record(
    ids,
    token_texts(run, ids),
    logits_TV[0, :, :V],
    np.stack(residual)[:, 0],
    np.stack(attn)[:, 0],
    np.stack(mlp)[:, 0],
    np.stack(heads)[:, 0],
    turn(of_q(q)),
    turn(repeat(k)),
    turn(repeat(v)),
    of_q(p),
  )


def check_asked(found: Record, at: int, *tokens: int) -> int:
  """Returns the position `at`, which may be negative, counted from 0.

  Raises:
    InputError: the text has no such position, or the vocabulary no such token.
      jax would silently use another index, or return zeros.
  """
  T, V = found.logits_TV.shape
  if not -T <= at < T:
    raise InputError(f"at is {at}; it must be a place of a text of {T} tokens")
  for token in tokens:
    if not 0 <= token < V:
      raise InputError(
        f"the token is {token}; it must be from 0 to {V - 1}, as the "
        "vocabulary's are"
      )
  return at % T


def token_texts(run: Run, ids: Sequence[int]) -> list[str]:
  """Returns the text of each token.

  Each token is decoded after a copy of itself, because a tokenizer may drop the
  space at the start of a text.
  """
  return [run.decode([i, i])[len(run.decode([i])) :] for i in ids]


def edited(run: Run, rows_BT, edits: dict[str, tuple]):
  """Returns logits_BTV of passes with changed activations, NumPy.

  Args:
    rows_BT: ids.
    edits: {point: (value, mask_BT)}; where the mask is true, the activation is
      replaced by the value, which must broadcast to its shape.
  """
  rows = jnp.asarray(rows_BT, jnp.int32)
  edits = jax.tree.map(jnp.asarray, edits)
  model = open_model(run)
  out = _edited(model)(run._rounded, rows, edits)
  return np.asarray(out)[..., : config_lib.vocab_size(model.config)]


def read_out(run: Run, x_BTD) -> np.ndarray:
  """Returns logits_BTV of streams by the final norm and output matrix alone.

  All layers are skipped (nostalgebraist 2020).
  """
  model = open_model(run)
  out = _read_out(model)(run._rounded, jnp.asarray(x_BTD))
  return np.asarray(out)[..., : config_lib.vocab_size(model.config)]


def apply_with(model: Model, params: Any, tokens_BT, change, **kw):
  """Runs Model.apply, but with x = change(point, x) at each point."""

  def intercept(next_fun, args, kwargs, context):
    out = next_fun(*args, **kwargs)
    point = "/".join(context.module.path)
    if context.method_name != "__call__" or not point:
      return out
    if isinstance(out, tuple):
      return (change(point, out[0]), *out[1:])
    return change(point, out)

  with nn.intercept_methods(intercept):
    return model.apply(params, tokens_BT, **kw)


def skip_layers(model: Model, params: Any, x_BTD):
  """Applies only the final norm and the output matrix; returns logits_BTV."""

  def intercept(next_fun, args, kwargs, context):
    name = "/".join(context.module.path)
    if name.startswith("blocks_") and context.method_name == "__call__":
      return x_BTD, (None, None)
    return next_fun(*args, **kwargs)

  tokens_BT = jnp.zeros(x_BTD.shape[:2], jnp.int32)
  with nn.intercept_methods(intercept):
    return model.apply(params, tokens_BT)


@functools.cache
def _recorded(model: Model):
  L = model.config.num_layers

  def run(params, tokens_BT):
    seen = {}

    def look(point, x):
      seen[point] = x
      return x

    logits_BTV, saved = apply_with(
      model, params, tokens_BT, look, mutable=["taps", "heads"]
    )
    branch = residual_multiplier(model.config)
    blocks = [f"blocks_{i}" for i in range(L)]
    added = lambda b, name: branch * saved["taps"][b][name][0]
    return (
      logits_BTV,
      [seen["embed"], *(seen[b] for b in blocks)],
      [added(b, "attn_out") for b in blocks],
      [added(b, "mlp_out") for b in blocks],
      [seen[f"{b}/attn/heads"] for b in blocks],
      [saved["heads"][b]["attn"]["parts"][0] for b in blocks],
    )

  return jax.jit(run)


@functools.cache
def _edited(model: Model):
  def run(params, rows_BT, edits):
    def change(point, x):
      if point not in edits:
        return x
      value, mask_BT = edits[point]
      mask = mask_BT.reshape(*mask_BT.shape, *(1,) * (x.ndim - 2))
      value = jnp.broadcast_to(value, x.shape).astype(x.dtype)
      return jnp.where(mask, value, x)

    return apply_with(model, params, rows_BT, change)

  return jax.jit(run)


@functools.cache
def _read_out(model: Model):
  return jax.jit(functools.partial(skip_layers, model))
