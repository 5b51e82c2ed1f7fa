"""What each part of lab.card runs, in a process of its own."""

import functools
import gc
import itertools
import json
import os
from collections.abc import Callable, Iterator

import jax

from gpt_jax import cli
from gpt_jax import config as config_lib
from gpt_jax.config import Config
from gpt_jax.lab.card import check, decode, steps
from gpt_jax.lab.card.steps import Setting
from gpt_jax.machine import chips

TOY = {
  "model.num_layers": 2,
  "model.num_heads": 2,
  "model.num_kv_heads": 1,
  "model.model_dim": 64,
  "model.mlp_dim": 128,
  "model.vocab_size": 512,
  "model.max_len": 128,
  "data.seq_len": 128,
  "train.global_batch_size": 2,
}
_GPT2 = "configs/bench.py:gpt2-gpu"
_1B, _3B = "configs/bench.py:llama-1b", "configs/bench.py:llama-3b"
_8B = "configs/llama.py:8b"
# Part -> (config, {what is special: options of XLA}).
TRIALS = {
  "gpt2": (_GPT2, {"64 rows": None}),
  "llama-1b": (_1B, {"16 rows": None}),
  "llama-3b": (_3B, {"5 rows, moments in bfloat16": None}),
  "flags": (
    _GPT2,
    {
      "as it is": None,
      "Triton products": {"xla_gpu_enable_triton_gemm": True},
      "excess precision": {"xla_allow_excess_precision": True},
      "products joined": {"xla_gpu_dot_merger_threshold_mb": "64"},
      "no CUDA graphs": {"xla_gpu_enable_command_buffer": ""},
    },
  ),
}
# (weights, rows) that are decoded.
DECODED = [(w, n) for n in (1, 8) for w in config_lib.WEIGHTS]
_DECODE = {
  "model.remat": "none",
  "model.scan_layers": False,
  "model.param_dtype": "bfloat16",
}
# Steps whose values are compared: config and keys, at toy size.
CHECKED = {
  "step, GPT": (_GPT2, {}),
  "step, Llama": (_1B, {"model.scan_layers": True, "model.remat": "full"}),
  "step, documents": (_GPT2, {"data.packing": "documents"}),
}


def run(part: str, is_toy: bool, target: str | None, out: str | None) -> int:
  """Prints the rows of a part, a line of JSON each; returns an exit code."""
  devices = _find_devices(target)
  path = None if out is None else os.path.join(out, part)
  setting = Setting(devices, target is not None, is_toy, path)
  about = {"part": part, "device": devices[0].device_kind}
  for row in _rows(part, setting):
    print(json.dumps(about | row), flush=True)
    gc.collect()  # of what was compiled and held before the next
  return 0


def _find_devices(target: str | None) -> list:
  if target is None:
    return jax.devices()[:1]
  from gpt_jax.lab.plan import gpus

  return gpus.find_devices(chips.parse_topology(f"{target}:1", 1))


def _rows(part: str, setting: Setting) -> Iterator[dict]:
  toy = TOY if setting.is_toy else {}
  if part in TRIALS:
    spec, trials = TRIALS[part]
    # Options of the GPU compiler say nothing on a CPU.
    most = 1 if setting.is_toy else None
    for label, options in itertools.islice(trials.items(), most):
      work = functools.partial(
        steps.time_step, _config(spec, toy), options, setting, part != "flags"
      )
      yield _caught(label, work)
  elif part == "decode":
    config = _config(_8B, _DECODE | toy)
    for weights, num_rows in DECODED:
      work = functools.partial(
        decode.time_decode, config, weights, num_rows, setting
      )
      rows = "row" if num_rows == 1 else "rows"
      yield _caught(f"{weights}, {num_rows} {rows}", work)
  else:
    is_cpu = setting.devices[0].platform == "cpu"
    for name in () if is_cpu else check.RULES:
      work = functools.partial(check.check_attention, name, setting)
      yield _caught(name, work)
    for name, (spec, keys) in CHECKED.items():
      work = functools.partial(
        check.check_steps, _config(spec, TOY | keys), setting
      )
      yield _caught(name, work)


def _config(spec: str, keys: dict) -> Config:
  overrides = {key: str(value) for key, value in keys.items()}
  return config_lib.freeze(cli.load_config(spec, overrides))


def _caught(label: str, work: Callable[[], dict]) -> dict:
  """Returns what `work` does, or its error, so that the next row is run."""
  try:
    return {"row": label} | work()
  except jax.errors.JaxRuntimeError as error:
    return {"row": label, "error": str(error).splitlines()[0][:300]}
