"""The commands of the package, each with a line about it."""

import gpt_jax
from gpt_jax.config import InputError, nearest

# What `python -m gpt_jax` lists.
COMMANDS = {
  "train": "train a model, or resume a run",
  "generate": "continue prompts with a trained model",
  "evaluate": "loss, perplexity and bits per byte on a text",
  "embed": "vectors of texts, for search and comparison",
  "serve": "answer over HTTP, with OpenAI's API",
  "data": "prepare a config's text, which training also does itself",
  "deploy.compress": "smaller models of a run: int8, int4, zeros; a table",
  "deploy.hf": "models of the Hugging Face hub's layout, in and out",
  "deploy.logits": "store a teacher's largest logits for its student",
  "deploy.merge": "make one model of adapters and their base",
  "lab.bench": "time one subject; measured beside predicted",
  "lab.bench.growth": "time and memory of a step against a model's sizes",
  "lab.canaries": "plant secrets in a text, and see which a run repeats",
  "lab.card": "the first minutes on a GPU: is it right, and how fast?",
  "lab.interp": "a look inside: a page of what a run does with a text",
  "lab.interp.induction": "which head copies, and what is lost without it",
  "lab.plan": "memory and speed of a run on given chips, before it runs",
  "lab.plan.attention": "attention kernels compared: exact, fast, small",
  "lab.plan.published": "runs of published speed, beside their plans",
  "lab.plan.slices": "memory and speed of one config on several TPU slices",
  "lab.scaling": "fit scaling laws to runs, and forecast from them",
  "lab.sweep": "plan, run, list and report the cells of a sweep",
  "lab.sweep.compare": "two runs, or seeds of two: is one better?",
  "lab.sweep.mixture": "the best weights of a mixture, by a sweep over them",
  "lab.tasks": "tasks of lm-evaluation-harness on a run",
  "lab.transfer": "the best learning rate against width or depth",
  "lab.transfer.coordinates": "growth of activations with width or depth",
  "lab.verify": "compare losses on many meshes with one device's; minutes",
  "lab.verify.check": "can a run start elsewhere? no jax, no download",
}


def show_commands(words: list[str], among: str = "") -> int:
  """Prints the commands whose names begin with `among`, one per line."""
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
  print("\nEach has --help.")
  return 0
