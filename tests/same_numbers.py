"""Shows that a refactoring changed no number: this tree beside a commit.

  python tests/same_numbers.py COMMIT [--only=WORD]

Each of CASES is trained for 20 steps by the commit and by this tree, in
processes of their own, on one device and on fsdp 2 x tensor 2; every logged
loss and the checksum of every array of the last checkpoint must be equal bit
for bit. Then this tree opens what the commit left: it evaluates the commit's
run, and goes on with it from step 10 to the same end. Prints a row a case;
exits with 1 where anything differs. A case that is run with another seed is
the control: it must differ.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMALL = {
  "data.split": "tail",
  "data.seq_len": 64,
  "model.max_len": 64,
  "model.num_layers": 2,
  "model.model_dim": 64,
  "model.num_heads": 4,
  "model.mlp_dim": 128,
  "optim.warmup_steps": 5,
  "train.num_steps": 20,
  "train.global_batch_size": 8,
  "train.log_every_steps": 1,
  "checkpoint.every_steps": 10,
  "checkpoint.keep_last": 2,
  "eval.every_steps": 10,
  "eval.num_batches": 2,
  "sample.every_steps": 0,
}
DOCUMENTS = {"data.packing": "documents", "data.tokenizer": "bpe:512"}
# case: (config, what it changes of SMALL)
CASES = {
  "tiny": ("tiny.py", {}),
  "llama": ("llama.py:mini", {"data.tokenizer": "bpe:512"}),
  "scanned": ("llama.py:mini", {"model.scan_layers": True} | DOCUMENTS),
  "experts": ("moe.py:laptop", {"model.num_experts": 4} | DOCUMENTS),
  "dropout": (
    "tiny.py",
    {"model.dropout_rate": 0.1, "train.num_microbatches": 2},
  ),
  "documents": ("tiny.py", DOCUMENTS),
  "mup": (
    "mup.py:64",
    {"model.head_dim": 16, "model.base_dim": 32, "model.base_layers": 1},
  ),
  "bfloat16": ("tiny.py", {"model.compute_dtype": "bfloat16"}),
}
MESHES = {
  "1": (1, {}),
  "2x2": (4, {"mesh.data": 1, "mesh.fsdp": 2, "mesh.tensor": 2}),
}


def run(tree: pathlib.Path, verb: str, devices: int, words) -> str:
  """Runs a verb of a tree; returns stdout, or raises with what it said."""
  flags = f"--xla_force_host_platform_device_count={devices}"
  done = subprocess.run(
    [sys.executable, "-m", f"gpt_jax.{verb}", *words],
    cwd=tree,
    env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(tree)},
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise RuntimeError(f"{verb} in {tree}: {done.stdout}{done.stderr}")
  return done.stdout


def numbers(workdir: pathlib.Path) -> tuple[dict, str]:
  """Returns ({step: loss}, checksums of every leaf of the last checkpoint)."""
  rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  losses = {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}
  steps = [int(p.name) for p in (workdir / "checkpoints").iterdir()]
  (found,) = (workdir / "checkpoints" / str(max(steps))).rglob("meta/metadata")
  return losses, json.loads(found.read_text())["checksum"]


def compare(case: str, mesh: str, old: pathlib.Path, folder) -> list[str]:
  """Returns what differs, in words."""
  file, changes = CASES[case]
  devices, axes = MESHES[mesh]
  text = folder / "corpus.txt"
  flags = {"data.source": f"text:{text}", **SMALL, **changes, **axes}
  words = [f"--config=configs/{file}"]
  words += [f"--config.{key}={value}" for key, value in flags.items()]
  found = {}
  for name, tree, more in (
    ("old", old, ()),
    ("new", ROOT, ()),
    ("control", ROOT, ("--config.seed=1",)),
  ):
    workdir = folder / f"{case}-{mesh}-{name}"
    data = f"--config.data.dir={folder / f'data-{name}'}"
    run(tree, "train", devices, [*words, data, f"--workdir={workdir}", *more])
    found[name] = numbers(workdir)
  faults = []
  for place, what in enumerate(("losses", "checksums")):
    if found["old"][place] != found["new"][place]:
      faults.append(f"{what} differ")
    if found["old"][place] == found["control"][place]:
      faults.append(f"{what} of another seed agree: nothing is compared")
  if len(found["old"][0]) != 20:
    faults.append(f"{len(found['old'][0])} losses, not 20")
  # What the commit left is opened, and gone on with.
  workdir = folder / f"{case}-{mesh}-old"
  run(ROOT, "evaluate", devices, [f"--workdir={workdir}"])
  shutil.rmtree(workdir / "checkpoints" / "20")
  data = f"--config.data.dir={folder / 'data-old'}"
  run(ROOT, "train", devices, [*words, data, f"--workdir={workdir}"])
  if numbers(workdir) != found["old"]:
    faults.append("its run went on otherwise")
  return faults


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("commit")
  parser.add_argument("--only", default="", help="cases whose name holds this")
  args = parser.parse_args()
  num_faults = 0
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    old = folder / "tree"
    git = ["git", "-C", ROOT]
    subprocess.run(
      [*git, "worktree", "add", "-q", "--detach", old, args.commit], check=True
    )
    try:
      source = (old / "configs" / "LOG.md").read_text()
      (folder / "corpus.txt").write_text(source * 3)
      for case in CASES:
        for mesh in MESHES:
          if args.only not in f"{case} {mesh}":
            continue
          faults = compare(case, mesh, old, folder)
          num_faults += len(faults)
          said = "; ".join(faults) or "20 losses and all checksums are equal"
          print(f"{case:<10} {mesh:<4} {said}", flush=True)
    finally:
      subprocess.run([*git, "worktree", "remove", "--force", old], check=True)
  return int(num_faults > 0)


if __name__ == "__main__":
  sys.exit(main())
