"""A small run of everything that state can hold, and its undamaged results."""

import dataclasses
import json
import pathlib
import re
import shutil

from gpt_jax.runs import metrics

STEPS, HALF = 20, 10


def flags_of(folder: pathlib.Path, seed: int = 0, **more) -> list[str]:
  """Returns flags of a run with dropout, an average and packed documents."""
  text = folder / f"text-{seed}.jsonl"
  if not text.exists():
    words = lambda i: " ".join(f"w{(i * j + seed) % 97}" for j in range(200))
    text.write_text(
      "".join(json.dumps({"text": words(i)}) + "\n" for i in range(60))
    )
  values = {
    "seed": seed,
    "data.source": f"jsonl:{text}",
    "data.tokenizer": "bpe:300",
    "data.dir": folder / "prepared",
    "data.seq_len": 32,
    "data.packing": "documents",
    "model.max_len": 32,
    "model.num_layers": 1,
    "model.model_dim": 32,
    "model.mlp_dim": 64,
    "model.dropout_rate": 0.1,
    "train.ema_decay": 0.9,
    "train.num_steps": STEPS,
    "train.global_batch_size": 4,
    "train.log_every_steps": 1,
    "optim.warmup_steps": 3,
    "checkpoint.every_steps": 5,
    "checkpoint.keep_last": 3,
    "eval.every_steps": 10,
    "sample.every_steps": 0,
  }
  return [f"--config.{k}={v}" for k, v in (values | more).items()]


@dataclasses.dataclass(frozen=True)
class Base:
  """A run that stopped halfway, a foreign one, and what undamaged copies give.

  Attributes:
    folder: holds run/ and prepared/.
    foreign: holds run/ and prepared/ of another seed and text, same shapes.
    flags: of the run, without --workdir.
    expected: of verb "train", "evaluate", "generate": what `outcome` returns.
  """

  folder: pathlib.Path
  foreign: pathlib.Path
  flags: list[str]
  expected: dict


def words_of(verb: str, folder: pathlib.Path, flags: list[str]) -> list[str]:
  """Returns the arguments of a verb for the run in folder/run."""
  words = [f"--workdir={folder}/run"]
  prepared = f"--config.data.dir={folder}/prepared"
  if verb == "train":
    return [*flags, prepared, *words]
  if verb == "evaluate":
    return [prepared, *words]
  return [*words, "--prompt=w1 w2", "--num_tokens=8"]


def result_of(verb: str, folder: pathlib.Path, outcome) -> object:
  """Returns what must be the same: checksums and rows, or the output."""
  if verb != "train":
    return outcome.out
  return checksums(folder / "run"), rows_of(folder / "run")


def checksums(run: pathlib.Path) -> str:
  """Returns the checksums of all leaves of the last step."""
  path = run / "checkpoints" / str(STEPS) / "meta" / "metadata"
  return json.loads(path.read_text())["checksum"]


def rows_of(run: pathlib.Path) -> list[dict]:
  """Returns what was logged, without what a clock says."""
  is_timed = re.compile("time/|perf/|goodput/").match
  return [
    {k: v for k, v in row.items() if not is_timed(k)}
    for row in metrics.read_rows(str(run / "metrics.jsonl"))
  ]


def make_base(nursery, root: pathlib.Path) -> Base:
  """Trains both runs halfway, and copies of the own one to their ends."""
  found = {}
  for name, seed in (("own", 0), ("foreign", 1)):
    folder = root / name
    folder.mkdir()
    found[name] = folder, flags_of(folder, seed)
    words = words_of("train", *found[name])
    outcome = nursery.run("train", *words, stop_at=HALF)
    assert outcome.code == 75, outcome
  own, flags = found["own"]
  expected = {}
  for verb in ("train", "evaluate", "generate"):
    copy = copy_of(own, root / f"whole-{verb}")
    outcome = nursery.run(verb, *words_of(verb, copy, flags))
    assert outcome.code == 0, outcome
    expected[verb] = result_of(verb, copy, outcome)
  return Base(own, found["foreign"][0], flags, expected)


def copy_of(folder: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
  """Copies a run and its prepared text, times of change included."""
  shutil.copytree(folder, to, symlinks=True)
  return to
