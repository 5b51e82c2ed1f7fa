"""Describes this machine and finds its peak rates.

An accelerator's peak rates come from the table of chips. No peaks are published
for CPUs in general, so a matmul and a copy are timed.
"""

import concurrent.futures
import datetime
import importlib.metadata
import os
import platform
import time

from gpt_jax.machine import chips
from gpt_jax.machine.cores import count_cores

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# Instructions that multiply bfloat16, as Linux names them.
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
COPIED_BYTES = 1 << 28
PRODUCT_SIZE = 2048


def describe(packages=()) -> dict:
  """Returns processor, cores, versions and date, without importing packages."""
  names, flags = set(), set()
  if os.path.exists("/proc/cpuinfo"):
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
      for line in file:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
          names.add(value.strip())
        elif key.strip() in ("flags", "Features"):
          flags |= set(value.split())
  versions = {"python": platform.python_version()}
  for name in (*PACKAGES, *packages):
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return {
    "processor": ", ".join(sorted(names)) or platform.machine(),
    "cores": count_cores(),
    "has_bfloat16": bool(flags & BFLOAT16_FLAGS),
    "system": f"{platform.system()} {platform.machine()}",
    "versions": versions,
    "date": datetime.date.today().isoformat(),
  }


def read_load() -> float:
  """Returns the load average: processes running here over the last minute."""
  return round(os.getloadavg()[0], 2)


def find_rates(device, dtype: str, count: int) -> dict:
  """Returns {"flops", "bytes", "origin"} of all devices, per second.

  Args:
    device: a jax device, one of `count`.
    dtype: of the matmul that is timed on a CPU.
  """
  chip = chips.find_chip(device.device_kind)
  if chip is not None:
    return {
      "flops": count * chip.tflops * 1e12 / chip.devices,
      "bytes": count * chip.hbm_gbps * 1e9 / chip.devices,
      "origin": f"published for {device.device_kind} (bfloat16)",
    }
  if device.platform != "cpu":
    return {
      "flops": None,
      "bytes": None,
      "origin": f"{device.device_kind} is not in the table of chips",
    }
  return {
    "flops": measure_product(dtype),
    "bytes": measure_copy(),
    "origin": f"measured here: {dtype} product, copy",
  }


def measure_product(dtype: str) -> float:
  """Returns the FLOP/s of a square matmul in jax, the best of several.

  It accumulates in float32 and returns float32, which is the fastest form.
  """
  import jax
  import jax.numpy as jnp

  n = PRODUCT_SIZE
  a = jnp.ones((n, n), dtype)
  product = jax.jit(
    lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32)
  )
  best = _best(lambda: product(a, a).block_until_ready(), 5)
  return 2 * n**3 / best


def measure_copy() -> float:
  """Returns bytes/s, read plus written, of a copy on all cores."""
  import numpy as np

  parts = count_cores()
  source = np.ones((parts, COPIED_BYTES // parts // 8))
  target = np.zeros_like(source)
  with concurrent.futures.ThreadPoolExecutor(parts) as pool:
    copy = lambda: list(pool.map(np.copyto, target, source))
    best = _best(copy, 5)
  return 2 * source.nbytes / best


def _best(work, times: int) -> float:
  work()
  best = float("inf")
  for _ in range(times):
    start = time.perf_counter()
    work()
    best = min(best, time.perf_counter() - start)
  return best
