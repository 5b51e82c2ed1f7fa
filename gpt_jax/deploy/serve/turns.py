"""The queue of jobs for free rows, in which clients take turns."""

import collections
from collections.abc import Iterator
from typing import Any

from gpt_jax.deploy.serve.jobs import Job


class Turns:
  """Jobs that wait for a row.

  The next job is of the client that holds the fewest rows; among several such
  clients, of the one whose turn was longest ago. Design choice: a turn is a
  prompt with all its choices. A prefilled prompt keeps its place in the prefill
  cache until its last choice has a row; if other clients' jobs took rows in
  between, their prompts could find no place to be prefilled in.
  """

  def __init__(self):
    # The client whose turn was longest ago comes first.
    self._jobs: dict[Any, collections.deque[Job]] = {}
    self._last: Job | None = None
    self._count = 0

  def __len__(self) -> int:
    return self._count

  def __iter__(self) -> Iterator[Job]:
    return (job for jobs in self._jobs.values() for job in jobs)

  def count(self, client) -> int:
    """Returns how many jobs of a client wait."""
    return len(self._jobs.get(client, ()))

  def add(self, jobs: list[Job], client) -> None:
    """Adds the jobs of a request."""
    for job in jobs:
      job.client = client
      self._jobs.setdefault(client, collections.deque()).append(job)
    self._count += len(jobs)

  def remove(self, job: Job) -> None:
    jobs = self._jobs[job.client]
    jobs.remove(job)
    if not jobs:
      del self._jobs[job.client]
    self._count -= 1

  def pop(self, num_held: collections.Counter) -> Job:
    """Removes and returns the next job; there must be one.

    Args:
      num_held: {client: number of rows that it holds}.
    """
    last, client = self._last, None
    if last is not None and last.client in self._jobs:
      is_open = self._jobs[last.client][0].reading is last.reading
      client = last.client if is_open else None
    if client is None:
      client = min(self._jobs, key=lambda client: num_held[client])
    jobs = self._jobs.pop(client)
    self._last = jobs.popleft()
    if jobs:
      self._jobs[client] = jobs  # behind the others
    self._count -= 1
    return self._last
