"""What a flood of bad requests costs the others: two processes and a server."""

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import time
import urllib.request

import pytest

pytest.importorskip("uvicorn", reason="extra serve is not installed")

# Of the flood: connections that ask as fast as they are answered, and how long.
NUM_CONNECTIONS, SECONDS = 8, 4.0
BODIES = (
  b'{"prompt": 1}',
  b"[" * 60_000,
  b"{}",
  b"\xff",
  b'{"prompt": [[[]]]}',
  b'{"prompt": "%s"}' % (b"some words " * 90_000),
)


def flood(port: int) -> None:
  """Sends bad requests, and prints how many were answered by each status."""
  counts: dict[str, int] = {}
  end = time.monotonic() + SECONDS

  async def one(first: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for i in itertools.count(first):
      if time.monotonic() > end:
        break
      body = BODIES[i % len(BODIES)]
      head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
      writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
      head = await reader.readuntil(b"\r\n\r\n")
      status = head.split()[1].decode()
      counts[status] = counts.get(status, 0) + 1
      size = head.lower().split(b"content-length: ")[1].split()[0]
      await reader.readexactly(int(size))
    writer.close()

  async def all_of_them() -> None:
    await asyncio.gather(*map(one, range(NUM_CONNECTIONS)))

  asyncio.run(all_of_them())
  print(json.dumps(counts))


def median_of(url: str, seconds: float) -> float:
  """Returns the median seconds of a text of 8 tokens, asked for in turn."""
  body = dict(prompt="def f(x", max_tokens=8, temperature=0)
  end, found = time.monotonic() + seconds, []
  while time.monotonic() < end:
    begun = time.monotonic()
    request = urllib.request.Request(
      f"{url}/v1/completions", json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
      assert json.load(answer)["usage"]["completion_tokens"] == 8
    found.append(time.monotonic() - begun)
    time.sleep(0.02)
  return statistics.median(found)


@pytest.mark.slow
def test_bad_requests_do_not_double_the_time_of_others(trained):
  from test_serve_door import serving  # this file is run as a program too

  with serving(trained) as (process, url):
    port, ratios = url.rsplit(":", 1)[1], []
    median_of(url, 0.5)
    for _ in range(3):
      before = median_of(url, SECONDS / 2)
      with subprocess.Popen(
        [sys.executable, __file__, port], stdout=subprocess.PIPE, text=True
      ) as flooding:
        time.sleep(0.5)  # until it has started
        ratios.append(median_of(url, SECONDS / 2) / before)
        counts = json.loads(flooding.communicate()[0])
      assert counts.keys() == {"400"} and counts["400"] > len(BODIES)
    assert process.poll() is None
    assert statistics.median(ratios) < 2, ratios


if __name__ == "__main__":
  flood(int(sys.argv[1]))
