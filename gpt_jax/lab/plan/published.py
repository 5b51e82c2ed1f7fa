"""Predicted speed against published: gpt_jax.lab.plan.published --help.

Compiles the runs of configs/published.py and published_gpu.py for their slices
and GPUs and compares each prediction, an upper bound, with the speed that its
source measured. Both are in TFLOP/s per chip by the source's own FLOP formula,
as these formulas differ by up to a seventh. From a notebook:
compare("v5e-16b").
"""

import dataclasses
import json
import os
import statistics
import sys

from gpt_jax import cli
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.machine import chips, runtime

# By platform.
CONFIGS = {"tpu": "configs/published.py", "gpu": "configs/published_gpu.py"}
_MAXTEXT = "https://github.com/AI-Hypercomputer/maxtext/blob/"
_RECIPES = "https://github.com/AI-Hypercomputer/tpu-recipes/blob/"
_GPU_RECIPES = "https://github.com/AI-Hypercomputer/gpu-recipes/blob/"


@dataclasses.dataclass(frozen=True)
class Row:
  """One published run.

  Attributes:
    topology: the slice or GPUs of the run.
    tflops: measured TFLOP/s per chip by `formula`, or None.
    tokens_per_second: measured per chip, or None.
    formula: "halved" or "full", see flops_per_token.
    source: URL of the page with the measured speed.
  """

  topology: str
  tflops: float | None
  tokens_per_second: float | None
  formula: str
  source: str


_V5E = _MAXTEXT + "76bd53b0/MaxText/configs/v5e/README.md"
_V5P = _MAXTEXT + "76bd53b0/MaxText/configs/v5p/README.md"
_MPT = (
  "https://github.com/mosaicml/llm-foundry/blob/061f2c7c/"
  "scripts/train/benchmarking/README.md"
)
_LLMC = "https://github.com/karpathy/llm.c"


def _gpu(topology: str, tokens_per_second: float, source: str) -> Row:
  return Row(topology, None, tokens_per_second, "full", source)


ROWS = {
  "v5e-16b": Row("v5e:16x16", 120, None, "halved", _V5E),
  "v5e-32b": Row("v5e:16x16", 132, None, "halved", _V5E),
  "v5e-64b": Row("v5e:16x16", 118, None, "halved", _V5E),
  "v5e-128b": Row("v5e:16x16", 110, None, "halved", _V5E),
  "v5p-32b": Row("v5p:4x4x4", 328, None, "halved", _V5P),
  "v5p-64b": Row("v5p:4x4x4", 323, None, "halved", _V5P),
  "v5p-128b": Row("v5p:4x8x8", 316, None, "halved", _V5P),
  "v5p-512b": Row("v5p:8x8x8", 294, None, "halved", _V5P),
  "v5p-1024b": Row("v5p:8x16x16", 297, None, "halved", _V5P),
  "v5p-llama2-70b": Row(
    "v5p:4x8x8",
    None,
    692,
    "halved",
    _MAXTEXT + "20a91e12/docs/reference/models/tiering.md",
  ),
  "v6e-llama3-8b": Row(
    "v6e:16x16",
    None,
    7207.3,
    "full",
    _RECIPES + "a9e09290/training/trillium/Llama3.1-8B-MaxText/v6e-256",
  ),
  "v6e-llama3-70b": Row(
    "v6e:16x16",
    None,
    960.2,
    "full",
    _RECIPES + "3596002a/training/trillium/Llama3.1-70B-MaxText/v6e-256",
  ),
  "h100-gpt2-124m": _gpu("h100:8", 468_000, _LLMC),
  "h100-gpt2-1558m": _gpu("h100:8", 46_800, _LLMC + "/discussions/677"),
  "h100-mpt-1b": _gpu("h100:8", 45_455, _MPT),
  "h100-mpt-3b": _gpu("h100:8", 27_046, _MPT),
  "h100-mpt-7b": _gpu("h100:8", 10_643, _MPT),
  "h100-mpt-13b": _gpu("h100:8", 4_717, _MPT),
  "h100-mpt-30b": _gpu("h100:8x2", 2_263, _MPT),
  "h100-llama2-7b": _gpu(
    "h100:8x16",
    10_923,
    _GPU_RECIPES + "d57d2223/training/a3mega/llama-2-7b/"
    "maxtext-pretraining-gke/README.md",
  ),
  "h200-llama3-8b": _gpu(
    "h200:1",
    10_471,
    "https://github.com/KempnerInstitute/KempnerForge/blob/9f3f03a0/"
    "benchmarks/mfu_scaling/mfu_scaling_2026-04-05.md",
  ),
  "h200-llama3-70b": _gpu(
    "h200:8x32",
    1_056,
    _GPU_RECIPES + "0355c388/training/a3ultra/llama3-1-70b/"
    "maxtext-pretraining-gke/README.md",
  ),
}


