"""Every test sees 8 simulated CPU devices, strict promotion and warnings."""

import os
import pathlib
import subprocess
import sys

import pytest

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from gpt_jax import runtime  # noqa: E402 - the flags must be set first

runtime.start()


@pytest.fixture
def test_data() -> pathlib.Path:
  """The folder of real texts; tests that need it are skipped without."""
  folder = os.environ.get("GPT_JAX_TEST_DATA")
  if not folder:
    pytest.skip("GPT_JAX_TEST_DATA is not set: no real texts to test on")
  return pathlib.Path(folder)


@pytest.fixture
def run_verb():
  """Runs `python -m gpt_jax.<verb> ...` as a user does, on one device."""

  def run(*words, timeout=120, devices=None, check=None, **env):
    flags = [f"--devices={devices}"] if devices else []
    clean = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    result = subprocess.run(
      [sys.executable, "-m", *map(str, words), *flags],
      capture_output=True,
      text=True,
      timeout=timeout,
      cwd=ROOT,
      env=clean | env,
    )
    if check is not None:
      assert result.returncode == check, result.stdout + result.stderr
    return result

  return run


@pytest.fixture
def small_run(tmp_path) -> list[str]:
  """Flags of a run that takes seconds, on a text that the test writes."""
  text = tmp_path / "corpus.txt"
  text.write_text((ROOT / "gpt_jax" / "loop.py").read_text() * 3)
  values = {
    "data.source": f"text:{text}",
    "data.split": "tail",
    "data.tokenizer": "bytes",
    "data.dir": tmp_path / "prepared",
    "data.seq_len": 32,
    "model.max_len": 32,
    "model.num_layers": 2,
    "model.model_dim": 32,
    "model.mlp_dim": 64,
    "optim.warmup_steps": 5,
    "train.num_steps": 40,
    "train.global_batch_size": 8,
    "train.log_every_steps": 1,
    "checkpoint.every_steps": 17,
    "eval.every_steps": 1000,
    "sample.every_steps": 0,
  }
  flags = [f"--config.{key}={value}" for key, value in values.items()]
  return ["--config=configs/tiny.py", *flags]
