"""What each part of lab.card runs, in a process of its own."""

import functools
import gc
import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

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
_8B = "configs/bench.py:llama-8b"
_BERT, _T5 = "configs/bert.py:base", "configs/t5.py:base"


class Trial(NamedTuple):
  """A train step to time.

  Attributes:
    spec: its config file and variant, as --config takes them.
    keys: {config key: value} that override the config.
    options: XLA options, added to those of the platform.
    gib: memory in GiB that the GPU must have; smaller GPUs skip the trial.
  """

  spec: str
  keys: dict = {}
  options: dict | None = None
  gib: int = 0


_ROWS = {"train.global_batch_size": 64}
TRIALS = {
  "gpt2": {
    "64 rows": Trial(_GPT2),
    "64 rows, documents": Trial(_GPT2, {"data.packing": "documents"}),
  },
  "llama-1b": {"16 rows": Trial(_1B)},
  "llama-3b": {
    "8 rows, moments in bfloat16": Trial(_3B),
  },
  "llama-8b": {"4 rows, moments in bfloat16": Trial(_8B, gib=120)},
  "families": {
    "BERT base, 64 rows of 512": Trial(
      _BERT,
      # cuDNN attention does not support dropout here.
      _ROWS | {"model.scan_layers": False, "model.dropout_rate": 0.0},
    ),
    "T5 base, 64 rows of 512 and 114": Trial(_T5, _ROWS),
  },
  "flags": {
    "as it is": Trial(_GPT2),
    "Triton products": Trial(
      _GPT2, options={"xla_gpu_enable_triton_gemm": True}
    ),
    "excess precision": Trial(
      _GPT2, options={"xla_allow_excess_precision": True}
    ),
    "products joined": Trial(
      _GPT2, options={"xla_gpu_dot_merger_threshold_mb": "64"}
    ),
    "no CUDA graphs": Trial(
      _GPT2, options={"xla_gpu_enable_command_buffer": ""}
    ),
  },
}
# (weight format, number of sequences) of each row of the decode part.
DECODED = [(w, n) for n in (1, 8) for w in config_lib.WEIGHTS]
_DECODE = {
  "model.remat": "none",
  "model.scan_layers": False,
  "model.param_dtype": "bfloat16",
}
# Name -> (config, overrides) of steps compared with the CPU's, at toy size.
CHECKED = {
  "step, GPT": (_GPT2, {}),
  "step, Llama": (_1B, {"model.scan_layers": True, "model.remat": "full"}),
  "step, documents": (_GPT2, {"data.packing": "documents"}),
  "step, BERT": (_BERT, {"model.dropout_rate": 0.0}),
  "step, T5": (_T5, {}),
}


def run(part: str, is_toy: bool, target: str | None, out: str | None) -> int:
  """Prints each row of a part as a line of JSON; returns the exit code."""
  devices = _find_devices(target)
  path = None if out is None else os.path.join(out, part)
  setting = Setting(devices, target is not None, is_toy, path)
  about = {"part": part, "device": devices[0].device_kind}
  for row in _rows(part, setting):
    print(json.dumps(about | row), flush=True)
    gc.collect()  # frees programs and arrays before the next row
  return 0


def _find_devices(target: str | None) -> list:
  if target is None:
    return jax.devices()[:1]
  from gpt_jax.lab.plan import gpus

  return gpus.find_devices(chips.parse_topology(f"{target}:1", 1))


def _rows(part: str, setting: Setting) -> Iterator[dict]:
  toy = TOY if setting.is_toy else {}
  if part in TRIALS:
    # The GPU compiler's options have no effect on a CPU: run only the first.
    most = 1 if part == "flags" and setting.is_toy else None
    chip = chips.find_chip(setting.devices[0].device_kind)
    memory = chip.hbm_bytes if chip else 0
    for label, trial in itertools.islice(TRIALS[part].items(), most):
      if not setting.is_toy and memory < trial.gib * steps.GIB:
        continue
      config = _config(trial.spec, trial.keys | toy)
      work = functools.partial(
        steps.time_step, config, trial.options, setting, part != "flags"
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
  """Returns the row of `work`, or its error, so that the next row can run."""
  try:
    return {"row": label} | work()
  except jax.errors.JaxRuntimeError as error:
    return {"row": label, "error": str(error).splitlines()[0][:300]}
