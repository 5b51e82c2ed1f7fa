"""gpt_jax.load: a run in Python says what the commands say."""

import dataclasses
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from harness import ROOT

import gpt_jax
from gpt_jax import api, cli, exits, train
from gpt_jax.exits import InputError
from gpt_jax.inference import continuations
from gpt_jax.runs import metrics

TEXT = "It is a truth"


@pytest.fixture(scope="module")
def run(trained):
  return gpt_jax.load(str(trained))


def test_importing_the_package_imports_nothing_else():
  code = (
    "import sys; before = set(sys.modules); import gpt_jax\n"
    "print(sorted(set(sys.modules) - before))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout == "['gpt_jax']\n"


def test_losses_are_what_evaluation_scores(run):
  ids = run.encode(TEXT)
  assert run.decode(ids) == TEXT
  losses = run.losses(TEXT)
  logits = run.logits(ids)
  V = run.tokenizer.vocab_size
  assert losses.shape == (len(ids) - 1,) and logits.shape == (len(ids), V)
  ((whole, _),) = continuations.score_pairs(
    run.model, run.params, [(ids[:1], ids[1:])], 1, V
  )
  assert losses.sum() == pytest.approx(-whole, rel=1e-5)
  assert losses.sum() != pytest.approx(-whole + losses[0], rel=1e-5)


def test_what_follows_a_token_does_not_change_its_logits(run):
  ids = run.encode(TEXT)
  np.testing.assert_allclose(
    run.logits(ids[:5]), run.logits(ids)[:5], atol=1e-5
  )


def test_activations_add_up_to_the_residual_stream(run):
  found = run.activations(TEXT)
  L, T, D = found["attn"].shape
  c = run.config.model
  assert (L, T, D) == (c.num_layers, len(run.encode(TEXT)), c.model_dim)
  total = found["embed"] + (found["attn"] + found["mlp"]).sum(0)
  np.testing.assert_allclose(total, found["residual"], atol=1e-4)
  assert np.abs(total - found["mlp"][0] - found["residual"]).max() > 1e-3


@pytest.mark.wide
def test_a_pass_is_edited_where_it_is_asked(run):
  plain = run.logits(TEXT)
  seen = {}

  def see(name, change=lambda y: y):
    def edit(y):
      seen[name] = y
      return change(y)

    return {name: edit}

  np.testing.assert_allclose(
    run.logits(TEXT, see("blocks_0/attn")), plain, atol=1e-5
  )
  found = run.activations(TEXT)
  np.testing.assert_allclose(seen["blocks_0/attn"], found["attn"][0], atol=1e-5)
  # One token's output is changed: what follows it sees that, what precedes not.
  moved = run.logits(TEXT, see("blocks_0/mlp", lambda y: y.at[5].add(1)))
  away = np.abs(moved - plain).max(1)
  assert away[:5].max() < 1e-5 and away[5:].min() > 1e-3
  # The other text from that layer on.
  other = "Or a falsity"[: len(TEXT)].ljust(len(TEXT))
  run.logits(other, see("blocks_1"))
  patched = run.logits(TEXT, {"blocks_1": lambda x: seen["blocks_1"]})
  np.testing.assert_allclose(patched, run.logits(other), atol=1e-5)
  assert np.abs(patched - plain).max() > 1e-2


def test_generation_is_that_of_the_command(run, trained, call_verb):
  words = dict(num_tokens=12, seed=3, temperature=0.8, top_k=20)
  flags = [f"--{name}={value}" for name, value in words.items()]
  done = call_verb(
    "generate", f"--workdir={trained}", f"--prompt={TEXT}", *flags
  )
  assert done.returncode == 0, done.stderr
  said = run.generate(TEXT, **words)
  assert TEXT + said in done.stdout and said
  assert run.generate([TEXT, "A"], **words)[0] == said
  assert run.generate([]) == []


def test_embeddings_are_those_of_the_command(
  run, trained, call_verb, tmp_path, monkeypatch
):
  texts = [TEXT, "and so on, at some length"]
  lines, out = tmp_path / "lines.txt", tmp_path / "out.npy"
  lines.write_text("\n".join(texts) + "\n")
  done = call_verb(
    "embed", f"--workdir={trained}", f"--texts={lines}", f"--out={out}"
  )
  assert done.returncode == 0, done.stderr
  vectors = run.embed(texts)
  np.testing.assert_allclose(vectors, np.load(out), atol=1e-6)
  np.testing.assert_allclose(run.embed(texts[0]), vectors[0], atol=1e-6)
  # A run of bytes has a separator before a text, which ids are given with.
  ids = [run.tokenizer.separator_id, *run.encode(texts[1])]
  np.testing.assert_allclose(run.embed([texts[0], ids]), vectors, atol=1e-6)
  with pytest.raises(InputError, match="text 2 has more tokens than the"):
    run.embed(["a", "a" * run.config.data.seq_len])
  for empty in ("", ["a", ""]):
    with pytest.raises(InputError, match="text [12] is empty"):
      run.embed(empty)
  for size in (0, -1, 2.0):
    with pytest.raises(InputError, match=f"batch_size is {size}; it must be"):
      run.embed("a", batch_size=size)
  short = dataclasses.replace(run.config.data, seq_len=4)
  short = dataclasses.replace(run.config, data=short)
  monkeypatch.setattr(run, "config", short)
  with pytest.raises(InputError, match="text 1 has more tokens than the 4"):
    run.embed(["abcd"])


def test_rounded_weights_move_the_logits_a_little(run, trained):
  small = gpt_jax.load(str(trained), weights="int8")
  away = np.abs(small.logits(TEXT) - run.logits(TEXT)).max()
  assert 0 < away < 0.2


@pytest.fixture
def small(base):
  """The expression whose value is the config of `trained`."""
  pairs = (flag.removeprefix("--config.").split("=", 1) for flag in base[1][1:])
  path = str(ROOT / "configs" / "tiny.py")
  return f"cli.load_config({path!r}, {dict(pairs)!r})"


def test_a_run_trained_in_python_is_that_of_the_command(
  trained, small, tmp_path, capsys
):
  config = eval(small, {"cli": cli})
  folder = tmp_path / "new"
  run = gpt_jax.fit(config, str(folder), {"sample.every_steps": 10})
  assert "step 20/20" in capsys.readouterr().out
  loss_of = lambda path: [
    row["train/loss"]
    for row in metrics.read_rows(str(path / "metrics.jsonl"))
    if "train/loss" in row
  ]
  assert loss_of(folder) == loss_of(trained) and len(loss_of(folder)) == 20
  same = gpt_jax.load(str(trained))
  np.testing.assert_array_equal(run.logits(TEXT), same.logits(TEXT))


def test_what_cannot_be_trained_is_refused(small, tmp_path, monkeypatch):
  config, folder = eval(small, {"cli": cli}), str(tmp_path / "new")
  for given, changes, said in (
    ({"seed": 1}, None, "config is a dict; it must be FILE"),
    ("configs/none.py", None, "configs/none.py"),
    (config, {"train.num_step": 3}, "unknown config key train.num_step"),
    (config, {"train.num_steps": "many"}, "train.num_steps"),
    (config, {"train.num_steps": 0}, "train.num_steps is 0"),
  ):
    with pytest.raises(InputError, match=said):
      gpt_jax.fit(given, folder, changes)
  assert not pathlib.Path(folder).exists()
  for call in (gpt_jax.load, lambda place: gpt_jax.fit(config, place)):
    with pytest.raises(InputError, match="workdir is empty; it must be a path"):
      call("")
  monkeypatch.setattr(train, "run", lambda *words: exits.DIVERGED)
  with pytest.raises(RuntimeError, match="ended with code 3"):
    gpt_jax.fit(config, folder)


def lines_of_the_page() -> list[str]:
  page = (ROOT / "docs" / "python.md").read_text()
  return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_the_page_s_lines_run(trained, tmp_path, monkeypatch, capsys):
  blocks = lines_of_the_page()
  # The seventh trains, and the last two, of sweeps and laws, are in tests/lab.
  assert len(blocks) == 9
  (tmp_path / "runs").mkdir()
  (tmp_path / "runs" / "tiny").symlink_to(trained)
  monkeypatch.chdir(tmp_path)
  names: dict = {}
  for block in blocks[:6]:
    exec(block, names)
  assert len(names["share_L"]) == names["run"].config.model.num_layers
  assert "cosine" in capsys.readouterr().out


@pytest.mark.wide
def test_the_page_s_lines_train(small, tmp_path, monkeypatch):
  (tmp_path / "configs").mkdir()
  text = f"from gpt_jax import cli\n\nget_config = lambda: {small}\n"
  (tmp_path / "configs" / "tiny.py").write_text(text)
  monkeypatch.chdir(tmp_path)
  names = {"gpt_jax": gpt_jax}
  exec(lines_of_the_page()[6], names)
  run = names["run"]
  assert isinstance(run, api.Run)
  assert run.config.train.num_steps == 200
  assert run.config.optim.learning_rate == 2e-3


def test_what_cannot_be_read_is_refused(run, tmp_path):
  with pytest.raises(InputError, match="has 0 tokens; it must have 1 to"):
    run.logits([])
  with pytest.raises(InputError, match="an id is not from 0 to"):
    run.logits([10**6])
  for wrong in ([1.5], None, 3):
    with pytest.raises(InputError, match="must be a string, or a list of ids"):
      run.logits(wrong)
  with pytest.raises(InputError, match="weights is 'int3'; it must be one of"):
    gpt_jax.load(tmp_path, weights="int3")
  for step in ("3", 3.0, True):
    with pytest.raises(InputError, match="it must be a whole number, or None"):
      gpt_jax.load(tmp_path, step=step)
  with pytest.raises(InputError, match="is one token"):
    run.losses([1])
  with pytest.raises(
    InputError, match=r"'blocks_9/atn'; did you mean 'blocks_"
  ):
    run.logits(TEXT, {"blocks_9/atn": lambda y: y})
  with pytest.raises(InputError, match=r"must return an array of \(13, \d+\)"):
    run.logits(TEXT, {"embed": lambda y: y[1:]})
  with pytest.raises(InputError, match="temperature is -1"):
    run.generate(TEXT, temperature=-1)
  with pytest.raises(InputError):
    gpt_jax.load(str(tmp_path / "nowhere"))
  with pytest.raises(InputError, match="nowhere does not exist"):
    gpt_jax.load(tmp_path / "nowhere")
