"""Every test sees 8 simulated CPU devices."""

import contextlib
import functools
import gc
import importlib
import io
import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
from harness import QUICK, ROOT, user_env
from nursery import Nursery

os.environ["XLA_FLAGS"] = QUICK
os.environ["JAX_PLATFORMS"] = "cpu"
# An operation on arrays of unlike ranks is an error, in commands that tests run
# too: it may be one axis that was left out.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# A skip that is not listed fails a run of CI; it takes all rows of a battery.
pytest_plugins = ["skips", "wide"]

sys.path.insert(0, str(ROOT))

# ruff: noqa: E402 - the flags must be set first
from gpt_jax import cli
from gpt_jax.machine import runtime

runtime.start(8)  # before jax is imported, which then finds its compile cache


# A shell's background job and nohup start with these ignored, which children
# inherit; the tests send them.
for number, handler in {
  signal.SIGINT: signal.default_int_handler,
  signal.SIGQUIT: signal.SIG_DFL,
  signal.SIGHUP: signal.SIG_DFL,
}.items():
  if signal.getsignal(number) is signal.SIG_IGN:
    signal.signal(number, handler)


# Tests between two looks at the mappings: each takes some milliseconds.
LOOK_EVERY = 10
tests_until_look = itertools.cycle(range(LOOK_EVERY))


@pytest.fixture(autouse=True)
def few_mappings():
  """Drops compiled programs long before the kernel's limit of mappings.

  A program is several mappings of memory, of which a process may have 65,530;
  at the limit XLA ends with a segmentation fault.
  """
  yield
  maps = pathlib.Path("/proc/self/maps")
  if next(tests_until_look) or not maps.exists():
    return
  if maps.read_bytes().count(b"\n") > 20_000:
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def one_peak():
  """Measures once what the processor can do; each run would, on all cores."""
  from gpt_jax.runs import metrics

  measure = functools.cache(metrics.measure_cpu_peak)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(metrics, "measure_cpu_peak", measure)
    yield


@pytest.fixture
def test_data() -> pathlib.Path:
  """The folder of real texts; tests that need it are skipped without."""
  folder = os.environ.get("GPT_JAX_TEST_DATA")
  if not folder:
    pytest.skip("GPT_JAX_TEST_DATA is not set: no real texts to test on")
  return pathlib.Path(folder)


@pytest.fixture(scope="module")
def tpu_compiler():
  """The environment of the compiler, taken back at the end."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(runtime.os, "environ", os.environ.copy())
    runtime.start_tpu_compiler()
    wanted = dict(os.environ)
  with pytest.MonkeyPatch.context() as patch:
    for key, value in wanted.items():
      patch.setenv(key, value)
    yield


@pytest.fixture(scope="session")
def browser():
  """Opens a page in headless Chromium; skipped where there is none."""
  program = next(
    filter(None, map(shutil.which, ("chromium", "google-chrome"))), None
  )
  if program is None:
    pytest.skip("chromium is not installed: no page is opened")

  def show(page, *words, query="") -> str:
    flags = ["--headless", "--no-sandbox", "--disable-gpu"]
    flags += ["--disable-background-networking", "--virtual-time-budget=4000"]
    flags += [f"--user-data-dir={page.parent}/chromium"]
    result = subprocess.run(
      [program, *flags, *words, f"{page.as_uri()}{query}"],
      capture_output=True,
      text=True,
      timeout=90,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout

  return show


@pytest.fixture
def run_verb():
  """Runs `python -m gpt_jax.<verb> ...` as a user does, on one device."""

  def run(*words, timeout=120, devices=None, check=None, **env):
    flags = [f"--devices={devices}"] if devices else []
    result = subprocess.run(
      [sys.executable, "-m", *map(str, words), *flags],
      capture_output=True,
      text=True,
      timeout=timeout,
      cwd=ROOT,
      env=user_env() | env,
    )
    if check is not None:
      assert result.returncode == check, result.stdout + result.stderr
    return result

  return run


@pytest.fixture(scope="session")
def nursery():
  """Starts verbs in processes that need not import jax; see nursery.py."""
  with Nursery() as found:
    yield found


@pytest.fixture
def fork_verb(nursery):
  """Runs a verb as run_verb does, from the nursery."""

  def run(module, *words, devices=None, check=None, **settings):
    flags = [f"--devices={devices}"] if devices else []
    verb = module.removeprefix("gpt_jax.")
    child = nursery.start(verb, *words, *flags, **settings)
    out, err = child.communicate()
    if check is not None:
      assert child.returncode == check, out + err
    words = [module, *words]
    return subprocess.CompletedProcess(words, child.returncode, out, err)

  return run


@pytest.fixture(scope="session")
def small_flags():
  """Makes flags of a run that takes seconds, on a text in a given folder."""

  def make(folder: pathlib.Path) -> list[str]:
    text = folder / "corpus.txt"
    text.write_text((ROOT / "gpt_jax" / "training" / "loop.py").read_text() * 3)
    values = {
      "data.source": f"text:{text}",
      "data.split": "tail",
      "data.tokenizer": "bytes",
      "data.dir": folder / "prepared",
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

  return make


@pytest.fixture
def small_run(tmp_path, small_flags) -> list[str]:
  """Flags of a run that takes seconds, on a text that the test writes."""
  return small_flags(tmp_path)


@pytest.fixture(scope="session")
def call_verb():
  """Runs a verb in this process: as run_verb, without the wait for jax."""

  def call(verb: str, *words):
    main = importlib.import_module(f"gpt_jax.{verb}").main
    out, err = io.StringIO(), io.StringIO()
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with streams[0], streams[1], pytest.raises(SystemExit) as ended:
      cli.run(main, [str(w) for w in words])
    code = ended.value.code
    return subprocess.CompletedProcess(
      [verb, *words], code, out.getvalue(), err.getvalue()
    )

  return call


@pytest.fixture
def corpus(tmp_path):
  """Returns a function that makes a DataConfig over written documents."""
  from configs import base
  from gpt_jax import config as config_lib
  from gpt_jax.config import DataConfig

  def build(documents, **changes):
    folder = tmp_path / "text"
    folder.mkdir(exist_ok=True)
    for i, text in enumerate(documents):
      (folder / f"{i:03d}.txt").write_bytes(text.encode())
    values = vars(config_lib.freeze(base.get_config()).data) | {
      "source": f"text:{folder}/*.txt",
      "valid_frac": 0.1,
      "tokenizer": "bytes",
      "dir": str(tmp_path / "prepared"),
      "seq_len": 8,
    }
    return DataConfig(**(values | changes))

  return build
