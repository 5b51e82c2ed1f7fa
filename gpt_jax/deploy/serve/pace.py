"""Rate limit of refusals, so that a flood of them leaves time for others.

Reading a request that is then refused takes Python's time from the engine. So
refusals are sent at a limited rate, and a client that waits for one does not
send its next request meanwhile. Any other answer is sent without delay.
"""

import asyncio

# The burst is what may be sent in SAVED_SECONDS; no refusal waits longer than
# MAX_SECONDS.
SAVED_SECONDS, MAX_SECONDS = 1.0, 5.0
# A refusal delays the next one by REST times the seconds that reading it took.
REST = 10.0


class Pace:
  """A leaky bucket of refusals.

  Args:
    per_second: the most refusals a second in the long run.
  """

  def __init__(self, per_second: float):
    self._each, self._free_at = 1 / per_second, 0.0

  async def wait(self, seconds: float) -> None:
    """Waits until a refusal may be sent.

    Args:
      seconds: time that it took to read and refuse the request.
    """
    now = asyncio.get_running_loop().time()
    self._free_at = max(self._free_at, now - SAVED_SECONDS)
    late = self._free_at - now
    self._free_at += max(self._each, REST * seconds)
    self._free_at = min(self._free_at, now + MAX_SECONDS)
    if late > 0:
      await asyncio.sleep(late)
