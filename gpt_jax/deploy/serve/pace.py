"""How fast bad requests are answered, so that a flood leaves time for others.

Reading a request that is then refused takes Python's time from the engine. So
refusals are told no faster than at a rate, and who waits for one asks no sooner
again. An answer that is no refusal never waits.
"""

import asyncio

# A quiet second saves up what may be told in one; none waits longer than this.
SAVED_SECONDS, MAX_SECONDS = 1.0, 5.0
# A refusal keeps the next one back by this many times what reading it took.
REST = 10.0


class Pace:
  """A leaky bucket of refusals.

  Args:
    per_second: the most of them that are told in the long run.
  """

  def __init__(self, per_second: float):
    self._each, self._free_at = 1 / per_second, 0.0

  async def wait(self, seconds: float) -> None:
    """Returns when a refusal may be told.

    Args:
      seconds: that it took to find out.
    """
    now = asyncio.get_running_loop().time()
    self._free_at = max(self._free_at, now - SAVED_SECONDS)
    late = self._free_at - now
    self._free_at += max(self._each, REST * seconds)
    self._free_at = min(self._free_at, now + MAX_SECONDS)
    if late > 0:
      await asyncio.sleep(late)