def flops_per_token(model: config_lib.ModelConfig, seq_len: int, formula: str):
  """Returns training FLOPs per token by a source's formula.

  halved: 6 N with the input embedding, and the half of attention that a causal
  mask leaves (MaxText until May 2024). full: 6 N without the input embedding,
  and all of attention (MaxText until July 2025; also our ledger).
  """
  from gpt_jax import flops

  full = flops.train_flops_per_token(model, seq_len)
  if formula == "full":
    return full
  idle = 6 * config_lib.vocab_size(model) * model.model_dim
  return full + idle - flops.score_flops_per_token(model, seq_len) // 2


def main(argv: list[str]) -> int:
  parser = cli.build_parser(
    "lab.plan.published",
    "Plans runs whose speed is published; compares predicted with measured.",
    needs_config=False,
  )
  parser.add_argument(
    "--row",
    action="append",
    metavar="NAME",
    help=f"only this run; may be repeated: {', '.join(ROWS)}",
  )
  parser.add_argument(
    "--out", metavar="DIR", help="folder to write published.json into"
  )
  args, overrides = cli.parse(parser, argv)
  for name in args.row or []:
    if name not in ROWS:
      raise InputError(f"no row {name!r}; there are {', '.join(ROWS)}")
  runtime.start(args.devices)
  for platform in CONFIGS:
    runtime.start_compiler(platform)

  print(
    "predicted from the compiled step, an upper bound; measured by the source\n"
    "MFU by the source's formula\n"
  )
  print(_LINE.format("run", "slice", "MFU", "MFU", "", "bound", ""))
  print(_LINE.format("", "", "pred.", "meas.", "ratio", "by", "remat"))
  found = []
  for name in args.row or ROWS:
    try:
      found.append(compare(name, overrides))
    except InputError as error:  # a compiler is not installed here
      if args.row or overrides:
        raise
      print(f"{name:15} not compiled: {error}", flush=True)
      continue
    print(_text(found[-1]), flush=True)
  ratios = [row["ratio"] for row in found if row["ratio"]]
  if ratios:
    print(
      f"\n{len(ratios)} runs: median ratio {statistics.median(ratios):.2f}, "
      f"least {min(ratios):.2f}, largest {max(ratios):.2f}"
    )
  if args.out:
    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.out, "published.json"), "w") as file:
      json.dump(found, file, indent=1)
  return int(any(ratio < 1 for ratio in ratios))


_LINE = "{:15} {:12} {:>6} {:>6} {:>6}  {:8} {}"


def _text(row: dict) -> str:
  if row["ratio"] is None:
    return f"{row['run']:15} {row['slice']:12} {row['refusal']}"
  percent = lambda part: f"{100 * part:.1f}"
  return _LINE.format(
    row["run"],
    row["slice"],
    percent(row["mfu_predicted"]),
    percent(row["mfu_measured"]),
    f"{row['ratio']:.2f}",
    row["binding"],
    row["remat"],
  )


def compare(name: str, overrides: dict[str, str] | None = None) -> dict:
  """Returns a row of published.json: predicted and measured.

  Args:
    name: a key of ROWS.
    overrides: {config key: value}.
  """
  from gpt_jax.lab.plan import gpus, planner

  row = ROWS[name]
  topology = chips.parse_topology(row.topology, 1)
  path = CONFIGS[topology.platform]
  config = config_lib.freeze(cli.load_config(f"{path}:{name}", overrides or {}))
  if topology.platform == "gpu" and not gpus.has_compiler():
    gpus.require_compiler()
  plan = planner.make(config, topology)
  found = {
    "run": name,
    "slice": row.topology,
    "remat": config.model.remat,
    "formula": row.formula,
    "source": row.source,
    "memory": plan["memory"],
    "compile_seconds": plan["compile_seconds"],
    "ratio": None,
  }
  if not plan["memory"]["fits"]:
    needed, there = (plan["memory"][k] / 2**30 for k in ("peak", "available"))
    refusal = f"does not fit: {needed:.1f} of {there:.1f} GiB"
    return found | {"refusal": refusal}
  per_token = flops_per_token(config.model, config.data.seq_len, row.formula)
  speed = plan["roofline"]["tokens_per_second_per_chip"]
  measured = row.tokens_per_second or (row.tflops or 0.0) * 1e12 / per_token
  peak = topology.the_chip().tflops * 1e12
  return found | {
    "roofline": plan["roofline"],
    "tokens_per_second_predicted": speed,
    "tokens_per_second_measured": measured,
    "mfu_predicted": speed * per_token / peak,
    "mfu_measured": measured * per_token / peak,
    "ratio": speed / measured,
    "binding": plan["roofline"]["binding"],
  }


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
