"""Reads the CPU's model from Linux; some code paths are chosen by it."""

import contextlib
import functools
import re


@functools.cache
def read() -> dict[str, str]:
  """Returns {key: value} of the first CPU in /proc/cpuinfo; {} elsewhere."""
  with contextlib.suppress(OSError), open("/proc/cpuinfo", "rb") as file:
    lines = file.read(1 << 14).partition(b"\n\n")[0].decode().splitlines()
    return dict(re.split(r"\s*:\s*", f"{line}:", maxsplit=1) for line in lines)
  return {}


def is_intel() -> bool:
  """Returns whether the CPU is made by Intel."""
  return "Intel" in read().get("vendor_id", "")
