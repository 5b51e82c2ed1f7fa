"""Builds the same model in torch and in transformers, to compare speeds.

A plain GPT in torch with fused attention and fused AdamW, eager and compiled;
GPT-2 and Llama of transformers, trained and sampled. Each peer gets its fastest
settings: all cores, TF32 matmuls, a vocabulary padded as ours is, and no check
for the end of text.
"""

import importlib.util
import time

from gpt_jax import config as config_lib
from gpt_jax import files
from gpt_jax.config import Config, InputError
from gpt_jax.lab.bench import machine

NAMES = {
  "torch": ("torch eager", "torch compile"),
  "transformers": ("transformers",),
}
NUM_BATCHES = 4


def check(config: Config, peer: str, subject: str) -> None:
  """Raises InputError unless the peer is installed and has such a model."""
  needed = ("torch", "transformers") if peer == "transformers" else ("torch",)
  for name in needed:
    if importlib.util.find_spec(name) is None:
      raise InputError(
        f"--peer={peer} needs {name}, which is not installed; "
        f"in the folder of this project, {files.pip('peers')}"
      )
  m = config.model
  refused = {
    "model.num_experts": m.num_experts is not None,
    "model.qk_norm": m.qk_norm,
    "model.qkv_bias": m.qkv_bias,
    "model.attn_softcap": m.attn_softcap is not None,
    "model.logit_softcap": m.logit_softcap is not None,
    "model.sliding_window": m.sliding_window is not None,
    "model.dropout_rate": m.dropout_rate > 0,
    "model.norm_placement": m.norm_placement != "pre",
    "model.parallel_residual": m.parallel_residual,
    "model.rope_frac": m.rope_frac < 1,
    "model.rope_scaling": m.rope_scaling != "none",
  }
  if subject == "train":
    refused["model.param_dtype"] = m.param_dtype != "float32"
    refused["optim.optimizer"] = config.optim.optimizer != "adamw"
    refused["optim.moment_dtype"] = config.optim.moment_dtype != "float32"
    refused["data.packing"] = config.data.packing != "stream"
  if not is_llama(config) or peer == "torch":
    refused |= {
      "model.norm": m.norm != "layernorm",
      "model.position": m.position != "learned",
      "model.mlp": m.mlp not in ("gelu", "gelu_tanh"),
      "model.num_kv_heads": m.num_heads != config_lib.num_kv_heads(m),
      "model.tied_embeddings": not m.tied_embeddings,
      "model.head_dim": m.num_heads * config_lib.head_dim(m) != m.model_dim,
    }
  if peer == "transformers":
    # GPT-2 has biases and Llama none.
    refused["model.bias"] = m.bias == is_llama(config)
  keys = config_lib.flatten(config)
  found = [f"{key} {keys[key]!r}" for key, is_no in refused.items() if is_no]
  if found:
    raise InputError(
      f"--peer={peer} has no model with {', '.join(found)}; "
      "--config=configs/bench.py:gpt2 is one that it has"
    )


def is_llama(config: Config) -> bool:
  """Returns whether the model is of Llama's form."""
  m = config.model
  return (m.norm, m.position, m.mlp) == ("rmsnorm", "rope", "swiglu")


def build(who: str, subject: str, config: Config, **options):
  """Returns the subject of one of NAMES, ready to run."""
  import torch

  torch.set_num_threads(machine.count_cores())
  # TF32, which XLA uses for float32 matmuls on a GPU.
  torch.set_float32_matmul_precision("high")
  torch.manual_seed(config.seed)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  if who == "transformers":
    model = build_transformers(config).to(device)
    score = lambda ids, targets: _score_transformers(model, ids, targets)
  else:
    model = build_torch(config).to(device)
    score = model
  if subject in ("decode", "serve"):
    return Decode(config, model, device, **options)
  if who == "torch compile":
    score = torch.compile(model)
  return Train(config, model, score, device)


