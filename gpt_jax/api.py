"""A run in Python: gpt_jax.load("runs/tiny"). docs/python.md shows it.

`import gpt_jax` imports nothing else; `load` and `fit` prepare the process and
import jax, so call them before anything else does.
"""

import functools
import operator
import os
from collections.abc import Sequence
from typing import Any

from gpt_jax import files
from gpt_jax.config import WEIGHTS, InputError
from gpt_jax.machine import runtime


class Run:
  """A run that is open for reading.

  Its arrays are NumPy float32. A text is a string, or a list of token ids.

  Args:
    workdir: folder of the run.
    weights, step, average: as the flags of `python -m gpt_jax.generate`.

  Attributes:
    config: gpt_jax.config.Config.
    model: gpt_jax.models.Model.
    params: its parameters, jax arrays.
    tokenizer: encodes and decodes.
    mesh: the devices that the parameters are on.

  Raises:
    InputError: there is no run, or it cannot be read.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    weights: str = "full",
    step: int | None = None,
    average: str | None = None,
  ):
    from gpt_jax.runs import workdir as workdir_lib

    if weights not in WEIGHTS:
      raise InputError(
        f"weights is {weights!r:.60}; it must be one of {', '.join(WEIGHTS)}"
      )
    if step is not None and type(step) is not int:
      raise InputError(
        f"step is {step!r:.60}; it must be a whole number, or None"
      )
    place = files.user_path("workdir", os.fsdecode(workdir), True)
    found = workdir_lib.open_run(
      place, None, lambda line: None, weights, average, step
    )
    self.config, self.model, self.params, self.tokenizer, self.mesh = found

  @functools.cached_property
  def _rounded(self):
    """The parameters, rounded to `weights`, for a forward pass over a text."""
    return self.model.round_weights(self.params)

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text, after the start ids that the model expects."""
    return [*self.tokenizer.start_ids, *self.tokenizer.encode(text).tolist()]

  def decode(self, ids: Sequence[int]) -> str:
    return self.tokenizer.decode(ids)

  def logits(self, text: str | Sequence[int], edit: dict | None = None):
    """Returns logits_TV: row t is for the token after the text's token t.

    With an encoder, row t is for the token at t itself. V excludes padding.

    Args:
      edit: {module: function from the module's output (T, D), a jax array, to
        its replacement}. Modules are "embed", "blocks_3", its "blocks_3/attn"
        and "blocks_3/mlp", "final_norm" and the like; "blocks_3/attn/heads" is
        the heads' output before the output matrix, (T, N, H). The pass is not
        compiled, so that a function may also look at the output or store it.

    Raises:
      InputError: there is no such module, or a function's result has another
        shape.
    """
    logits_TV, _ = self._read(text, has_taps=False, edit=edit)
    return logits_TV

  def losses(self, text: str | Sequence[int]):
    """Returns the loss in nats of each token after the first, T - 1 of them.

    Raises:
      InputError: the model predicts no next token, or the text has only one.
    """
    import numpy as np

    from gpt_jax import config as config_lib
    from gpt_jax.inference import continuations

    continuations.check_model(self.model, config_lib.has_prefixes(self.config))
    ids = self._ids(text)
    if len(ids) < 2:
      raise InputError(
        "the text is one token; a loss is of the tokens after it"
      )
    logits_TV = self.logits(ids)[:-1].astype(np.float64)
    largest_T1 = logits_TV.max(-1, keepdims=True)
    sums_T = np.log(np.exp(logits_TV - largest_T1).sum(-1)) + largest_T1[:, 0]
    own_T = logits_TV[np.arange(len(ids) - 1), ids[1:]]
    return (sums_T - own_T).astype(np.float32)

  def activations(self, text: str | Sequence[int]) -> dict[str, Any]:
    """Returns {name: array} of one forward pass.

    embed and residual, the residual stream before the first block and after the
    last (before the final norm), are (T, D); attn and mlp, the outputs of these
    sublayers in each layer, are (L, T, D); pooled, of an encoder with a pooler,
    is (1, D).
    """
    _, taps = self._read(text, has_taps=True)
    return taps

  def embed(
    self, texts: str | Sequence[str | Sequence[int]], batch_size: int = 32
  ):
    """Returns unit vectors (texts, D), as `gpt_jax.embed` writes them.

    For one string, its vector (D,).

    Raises:
      InputError: a text has more than `data.seq_len` tokens, which that
        command cuts, or has none; or batch_size is not 1 or more.
    """
    if type(batch_size) is not int or batch_size < 1:
      raise InputError(
        f"batch_size is {batch_size!r:.60}; it must be a whole number, 1 or "
        "more"
      )
    import jax

    from gpt_jax.inference import embedding

    limit = min(self.config.data.seq_len, self.model.config.max_len)
    several = [texts] if isinstance(texts, str) else list(texts)
    given = [one if isinstance(one, str) else self._ids(one) for one in several]
    rows = embedding.encode_uncut(self.tokenizer, given, limit)
    with jax.set_mesh(self.mesh):
      found = embedding.embed(self.model, self._rounded, rows, batch_size)
    return found[0] if isinstance(texts, str) else found

  def generate(
    self,
    prompt: str | Sequence[str],
    num_tokens: int = 200,
    seed: int = 0,
    stop: Sequence[str] = (),
    **sampling,
  ) -> Any:
    """Returns the continuation of a prompt, or a list for a list of prompts.

    Args:
      stop: texts that end the continuation, and are not part of it.
      sampling: temperature, top_k, top_p, min_p of generation.Sampling.
    """
    import jax

    from gpt_jax import config as config_lib
    from gpt_jax.data.objectives import prompting
    from gpt_jax.inference import generation, texts
    from gpt_jax.inference.prompts import PromptTokenizer

    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
      return []
    own = prompting(self.config, self.tokenizer)
    is_plain = own is self.tokenizer and own.start_ids
    tokenizer: Any = PromptTokenizer(own) if is_plain else own
    with jax.set_mesh(self.mesh):
      found = texts.generate_text(
        self.model,
        self.params,
        tokenizer,
        prompts,
        num_tokens,
        generation.Sampling(**sampling),
        seed,
        tuple(stop),
        is_prefix=config_lib.has_prefixes(self.config),
      )
    return found[0] if isinstance(prompt, str) else found

  def _ids(self, text: str | Sequence[int]) -> list[int]:
    from gpt_jax import config as config_lib

    try:
      ids = (
        self.encode(text)
        if isinstance(text, str)
        else list(map(operator.index, text))
      )
    except TypeError:
      raise InputError(
        f"the text is {text!r:.60}; it must be a string, or a list of ids"
      ) from None
    limit, V = (
      self.model.config.max_len,
      config_lib.vocab_size(self.config.model),
    )
    if not 0 < len(ids) <= limit:
      raise InputError(
        f"the text has {len(ids)} tokens; it must have 1 to {limit}"
      )
    if not all(0 <= i < V for i in ids):
      raise InputError(
        f"an id is not from 0 to {V - 1}, as the vocabulary's are"
      )
    return ids

  def _read(
    self, text: str | Sequence[int], has_taps: bool, edit: dict | None = None
  ):
    """Returns (logits_TV, taps) of a text."""
    import jax
    import numpy as np

    from gpt_jax import config as config_lib
    from gpt_jax import sharding
    from gpt_jax.inference import generation

    if config_lib.has_source(self.model.config):
      raise InputError(
        "the model reads sources and writes targets; logits and activations "
        "are of models of one text"
      )
    ids = self._ids(text)
    # Padded to one of few lengths, since each is compiled. The padding is a
    # document of its own, which no token of the text sees.
    T = min(generation.round_up(len(ids)), self.model.config.max_len)
    tokens_BT = np.zeros((1, T), np.int32)
    tokens_BT[0, : len(ids)] = ids
    segments_BT = (np.arange(T) >= len(ids)).astype(np.int32)[None]
    with jax.set_mesh(self.mesh):
      if edit:
        out, taps = self._edited(tokens_BT, segments_BT, len(ids), edit), {}
      else:
        out, taps = _jit_forward()(
          self._rounded, tokens_BT, segments_BT, self.model, has_taps
        )
      out, taps = jax.tree.map(sharding.fetch, (out, taps))
    # score_max covers the padding's scores too, so it is left out.
    taps = {k: v for k, v in taps.items() if not k.endswith("score_max")}
    cut = lambda x: np.asarray(x[..., 0, : len(ids), :], np.float32)
    V = config_lib.vocab_size(self.config.model)
    return cut(out)[:, :V], jax.tree.map(cut, taps)

  def _edited(self, tokens_BT, segments_BT, length: int, edit: dict):
    """Returns logits_BTV of a pass with edits, which `logits` describes."""
    import dataclasses
    import difflib

    import flax.linen as nn
    import numpy as np

    model, met = self.model, {}
    model = dataclasses.replace(
      model, config=dataclasses.replace(model.config, scan_layers=False)
    )

    def change(next_fun, args, kwargs, context):
      out = next_fun(*args, **kwargs)
      name = "/".join(context.module.path)
      if context.method_name != "__call__" or not name:
        return out
      met[name] = None
      if name not in edit:
        return out
      x_BTD, *rest = out if isinstance(out, tuple) else (out,)
      new_TD = edit[name](x_BTD[0, :length])
      wanted, found = (length, *x_BTD.shape[2:]), np.shape(new_TD)
      if found != wanted:
        raise InputError(
          f"the edit of {name} must return an array of {wanted}, found {found}"
        )
      x_BTD = x_BTD.at[0, :length].set(new_TD)
      return (x_BTD, *rest) if rest else x_BTD

    with nn.intercept_methods(change):
      out = model.apply(self._rounded, tokens_BT, segments_BT=segments_BT)
    for name in edit:
      if name not in met:
        near = difflib.get_close_matches(name, met, 1) or sorted(met)[:1]
        raise InputError(
          f"the model has no module {name!r}; did you mean {near[0]!r}?"
        )
    return out


