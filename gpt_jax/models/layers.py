"""The pieces of a model: embedding, norms, MLP, dropout, unembedding."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt_jax import config as config_lib
from gpt_jax import sharding, tree
from gpt_jax.config import ModelConfig
from gpt_jax.models.declare import declare
from gpt_jax.models.positions import sinusoids
from gpt_jax.ops import quantized
from gpt_jax.ops.activation import ACTIVATIONS, activate
from gpt_jax.ops.matmul import matmul
from gpt_jax.ops.norm import normalize
from gpt_jax.ops.projection import project, shift
from gpt_jax.parametrization import readout_multiplier

# First parts of the paths of the output heads' parameters; all others are the
# trunk's.
HEADS = ("classifier", "head", "unembed")
# Number of columns that append a bias of the logits to the output matrix.
BIAS_WIDTH = 128


def dropout(x, rate: float, key, name: str):
  """Zeroes entries with probability `rate`; identity without a key."""
  if key is None or rate == 0.0:
    return x
  keep = jax.random.bernoulli(tree.key_for(key, name), 1 - rate, x.shape)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


class Embedding(nn.Module):
  """Token embeddings and, if configured, positions, token types and a norm.

  Attributes:
    has_tokens: whether the module declares its own table of tokens.
  """

  config: ModelConfig
  has_tokens: bool = True

  def setup(self):
    c, D = self.config, self.config.model_dim
    V = config_lib.padded_vocab_size(c)
    if self.has_tokens:
      self.table_VD = declare(
        self, "tokens", (V, D), ("vocab", "embed"), "embed"
      )
    if c.position == "learned":
      self.table_SD = declare(
        self, "positions", (c.max_len, D), ("positions", "embed"), "position"
      )
    if c.num_token_types is not None:
      shape = c.num_token_types, D
      self.types_XD = declare(
        self, "types", shape, ("positions", "embed"), "position"
      )
    if config_lib.has_embed_norm(c):
      self.norm = Norm(c)

  def __call__(
    self, tokens_BT, positions_BT, types_BT=None, table_VD: Any = None
  ):
    table_VD = self.table_VD if self.has_tokens else table_VD
    # Cast after the lookup: the gradient of a token's row is a sum over all its
    # occurrences, which bfloat16 would round at every term.
    if isinstance(table_VD, quantized.Quantized):
      x_BTD = quantized.pick(table_VD, tokens_BT)
    else:
      x_BTD = table_VD[tokens_BT]
    if self.config.scaled_embeddings:  # Vaswani et al. 2017, section 3.4
      x_BTD = x_BTD * self.config.model_dim**0.5
    if self.config.position == "learned":
      x_BTD = x_BTD + self.table_SD[positions_BT]
    if config_lib.is_sinusoidal(self.config):
      in_halves = self.config.position == "sinusoidal_halves"
      x_BTD += sinusoids(positions_BT, self.config.model_dim, in_halves)
    if self.config.num_token_types is not None:
      if types_BT is None:
        types_BT = jnp.zeros((1, 1), jnp.int32)
      x_BTD += self.types_XD[types_BT]
    x_BTD = x_BTD.astype(self.config.compute_dtype)
    if config_lib.has_embed_norm(self.config):
      x_BTD = self.norm(x_BTD)
    return x_BTD


def start_stream(module: nn.Module, x_BTD, key, name: str = "embed"):
  """Returns the residual stream that the first layer reads.

  Args:
    module: the family's Linen module.
    x_BTD: output of Embedding.
    key: dropout key, or None.
    name: prefix of the tap's name (Model.apply_tapped).
  """
  module.sow("taps", f"{name}_out", x_BTD)
  x_BTD = dropout(x_BTD, module.config.dropout_rate, key, "embed")
  return sharding.constrain(
    x_BTD, ("batch", "residual_length", "residual"), module.rules
  )


class Norm(nn.Module):
  """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019)."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD):
    c, width = self.config, (x_BTD.shape[-1],)
    scale = declare(self, "scale", width, ("norm",), "norm")
    is_centred = c.norm == "layernorm"
    x_BTD = normalize(x_BTD, scale, c.norm_eps, is_centred)
    if is_centred and c.bias:
      bias = declare(self, "bias", width, ("norm",), "bias")
      x_BTD = shift(x_BTD, bias, c.grad_dtype)
    return x_BTD


