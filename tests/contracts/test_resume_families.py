"""Each family and objective resumes bit for bit: real runs, real checkpoints.

A run that was stopped after its third step and went on is compared with one
that was not stopped: losses, hashes of batches, and every leaf of its state.
"""

import pytest
from test_resume import final_leaves, logged

from gpt_jax import metric_names

pytestmark = pytest.mark.wide

SMALL = {
  "optim.warmup_steps": 2,
  "train.log_every_steps": 1,
  "model.model_dim": 32,
  "model.num_heads": 2,
  "model.mlp_dim": 48,
  "model.max_len": 32,
  "data.seq_len": 32,
  "train.num_steps": 6,
  "train.global_batch_size": 4,
  "checkpoint.every_steps": 100,
  "eval.every_steps": 100,
  "sample.every_steps": 0,
}
LETTERS = {"data.tokenizer": "bytes", "model.num_layers": 2}
# File of configs/, and what else a row changes.
ROWS = {
  "prefix": ("tiny.py", LETTERS | {"data.objective": "prefix_lm"}),
  "middle": ("tiny.py", LETTERS | {"data.objective": "fill_in_the_middle"}),
  "future": ("tiny.py", LETTERS | {"model.num_future_tokens": 3}),
  "dropout": ("tiny.py", LETTERS | {"model.dropout_rate": 0.2}),
  "local": ("local_global.py", LETTERS | {"model.num_layers": 6}),
  "gemma3": ("gemma3.py:laptop", LETTERS | {"model.num_layers": 6}),
  "latent": ("mla.py:laptop", LETTERS),
  "experts": ("moe.py:laptop", LETTERS),
  "biases": ("moe.py:mini-biases", LETTERS | {"model.num_layers": 3}),
  "bert": ("bert.py:laptop", LETTERS | {"model.dropout_rate": 0.1}),
  "modernbert": ("modernbert.py:laptop", LETTERS | {"model.num_layers": 3}),
  "t5": ("t5.py:laptop", LETTERS),
  "ul2": ("t5.py:laptop", LETTERS | {"data.objective": "ul2"}),
  "attention": ("attention.py:laptop", {"model.dropout_rate": 0.1}),
}


# The control: a restart that remembers the moments of another run.
FORGETS = """
import jax
from gpt_jax.runs import checkpoint
restore = checkpoint.Checkpointer.restore
def forget(self, *words, **more):
  state, rest = restore(self, *words, **more)
  moments = jax.tree.map(lambda x: x * 2, state.opt_state)
  return state.replace(opt_state=moments), rest
checkpoint.Checkpointer.restore = forget
"""


def flags_of(row: str, folder) -> list[str]:
  path, changes = ROWS[row]
  text = folder / "corpus.txt"
  text.write_text("".join(f"{n} is {n * n}, and so on.\n" for n in range(900)))
  values = SMALL | {"data.dir": folder / "sets"} | changes
  if path != "attention.py:laptop":
    values["data.source"] = f"text:{text}"
  flags = [f"--config.{key}={value}" for key, value in values.items()]
  return [f"--config=configs/{path}", *flags]


@pytest.mark.parametrize("row", ROWS)
def test_a_stopped_run_goes_on_bit_for_bit(fork_verb, tmp_path, row):
  straight, broken = tmp_path / "straight", tmp_path / "broken"
  flags = flags_of(row, tmp_path)
  train = lambda at, code=0, **settings: fork_verb(
    "gpt_jax.train", *flags, f"--workdir={at}", check=code, **settings
  )
  train(straight)
  train(broken, code=75, stop_at=3)
  assert [step for step, _ in logged(broken)] == [1, 2, 3]
  assert "going on from step 3" in train(broken).stdout
  assert [step for step, _ in logged(broken)] == [1, 2, 3, 4, 5, 6]
  for figure in (metric_names.LOSS, metric_names.BATCH_HASH):
    assert logged(broken, figure) == logged(straight, figure)
  a, b = final_leaves(straight), final_leaves(broken)
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].tobytes() == b[name].tobytes(), name


def test_a_restart_that_forgets_is_seen(fork_verb, tmp_path):
  flags = [*flags_of("dropout", tmp_path), f"--workdir={tmp_path / 'run'}"]
  fork_verb("gpt_jax.train", *flags, check=75, stop_at=3)
  fork_verb("gpt_jax.train", *flags, check=0, before=FORGETS)
  forgot = logged(tmp_path / "run")
  flags[-1] = f"--workdir={tmp_path / 'straight'}"
  fork_verb("gpt_jax.train", *flags, check=0)
  assert forgot[:3] == logged(tmp_path / "straight")[:3]
  assert forgot != logged(tmp_path / "straight")
