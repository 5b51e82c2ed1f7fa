"""Shows that TensorStore keeps what it hands to Python as JSON, and Orbax pays.

  python tests/orbax_memory.py [SAVES]

Needs nothing of gpt_jax. First TensorStore alone: memory blocks of Python
that are never freed, for each call. Then a bare CheckpointManager of Orbax
that saves 20 small leaves again and again: KiB that the process grows by for
each save, as it is, and with the two calls replaced that ask for such JSON.
gpt_jax replaces them in storage.py. With tensorstore 0.1.86 and
orbax-checkpoint 0.12.8: 4 blocks, thousands of blocks, 25 KiB and under 2 KiB.
"""

import gc
import os
import sys
import tempfile


def count_blocks(call, repeats: int = 200) -> float:
  """Returns the memory blocks that each call leaves behind."""
  for _ in range(10):
    call()
  gc.collect()
  before = sys.getallocatedblocks()
  for _ in range(repeats):
    call()
  gc.collect()
  return (sys.getallocatedblocks() - before) / repeats


def grow(saves: int) -> float:
  """Returns KiB that the process grows by for each save."""
  import jax.numpy as jnp
  import orbax.checkpoint as ocp

  state = {f"w{i}": jnp.zeros(300) for i in range(20)}
  page = os.sysconf("SC_PAGE_SIZE")

  def resident() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
      return int(file.read().split()[1]) * page

  with tempfile.TemporaryDirectory() as folder:
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(folder, options=options) as manager:
      for step in range(saves + 50):
        manager.save(step, args=ocp.args.PyTreeSave(state))
        manager.wait_until_finished()
        if step == 49:
          before = resident()
      return (resident() - before) / saves / 1024


def main(saves: int = 200) -> None:
  import tensorstore
  from orbax.checkpoint._src.serialization import tensorstore_utils

  spec = tensorstore.KvStore.Spec({"driver": "file", "path": "/tmp/x/"})
  print(f"KvStore.Spec.to_json: {count_blocks(spec.to_json):.1f} blocks a call")
  collect = tensorstore.experimental_collect_matching_metrics
  blocks = count_blocks(lambda: collect("/tensorstore/kvstore/"))
  print(f"experimental_collect_matching_metrics: {blocks:.1f} blocks a call")
  print(f"Orbax as it is: {grow(saves):.1f} KiB a save")
  tensorstore_utils.get_tensorstore_raw_bytes = lambda *_, **__: 0
  print(f"without its counters of bytes: {grow(saves):.1f} KiB a save")


if __name__ == "__main__":
  main(*map(int, sys.argv[1:2]))
