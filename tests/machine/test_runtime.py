"""The process's memory, in a process of its own: glibc's settings stay."""

import gc
import importlib
import os
import pathlib
import subprocess
import sys

import pytest

from gpt_jax.machine import runtime

ROOT = pathlib.Path(__file__).parents[2]
HOLES = """
import ctypes
from gpt_jax.machine import runtime

def read_resident():
  with open("/proc/self/statm") as statm:
    return int(statm.read().split()[1]) * 4096

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
runtime.keep_freed_memory()
size = 1 << 16
blocks = [libc.malloc(size) for _ in range(1000)]
for block in blocks:
  libc.memset(block, 1, size)
for block in blocks[1::2]:
  libc.free(block)
holed = read_resident()
if {is_called}:
  runtime.give_back_memory()
given = holed - read_resident()
behind = [libc.malloc(size) > max(blocks) for _ in range(100)]
print(sum(behind) > 90, given > 400 * size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc alone")
@pytest.mark.parametrize("is_called", [True, False])
def test_what_is_allocated_next_lies_behind_the_holes(is_called):
  code = HOLES.format(is_called=is_called)
  run = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert run.stdout.split() == [str(is_called)] * 2


def test_tests_find_the_compile_cache_as_commands_do():
  """They do not where something imports jax before `runtime.start`."""
  import jax

  folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
  assert jax.config.jax_compilation_cache_dir == folder
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_garbage_in_cycles_is_looked_for_seldom():
  """A library that sets its own thresholds would slow down all tracing."""
  importlib.import_module("jax")
  assert gc.isenabled() and gc.get_threshold()[0] == 20_000


def test_simulated_devices_are_in_order_unless_the_user_says_otherwise():
  code = (
    "import os, jax\nfrom gpt_jax.machine import runtime\nruntime.start(3)\n"
    "print(os.environ['XLA_FLAGS'])\nprint(len(jax.devices()))"
  )
  own = runtime.IN_ORDER.replace("false", "true")
  for flags, expected in ("", []), (own, [own]):
    run = subprocess.run(
      [sys.executable, "-c", code],
      cwd=ROOT,
      env=os.environ | {"XLA_FLAGS": flags},
      capture_output=True,
      text=True,
      check=True,
    )
    # XLA takes the last of two.
    words, count = run.stdout.splitlines()
    assert words.split()[:-1] == [runtime.IN_ORDER, *expected]
    assert count == "3"