@functools.cache
def _jit_forward():
  import jax

  def forward(params, tokens_BT, segments_BT, model, has_taps):
    apply = model.apply_tapped if has_taps else model.apply
    out = apply(params, tokens_BT, segments_BT=segments_BT)
    return out if has_taps else (out, {})

  return jax.jit(forward, static_argnames=("model", "has_taps"))


def load(
  workdir: str | os.PathLike,
  weights: str = "full",
  step: int | None = None,
  average: str | None = None,
) -> Run:
  """Opens a run for reading; see Run."""
  runtime.start()
  return Run(workdir, weights, step, average)


def fit(
  config: Any,
  workdir: str | os.PathLike,
  changes: dict[str, Any] | None = None,
) -> Run:
  """Trains or resumes a run as `python -m gpt_jax.train` does, and opens it.

  Args:
    config: "FILE[:VARIANT]", or the ConfigDict that a config file returns.
    workdir: folder of the run.
    changes: {key: value} of the config, as {"train.num_steps": 200}.

  Raises:
    InputError: the config, its text or the folder cannot be used.
    RuntimeError: training stopped before its last step.
  """
  from gpt_jax import cli, train
  from gpt_jax import config as config_lib

  workdir = files.user_path("workdir", os.fsdecode(workdir), True)
  if isinstance(config, str | os.PathLike):
    config = cli.load_config(os.fsdecode(config), {})
  if not hasattr(config, "to_dict"):
    raise InputError(
      f"config is a {type(config).__name__}; it must be FILE[:VARIANT] or the "
      "ConfigDict that get_config() of a config file returns"
    )
  values = config.to_dict()
  for key, value in (changes or {}).items():
    cli.set_key(values, key, str(value))
  command = f"gpt_jax.fit(config, {workdir!r})"
  if code := train.run(config_lib.freeze(values), workdir, command):
    raise RuntimeError(
      f"training of {workdir} ended with code {code}; the lines above say why"
    )
  return load(workdir)
