"""The commands of the package, with a line each."""

import gpt_jax
from gpt_jax.config import InputError, nearest

# What `python -m gpt_jax` lists.
COMMANDS = {
  "train": "train a model, or go on with a run",
  "generate": "continue prompts with a trained model",
  "evaluate": "loss, perplexity and bits per byte on a text",
  "data": "prepare a config's text, which training does by itself too",
  "lab.bench": "time one subject; predicted beside measured",
  "lab.bench.growth": "time and memory of a step against a model's sizes",
  "lab.plan": "memory and speed of a run on given chips, before it runs",
  "lab.plan.attention": "attention kernels compared: exact, fast, small",
  "lab.plan.published": "runs whose speed is published, beside their plans",
  "lab.plan.slices": "memory and speed of one config on several TPU slices",
  "lab.scaling": "scaling laws of runs, and forecasts by them",
  "lab.sweep": "plan, run, list and report the cells of a sweep",
  "lab.sweep.compare": "two runs, or seeds of two: is one better?",
  "lab.transfer": "the best learning rate against width or depth",
  "lab.transfer.coordinates": "growth of activations with width or depth",
  "lab.verify": "losses on many meshes beside one device's; takes minutes",
  "lab.verify.check": "can a run start elsewhere? no jax, no download",
}


def show_commands(words: list[str], among: str = "") -> int:
  """Prints the commands whose name begins so, with a line each."""
  if words and words[0] == "--version":
    print(f"gpt_jax {gpt_jax.__version__}")
    return 0
  if words and words[0] not in ("--help", "-h", "lab"):
    raise InputError(
      f"unknown command {words[0]}; {nearest(words[0], COMMANDS)}"
    )
  among = among or "lab" * ("lab" in words)
  print(gpt_jax.__doc__)
  for name, line in COMMANDS.items():
    if name.startswith(among):
      print(f"  python -m gpt_jax.{name:<24}  {line}")
  print("\nEach tells more with --help.")
  return 0
