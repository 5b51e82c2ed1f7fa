"""Whether a run can start elsewhere is told here, before anything costs."""

import pathlib
import shlex
import subprocess

import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax.data import sources
from gpt_jax.data.sources.text import TextSource
from gpt_jax.lab.verify import check as check_lib

ROOT = pathlib.Path(__file__).parents[2]
GPT2 = ["--config=configs/gpt2.py:124m", "--workdir=/runs/x"]


def check(call_verb, *words):
  return call_verb("lab.verify.check", *words)


@pytest.mark.parametrize(
  "words, sentence",
  [
    (["--config=configs/absent.py"], "does not exist"),
    (["--config=configs/llama.py:8b"], "tokenizer.json"),
    (["--config.data.source=text:absent/*.txt"], "absent/*.txt"),
    (["--config.data.source=nonsense"], "is not a source of text"),
    (["--config.data.tokenizer=word"], "it must be one of"),
    (["--config.train.num_step=5"], "unknown config key"),
    (["--config=/tmp/elsewhere.py"], "does not exist"),
  ],
)
def test_what_cannot_start_there_is_one_sentence(call_verb, words, sentence):
  result = check(call_verb, *words, "--workdir=/runs/x")
  assert result.returncode == 2 and not result.stdout
  assert sentence in result.stderr and result.stderr.count("\n") == 1


def test_only_what_is_committed_goes_along(call_verb, tmp_path, monkeypatch):
  config = tmp_path / "own.py"
  config.write_text((ROOT / "configs" / "tiny.py").read_text())
  result = check(call_verb, f"--config={config}", "--workdir=/runs/x")
  assert result.returncode == 2 and "outside of the repo" in result.stderr
  # Of the repo, and not committed.
  monkeypatch.setattr(check_lib, "_root", lambda: str(tmp_path))
  subprocess.run(["git", "init", "-q", tmp_path], check=True)
  result = check(call_verb, f"--config={config}")
  assert result.returncode == 2 and "is not committed" in result.stderr
  subprocess.run(["git", "-C", tmp_path, "add", "own.py"], check=True)
  assert check(call_verb, f"--config={config}").returncode == 0
  text = tmp_path / "a.txt"
  text.write_text("words")
  # An absolute path is the machines' and is named.
  words = [f"--config={config}", f"--config.data.source=text:{text}"]
  result = check(call_verb, *words)
  assert result.returncode == 0 and "not checked: text:" in result.stdout


def test_a_new_kind_of_source_is_checked_by_its_files(monkeypatch):
  monkeypatch.setitem(sources.SOURCES, "new", (TextSource, "GLOB"))
  monkeypatch.chdir(ROOT)
  config = base.get_config()

  def lines(source: str) -> list[str]:
    config.data.source = source
    return check_lib.check_source(config_lib.freeze(config))

  (repeated,) = lines("new:README.md")
  assert "is seen about" in repeated
  assert "is read on the machines" in lines("new:/data/a.txt")[0]
  assert "is fetched on the machines" in lines("hf:name")[0]  # the control


def test_text_that_is_seen_too_often_is_told(call_verb):
  result = check(call_verb, *GPT2)
  assert "is seen about" in result.stdout and result.returncode == 0
  few = ["--config.train.num_steps=9", "--config.optim.warmup_steps=2"]
  result = check(call_verb, "--config=configs/tiny.py", *few)
  assert result.stdout == "" and result.returncode == 0


def test_the_readme_s_cluster_lines_pass(call_verb):
  """Those of launch/README.md and launch/RUNBOOK.md, as they stand."""
  found = 0
  for name in ("README.md", "RUNBOOK.md"):
    for line in (ROOT / "launch" / name).read_text().splitlines():
      if " -- --config=" not in line or "launch/" not in line:
        continue
      words = shlex.split(line)
      result = check(call_verb, *words[words.index("--") + 1 :])
      assert result.returncode == 0, (line, result.stderr)
      assert "warning" not in result.stdout, (line, result.stdout)
      found += 1
  assert found >= 4
