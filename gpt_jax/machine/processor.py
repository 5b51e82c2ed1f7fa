"""What Linux tells of the processor, by which forms are chosen."""

import contextlib
import functools
import re


@functools.cache
def read() -> dict[str, str]:
  """Returns the lines of /proc/cpuinfo on the first processor; {} elsewhere."""
  with contextlib.suppress(OSError), open("/proc/cpuinfo", "rb") as file:
    lines = file.read(1 << 14).partition(b"\n\n")[0].decode().splitlines()
    return dict(re.split(r"\s*:\s*", f"{line}:", maxsplit=1) for line in lines)
  return {}


def is_intel() -> bool:
  """Returns whether it calls itself Intel's."""
  return "Intel" in read().get("vendor_id", "")
