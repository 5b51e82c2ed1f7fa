"""Plans, benchmarks, sweeps and studies of runs, as commands."""

import sys

from gpt_jax import exits

# Commands that have moved -> their new names.
MOVED = {
  "attention": "plan.attention",
  "check": "verify.check",
  "compare": "sweep.compare",
  "coordinates": "transfer.coordinates",
  "growth": "bench.growth",
  "published": "plan.published",
  "slices": "plan.slices",
}


class _Moved:
  """Names the new command in place of the error "No module named"."""

  @staticmethod
  def find_spec(name: str, path=None, target=None):
    room, _, word = name.rpartition(".")
    if room == __name__ and word in MOVED:
      new = f"{room}.{MOVED[word]}"
      print(f"gpt_jax: {name} is now python -m {new}", file=sys.stderr)
      raise SystemExit(exits.BAD_INPUT)


sys.meta_path.append(_Moved)
