"""The same losses on every mesh: python -m gpt_jax.lab.verify --help.

One table of a small run's first losses on simulated devices in one process and
in several real processes, each row beside one device. A thin door: jax is
imported once the flags have been read.
"""

import os
import sys
import tempfile

from gpt_jax import cli, runtime
from gpt_jax import config as config_lib

STEPS = 10
TOLERANCE = 1e-5
DEVICES = 8

ROW = "{:8} {:30} {:34} {:>9} {:>9} {:>10} {}"
SMALL = {
  "data.source": f"text:{os.path.dirname(os.path.dirname(__file__))}/*.py",
  "data.split": "tail",
  "data.tokenizer": "bytes",
  "data.seq_len": "32",
  "data.packing": "documents",
  "model.num_layers": "2",
  "model.model_dim": "64",
  "model.num_heads": "8",
  "model.mlp_dim": "128",
  "model.max_len": "32",
  "model.scan_layers": "True",
  "optim.optimizer": "adamw",
  "optim.learning_rate": "3e-3",
  "optim.warmup_steps": "3",
  "train.num_steps": str(STEPS),
  "train.global_batch_size": "8",
  "train.log_every_steps": "1",
  "checkpoint.every_steps": "4",
  "eval.every_steps": "1000",
  "sample.every_steps": "0",
}
MODELS = {
  "gpt": {},
  "grouped": {"model.num_kv_heads": "4", "train.num_loss_chunks": "3"},
  "experts": {"model.num_experts": "8", "model.mlp": "swiglu"},
}
# model, mesh, what else
MESHES = [
  ("gpt", {"data": 8}, {}),
  ("gpt", {"fsdp": 8}, {}),
  ("gpt", {"tensor": 8}, {}),
  ("gpt", {"seq": 8}, {}),
  ("gpt", {"data": 2}, {}),
  ("gpt", {"fsdp": 4}, {}),
  ("gpt", {"data": 2, "fsdp": 4}, {}),
  ("gpt", {"fsdp": 4, "tensor": 2}, {}),
  ("gpt", {"data": 2, "fsdp": 2, "tensor": 2}, {}),
  ("gpt", {"fsdp": 4, "seq": 2}, {}),
  ("gpt", {"data": 2, "seq": 2, "tensor": 2}, {}),
  ("gpt", {"fsdp": 8}, {"model.remat": "save:qkv+attn"}),
  ("gpt", {"data": 4, "fsdp": 2}, {"mesh.rules": "replicated"}),
  ("grouped", {"fsdp": 2, "tensor": 4}, {}),
  ("grouped", {"fsdp": 2, "seq": 2, "tensor": 2}, {}),
  ("experts", {"fsdp": 2, "expert": 4}, {}),
  ("experts", {"expert": 2, "seq": 2, "tensor": 2}, {}),
]


def main(argv: list[str]) -> int:
  parser = cli.build_parser(
    "lab.verify",
    f"The losses of {STEPS} steps on many meshes, beside one device's.",
    needs_config=False,
  )
  args, overrides = cli.parse(parser, argv)
  build_config("", **overrides)
  runtime.start(args.devices or DEVICES)
  with tempfile.TemporaryDirectory() as folder:
    return verify(folder, overrides)


def build_config(folder: str, **values: str) -> config_lib.Config:
  """Returns the small run's config with its data kept in `folder`."""
  config = cli.load_config(
    "configs/base.py", SMALL | {"data.dir": folder} | values
  )
  return config_lib.freeze(config)


def verify(folder: str, overrides: dict[str, str]) -> int:
  """Prints the table; returns 1 where a row is not as one device's, else 0."""
  print(
    f"loss of step 1 and {STEPS}, and the largest relative difference of the "
    f"{STEPS} to one\ndevice's, which may be {TOLERANCE:.0e}"
  )
  print(ROW.format("model", "mesh", "", "first", "last", "difference", ""))
  references, num_wrong = {}, 0
  rows = [(model, {}, {}) for model in MODELS] + MESHES
  for model, mesh, others in rows:
    values = overrides | MODELS[model] | others | {"mesh.data": "1"}
    values |= {f"mesh.{axis}": str(size) for axis, size in mesh.items()}
    losses = losses_of(build_config(folder, **values))
    reference = references.setdefault(model, losses)
    difference = max(
      abs(a / b - 1) for a, b in zip(losses, reference, strict=True)
    )
    is_wrong = not difference <= TOLERANCE
    num_wrong += is_wrong
    print(
      ROW.format(
        model,
        " x ".join(f"{a} {n}" for a, n in mesh.items()) or "one device",
        ", ".join(f"{k.split('.')[1]} {v}" for k, v in others.items()),
        f"{losses[0]:.6f}",
        f"{losses[-1]:.6f}",
        f"{difference:.1e}",
        "WRONG" if is_wrong else "",
      ),
      flush=True,
    )
  print(f"{len(rows) - num_wrong} of {len(rows)} rows agree")
  return int(num_wrong > 0)


def losses_of(config: config_lib.Config) -> list[float]:
  """Returns the loss of each step on as many devices as the mesh asks for."""
  import math

  import jax

  from gpt_jax import loop, optim, preflight, sharding, state, step
  from gpt_jax.data import pipeline, store
  from gpt_jax.models import build_model

  prepared = store.prepare(config.data, lambda line: None)
  config = preflight.resolve_vocab(config, prepared)
  sizes = [getattr(config.mesh, axis) for axis in sharding.AXES]
  mesh = sharding.make_mesh(config.mesh, jax.devices()[: math.prod(sizes)])
  platform = mesh.devices.flat[0].platform
  model = build_model(config.model, config.mesh.rules, platform)
  tx = optim.build_optimizer(config.optim, model.abstract_params()[1])
  schedule = optim.build_schedule(config.optim, config.train.num_steps)
  abstract = state.abstract_state(model, tx, config, mesh)
  place = sharding.batch_sharding(mesh, config.mesh.rules)
  train_step, _, _ = loop.compile_step(
    step.make_train_step(model, tx, schedule, config),
    abstract,
    config,
    mesh,
    place,
  )
  size = config.train.global_batch_size
  rows = sharding.local_rows(place, (size, config.data.seq_len))
  batches = pipeline.make_train_iterator(
    prepared, config.data, config.seed, size, rows, 0
  )
  now, losses = state.init_state(model, tx, config, mesh), []
  with jax.set_mesh(mesh):
    for _ in range(STEPS):
      now, result = train_step(now, jax.device_put(next(batches), place))
      losses.append(float(result["loss"]))
  return losses


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
