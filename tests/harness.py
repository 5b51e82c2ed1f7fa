"""Functions that tests of several folders call; fixtures are in conftest.py."""

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
# Most of the tests' time is compiling, a third of that LLVM's optimisation.
QUICK = "--xla_backend_optimization_level=0"


def user_env() -> dict[str, str]:
  """Returns the environment of a command that has one device."""
  return os.environ | {"XLA_FLAGS": QUICK}


def init_params(model, seed: int = 0):
  """Returns the first parameters, as one program makes them.

  Op by op each shape would be some twenty small programs, to be compiled.
  """
  import jax
  import numpy as np

  from gpt_jax.training import state

  return jax.jit(state.init_params, static_argnums=0)(model, np.uint32(seed))


def guard_transfers(train_step):
  """Returns the step, which then fails if it moves arrays behind one's back.

  What it is given is put on the devices first, as the loop does.
  """
  import jax

  def call(now, batch):
    now, batch = jax.device_put((now, batch))
    with jax.transfer_guard("disallow"):
      return train_step(now, batch)

  return call


def logged(workdir, name: str = "train/loss") -> dict[int, float]:
  """Returns {step: value} of one metric of a run."""
  from gpt_jax.runs import metrics

  rows = metrics.read_rows(str(workdir / "metrics.jsonl"))
  return {row["step"]: row[name] for row in rows if name in row}


def team_flags(num_steps: int) -> list[str]:
  """Returns flags by which small_flags' run is one of two processes' shards."""
  more = {
    "model.num_layers": 1,
    "train.num_steps": num_steps,
    "checkpoint.every_steps": 8,
    "checkpoint.keep_last": 1,
    "mesh.data": 1,
    "mesh.fsdp": 2,
  }
  return [f"--config.{key}={value}" for key, value in more.items()]


def move_to(root: str, flags: list[str], folder: pathlib.Path) -> list[str]:
  """Puts the text of small_flags at an address; returns the flags with it."""
  from gpt_jax.machine import places

  places.put(str(folder / "corpus.txt"), f"{root}/text/corpus.txt")
  moved = {
    f"text:{folder}/corpus.txt": f"text:{root}/text/*.txt",
    f"{folder / 'prepared'}": f"{root}/sets",
  }
  pairs = (flag.partition("=") for flag in flags)
  return [f"{key}={moved.get(value, value)}" for key, _, value in pairs]
