"""Fixtures of the sweeps."""

import sys

import pytest
from harness import ROOT
from sweeps import CONFIG

from gpt_jax.lab.sweep import pool, worker


@pytest.fixture
def write(tmp_path):
  """Writes a config file with a sweep of these lines; returns its path."""
  text = tmp_path / "corpus.txt"
  text.write_text((ROOT / "gpt_jax" / "training" / "loop.py").read_text())

  def make(*lines: str) -> str:
    path = tmp_path / "conf.py"
    body = "\n".join(f"  {line}" for line in lines)
    path.write_text(CONFIG.format(text=text, folder=tmp_path, sweep=body))
    return str(path)

  return make


# A process in place of a training run: it does what its seed asks for.
FAKE = """
import json, os, pathlib, signal, sys, time
from gpt_jax import files
flags = dict(w[2:].split("=", 1) for w in sys.argv[1:])
path = pathlib.Path(flags["workdir"])
cell = json.loads((path / "cell.json").read_text())
config = cell["config"] | {{"model.vocab_size": 257}}
total, seed = config["train.num_steps"], config["seed"]
mended = pathlib.Path({mended!r}).exists()
if seed == 1 and not mended:
  print("a line before", flush=True)
  sys.exit("gpt_jax: text:x matches no file")
if seed == 2 and not mended:
  os.kill(os.getpid(), signal.SIGKILL)
if seed == 3 and not mended:
  block = bytearray(1 << 34)
if seed == 4 and not mended:
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  pathlib.Path({ready!r}).touch()
  time.sleep(60)
record = {{"config": config, "data_fingerprint": "0" * 64, "fingerprint": ""}}
(path / "config.json").write_text(json.dumps(files.seal(record)))
rows = [{{"step": s, "train/loss": 3.0 - s / total}} for s in (1, total)]
end = {{"eval/valid/loss": 2.0, "eval/valid/num_tokens": 9}}
rows.append({{"step": total}} | end)
text = "".join(json.dumps(row) + chr(10) for row in rows)
(path / "metrics.jsonl").write_text(text)
(path / "plots").mkdir()
(path / "plots" / "loss.svg").touch()
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
  """Puts FAKE in place of gpt_jax.train; returns the file that mends it."""
  script = tmp_path / "fake.py"
  mended = tmp_path / "mended"
  ready = str(tmp_path / "ready")
  script.write_text(FAKE.format(mended=str(mended), ready=ready))
  monkeypatch.setattr(worker, "TRAIN", (sys.executable, str(script)))
  monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the script's gpt_jax
  monkeypatch.setattr(pool, "POLL_SECONDS", 0.01)
  return mended