class MLP(nn.Module):
  """Two projections with a nonlinearity between, or three with a gate.

  Attributes:
    width: F; None: config.mlp_dim.
    has_bias: None: config.bias.
  """

  config: ModelConfig
  rules: str
  width: int | None = None
  has_bias: bool | None = None

  @nn.compact
  def __call__(self, x_BTD):
    c, D, F = self.config, x_BTD.shape[-1], self.width or self.config.mlp_dim
    has_bias = c.bias if self.has_bias is None else self.has_bias
    ws = {
      "in": declare(self, "in", (D, F), ("embed", "mlp"), "hidden"),
      "out": declare(self, "out", (F, D), ("mlp", "embed"), "residual"),
    }
    if config_lib.is_gated(c):
      ws["gate"] = declare(self, "gate", (D, F), ("embed", "mlp"), "hidden")
    biases = {}
    if has_bias:
      biases["in"] = declare(self, "in_bias", (F,), ("mlp",), "bias")
      biases["out"] = declare(self, "out_bias", (D,), ("norm",), "bias")
    return feed_forward(x_BTD, ws, biases, c, self.rules)


def feed_forward(x_BTD, ws: dict, biases: dict, config, rules: str):
  """Returns y_BTD of an MLP.

  Args:
    ws: w_DF "in", w_FD "out" and, with a gate, w_DF "gate".
    biases: bias_F "in" and bias_D "out", or none.
  """
  c = config
  h_BTF = project(x_BTD, ws["in"], c.grad_dtype)
  if "in" in biases:
    h_BTF = shift(h_BTF, biases["in"], c.grad_dtype)
  sides = [checkpoint_name(h_BTF, "mlp")]
  if "gate" in ws:
    g_BTF = project(x_BTD, ws["gate"], c.grad_dtype)
    sides.insert(0, checkpoint_name(g_BTF, "mlp"))
  h_BTF = activate(ACTIVATIONS[c.mlp], *sides)
  h_BTF = sharding.constrain(h_BTF, ("batch", "length", "mlp"), rules)
  y_BTD = project(h_BTF, ws["out"], c.grad_dtype)
  if "out" in biases:
    y_BTD = shift(y_BTD, biases["out"], c.grad_dtype)
  return y_BTD


class Transform(nn.Module):
  """BERT's transform before the output matrix (Devlin et al. 2019).

  A projection, gelu and a norm; for head="transform".
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD):
    """Returns (x_BTD, the bias_V of the logits)."""
    c, D = self.config, x_BTD.shape[-1]
    w_DD = declare(self, "dense", (D, D), ("embed", "mlp"), "hidden")
    x_BTD = project(x_BTD, w_DD, c.grad_dtype)
    if c.bias:
      bias_D = declare(self, "dense_bias", (D,), ("mlp",), "bias")
      x_BTD = shift(x_BTD, bias_D, c.grad_dtype)
    x_BTD = Norm(c, name="norm")(activate(ACTIVATIONS["gelu"], x_BTD))
    V = config_lib.padded_vocab_size(c)
    return x_BTD, declare(self, "bias", (V,), ("vocab",), "bias")


class LogitBias(nn.Module):
  """A bias of the logits without a transform, for head="biased"."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD):
    """Returns (x_BTD unchanged, the bias_V of the logits)."""
    V = config_lib.padded_vocab_size(self.config)
    return x_BTD, declare(self, "bias", (V,), ("vocab",), "bias")


class Pooler(nn.Module):
  """BERT's pooler: tanh of a projection of the first token (model.pooler)."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD):
    pooled_B1D = pool_first(self, x_BTD)
    self.sow("taps", "pooled", pooled_B1D)
    return pooled_B1D


def pool_first(module: nn.Module, x_BTD):
  """Returns the pooled first token, x_B1D; declares parameters in `module`."""
  c, D = module.config, x_BTD.shape[-1]
  x_B1D = x_BTD[:, :1]
  w_DD = declare(module, "dense", (D, D), ("embed", "mlp"), "hidden")
  x_B1D = project(x_B1D, w_DD, c.grad_dtype)
  if c.bias:
    bias_D = declare(module, "dense_bias", (D,), ("mlp",), "bias")
    x_B1D = shift(x_B1D, bias_D, c.grad_dtype)
  return jnp.tanh(x_B1D.astype(jnp.float32)).astype(x_B1D.dtype)


class Classifier(nn.Module):
  """The classification head (model.head), for data.objective=classification.

  Design choice: the text is the first segment of its row and padding another,
  so segments mask the padding in every family and no other mask is needed.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD, segments_BT=None, key=None, pooled_B1D=None):
    """Returns float32 logits of C classes: (B, 1, C), or (B, T, C) for "each".

    Args:
      x_BTD: the last layer's output, after the final norm.
      pooled_B1D: Pooler's output for x_BTD; None in a model without a pooler.
      segments_BT: only tokens of a row's first segment are pooled; None: all.
      key: dropout key, or None.
    """
    c, (B, T, D) = self.config, x_BTD.shape
    own_BT = jnp.ones((B, T), bool)
    if segments_BT is not None:
      own_BT = segments_BT == segments_BT[:, :1]
    if c.head == "first":
      x_BTD = pool_first(self, x_BTD) if pooled_B1D is None else pooled_B1D
    elif c.head == "last":
      last_B11 = own_BT.sum(1)[:, None, None] - 1
      x_BTD = jnp.take_along_axis(x_BTD, last_B11, axis=1)
    elif c.head == "mean":
      wide_BTD = jnp.where(own_BT[..., None], x_BTD.astype(jnp.float32), 0)
      count_B11 = own_BT.sum(1)[:, None, None]
      mean_B1D = wide_BTD.sum(1, keepdims=True) / count_B11
      x_BTD = mean_B1D.astype(x_BTD.dtype)
    x_BTD = dropout(x_BTD, c.dropout_rate, key, "classifier")
    readout = readout_multiplier(c)
    x_BTD = x_BTD if readout == 1 else readout * x_BTD
    C = config_lib.num_classes(c)
    w_CD = declare(self, "out", (C, D), (None, "embed"), "unembed")
    bias_C = declare(self, "out_bias", (C,), (None,), "bias")
    logits = matmul("BTD,CD->BTC", x_BTD, w_CD, c.grad_dtype, jnp.float32)
    return logits + bias_C.astype(jnp.float32)[None, None]