class Train:
  """A training step of torch: forward, backward, clip, AdamW.

  Args:
    score: (ids_BT, targets_BT) -> mean nats.
  """

  def __init__(self, config: Config, model, score, device: str):
    import torch

    self.config, self.model, self.score = config, model, score
    self.device = device
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    o = config.optim
    self.optimizer = torch.optim.AdamW(
      [
        {"params": matrices, "weight_decay": o.weight_decay},
        {"params": others, "weight_decay": 0.0},
      ],
      lr=o.learning_rate,
      betas=(o.beta1, o.beta2),
      eps=o.eps,
      fused=True,
    )
    shape = (config.train.global_batch_size, config.data.seq_len + 1)
    V = config.model.vocab_size
    self.batches = [torch.randint(V, shape) for _ in range(NUM_BATCHES)]
    started = time.perf_counter()
    self.turn(0)
    self.compile_seconds = time.perf_counter() - started

  def describe(self) -> dict:
    return {**_describe(self.device), "compile_seconds": self.compile_seconds}

  def turn(self, index: int) -> float:
    """Takes one step; returns its loss, which waits for the step to end."""
    import torch

    ids = self.batches[index % NUM_BATCHES].to(self.device, non_blocking=True)
    is_half = self.config.model.compute_dtype == "bfloat16"
    with torch.autocast(self.device, torch.bfloat16, enabled=is_half):
      loss = self.score(ids[:, :-1], ids[:, 1:])
    loss.backward()
    if self.config.optim.clip_norm is not None:
      torch.nn.utils.clip_grad_norm_(
        self.model.parameters(), self.config.optim.clip_norm
      )
    self.optimizer.step()
    self.optimizer.zero_grad(set_to_none=True)
    return loss.item()

  def run(self, count: int) -> dict:
    """Returns the seconds of each of `count` steps."""
    seconds = []
    for index in range(count):
      start = time.perf_counter()
      loss = self.turn(index)
      seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "loss": loss}


class Decode:
  """transformers' generate, greedy, with its KV cache."""

  def __init__(self, config, model, device, prompt_len: int, num_tokens: int):
    import torch

    if config.model.compute_dtype == "bfloat16":
      model = model.to(torch.bfloat16)
    self.model = model.eval()
    # Random weights do not predict the end of text; checking costs time.
    self.model.generation_config.eos_token_id = None
    self.model.generation_config.pad_token_id = 0
    self.config, self.device = config, device
    self.prompt_len, self.num_tokens = prompt_len, num_tokens

  def describe(self) -> dict:
    return _describe(self.device)

  def run(self, batch_size: int) -> dict:
    """Returns seconds of prefill, of the loop and of both, and loop tokens."""
    ids = self._draw_prompts(batch_size)
    prefill = self._generate(ids, 1)
    total = self._generate(ids, self.num_tokens)
    return {
      "prefill": prefill,
      "loop": total - prefill,
      "loop_tokens": self.num_tokens - 1,
      "total": total,
    }

  def write(self, batch_size: int, lengths: list[int]) -> dict:
    """Returns the seconds to generate texts of these lengths, batch by batch.

    Texts keep their order. A batch runs until its longest text is complete.
    """
    total = 0.0
    for first in range(0, len(lengths), batch_size):
      own = lengths[first : first + batch_size]
      total += self._generate(self._draw_prompts(len(own)), max(own))
    return {"total": total}

  def _draw_prompts(self, batch_size: int):
    import torch

    shape = (batch_size, self.prompt_len)
    return torch.randint(self.config.model.vocab_size, shape).to(self.device)

  def _generate(self, ids, count: int) -> float:
    import torch

    start = time.perf_counter()
    with torch.inference_mode():
      out = self.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        use_cache=True,
        max_new_tokens=count,
        min_new_tokens=count,
      )
    out = out.cpu()
    seconds = time.perf_counter() - start
    assert out.shape[1] == self.prompt_len + count, out.shape
    return seconds