def build_read_out(
  module: nn.Module, table_VD, segments_BT=None, key=None, pooled_B1D=None
):
  """Returns read_out(x_BTD, is_headless) -> logits_BTV, or (x_BTD, w_VD).

  With is_headless it returns the pair, whose product is the logits. A
  classification head always returns Classifier's logits.

  Args:
    module: the family's, which declares the output matrix unless it is tied.
    table_VD: table of token embeddings.
    segments_BT, key: of the forward pass; only a classification head uses them.
    pooled_B1D: as Classifier's.
  """
  if config_lib.has_classes(module.config):
    head = Classifier(module.config, name="classifier")
    return lambda x_BTD, is_headless: head(x_BTD, segments_BT, key, pooled_B1D)
  c, w_VD, transform = module.config, table_VD, None
  if c.head in ("transform", "biased"):
    form = Transform if c.head == "transform" else LogitBias
    transform = form(c, name="head")
  if not c.tied_embeddings or module.has_variable("params", "unembed"):
    V, D = config_lib.padded_vocab_size(c), c.model_dim
    w_VD = declare(module, "unembed", (V, D), ("vocab", "embed"), "unembed")
  return functools.partial(
    _read_out, w_VD, transform, config=c, rules=module.rules
  )


def _read_out(w_VD, transform, x_BTD, is_headless: bool, config, rules: str):
  c, bias_V = config, None
  if transform is not None:
    x_BTD, bias_V = transform(x_BTD)
  readout = readout_multiplier(c)
  x_BTD = x_BTD if readout == 1 else readout * x_BTD
  if is_headless and bias_V is None:
    return x_BTD, w_VD
  if is_headless and bias_V is not None:
    # Append the bias as columns; devices must still divide the width.
    one = jax.nn.one_hot(jnp.zeros((), jnp.int32), BIAS_WIDTH)
    ones = jnp.broadcast_to(one, (*x_BTD.shape[:-1], BIAS_WIDTH))
    x_BTD = jnp.concatenate([x_BTD, ones.astype(x_BTD.dtype)], axis=-1)
    columns = bias_V[:, None] * one[None].astype(w_VD.dtype)
    return x_BTD, jnp.concatenate([w_VD, columns], axis=-1)
  logits_BTV = matmul("BTD,VD->BTV", x_BTD, w_VD, c.grad_dtype, jnp.float32)
  logits_BTV = sharding.constrain(
    logits_BTV, ("batch", "length", "vocab"), rules
  )
  if bias_V is not None:
    logits_BTV += bias_V[None, None].astype(jnp.float32)
  return cap_logits(logits_BTV, jnp.arange(logits_BTV.shape[-1]), c)


def cap_logits(logits_BTV, ids_V, config: ModelConfig):
  """Returns logits after the soft-cap; those of padding ids are -1e30.

  Args:
    ids_V: token id of each logit; V may be a part of the vocabulary.
  """
  if config.logit_softcap is not None:
    cap = config.logit_softcap
    logits_BTV = cap * jnp.tanh(logits_BTV / cap)
  if config_lib.padded_vocab_size(config) > config_lib.vocab_size(config):
    logits_BTV = jnp.where(ids_V < config.vocab_size, logits_BTV, -1e30)
  return logits_BTV