def build_torch(config: Config):
  """Returns a module of (ids_BT, targets_BT) -> mean nats."""
  import torch.nn.functional as F
  from torch import nn

  m = config.model
  D, N = m.model_dim, m.num_heads
  V = config_lib.padded_vocab_size(m)
  linear = lambda fan_in, fan_out: nn.Linear(fan_in, fan_out, bias=m.bias)
  norm = lambda: nn.LayerNorm(D, eps=m.norm_eps, bias=m.bias)

  class Layer(nn.Module):
    def __init__(self):
      super().__init__()
      self.attn_norm, self.mlp_norm = norm(), norm()
      self.attn_in, self.attn_out = linear(D, 3 * D), linear(D, D)
      self.mlp_in, self.mlp_out = linear(D, m.mlp_dim), linear(m.mlp_dim, D)
      self.gelu = nn.GELU("tanh" if m.mlp == "gelu_tanh" else "none")

    def forward(self, x_BTD):
      x_BTD = x_BTD + self.attn_out(self.attend(self.attn_norm(x_BTD)))
      hidden_BTF = self.gelu(self.mlp_in(self.mlp_norm(x_BTD)))
      return x_BTD + self.mlp_out(hidden_BTF)

    def attend(self, x_BTD):
      heads = lambda x: x.unflatten(-1, (N, D // N)).transpose(1, 2)
      y_BNTH = F.scaled_dot_product_attention(
        *map(heads, self.attn_in(x_BTD).chunk(3, dim=-1)), is_causal=True
      )
      return y_BNTH.transpose(1, 2).flatten(2)

  class Gpt(nn.Module):
    def __init__(self):
      super().__init__()
      self.tokens = nn.Embedding(V, D)
      self.positions = nn.Embedding(m.max_len, D)
      self.layers = nn.ModuleList(Layer() for _ in range(m.num_layers))
      self.final_norm = norm()
      for weights in self.parameters():
        if weights.ndim == 2:
          nn.init.normal_(weights, std=m.init_std)

    def forward(self, ids_BT, targets_BT):
      x_BTD = self.tokens(ids_BT) + self.positions.weight[: ids_BT.shape[1]]
      for layer in self.layers:
        x_BTD = layer(x_BTD)
      logits_BTV = F.linear(self.final_norm(x_BTD), self.tokens.weight)
      return F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten()
      )

  return Gpt()


def build_transformers(config: Config):
  """Returns GPT2LMHeadModel or LlamaForCausalLM with random weights."""
  import transformers

  transformers.logging.set_verbosity_error()
  m = config.model
  if is_llama(config):
    return transformers.LlamaForCausalLM(
      transformers.LlamaConfig(
        vocab_size=m.vocab_size,
        hidden_size=m.model_dim,
        intermediate_size=m.mlp_dim,
        num_hidden_layers=m.num_layers,
        num_attention_heads=m.num_heads,
        num_key_value_heads=config_lib.num_kv_heads(m),
        head_dim=config_lib.head_dim(m),
        max_position_embeddings=m.max_len,
        rms_norm_eps=m.norm_eps,
        rope_theta=m.rope_theta,
        tie_word_embeddings=m.tied_embeddings,
        bos_token_id=None,
        eos_token_id=None,
      )
    )
  return transformers.GPT2LMHeadModel(
    transformers.GPT2Config(
      vocab_size=m.vocab_size,
      n_positions=m.max_len,
      n_embd=m.model_dim,
      n_layer=m.num_layers,
      n_head=m.num_heads,
      n_inner=m.mlp_dim,
      activation_function="gelu_new" if m.mlp == "gelu_tanh" else "gelu",
      layer_norm_epsilon=m.norm_eps,
      resid_pdrop=0.0,
      embd_pdrop=0.0,
      attn_pdrop=0.0,
      bos_token_id=None,
      eos_token_id=None,
    )
  )


def _score_transformers(model, ids_BT, targets_BT):
  import torch.nn.functional as F

  logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
  return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())


def _describe(device: str) -> dict:
  import torch

  kind = torch.cuda.get_device_name() if device == "cuda" else "cpu"
  return {
    "platform": "gpu" if device == "cuda" else "cpu",
    "device": kind,
    "devices": 1,
    "threads": torch.get_num_threads(),
  }
