"""Ours and peers in alternation: A B A B, each in a process of its own.

A machine's speed drifts by more than what separates two programs, so only a
pair that ran one after the other is compared, and the median of such pairs.
"""

import contextlib
import statistics
import time

from gpt_jax.config import Config, InputError
from gpt_jax.lab.bench import peers, worker

# Peers leave the GPU's memory to each other only if none takes all of it.
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
# How a peer's threads may wait for each other. Spinning, as OpenMP does of
# itself, is faster where the machine is free and twenty times slower where it
# is not, so each peer gets what a trial shows to be faster.
WAITING = {"spin": {}, "sleep": {"OMP_WAIT_POLICY": "PASSIVE"}}
# About so long is a trial, of three times or more.
TRIAL_SECONDS = 5.0
# An idle process that takes more of a core than this disturbs the other.
MAX_IDLE_SHARE = 0.05


class Duel:
  """Workers of ours and of a peer.

  Attributes:
    ours: always there.
    rivals: {name: Worker} of peers that could be built.
    failed: {name: why it could not}.
    waiting: {name: word of WAITING} of those rivals.
    idle_share: the most of a core that one took while it was to wait.
  """

  def __init__(
    self, config: Config, subject: str, args, trial, ours=(), **options
  ):
    """Builds all of them.

    Args:
      trial: a short command, by which a peer's way of waiting is chosen.
      ours: further options of the subject that a peer has not.
      options: of the subject.
    """
    self.waiting = {}
    self.stack = contextlib.ExitStack()
    self.rivals, self.failed, self.idle_share = {}, {}, 0.0
    names = ()
    if args.peer is not None:
      peers.check(config, args.peer, subject)
      names = peers.NAMES[args.peer]
    with self.stack:
      self.ours = self.stack.enter_context(
        worker.Worker(
          "gpt_jax",
          subject,
          config,
          args.devices,
          SHARED if names else None,
          **options,
          **dict(ours),
        )
      )
      for name in names:
        try:
          word, rival = build_faster(name, subject, config, trial, options)
        except worker.Failed as error:
          self.failed[name] = str(error)
          continue
        self.waiting[name] = word
        self.rivals[name] = self.stack.enter_context(rival)
        self._check_alike(rival)
      self.stack = self.stack.pop_all()

  def _check_alike(self, rival) -> None:
    for key in ("platform", "devices", "threads"):
      ours, theirs = self.ours.built[key], rival.built[key]
      if ours != theirs:
        raise InputError(
          f"{rival.who} runs with {key} {theirs} and gpt_jax with {ours}, "
          "which compares nothing; give both the same"
        )

  def ask(self, who: str, **command) -> dict:
    """Returns a worker's answer, and notes what it took while it waited."""
    one = self.ours if who == "gpt_jax" else self.rivals[who]
    answer = one.ask(**command)
    idle = answer["idle"]
    # What is shorter says nothing: threads take a moment to lie down.
    if idle["seconds"] > 0.2:
      share = idle["processor_seconds"] / idle["seconds"]
      self.idle_share = max(self.idle_share, share)
    return answer

  def round(self, commands: dict[str, dict]) -> dict[str, dict]:
    """Returns every worker's answer, asked one after the other."""
    return self.each(lambda name: self.ask(name, **commands[name]))

  def each(self, work) -> dict:
    """Returns {name: work(name)}; a rival that fails is left out from then."""
    results = {}
    for name in ["gpt_jax", *self.rivals]:
      try:
        results[name] = work(name)
      except worker.Failed as error:
        if name == "gpt_jax":
          raise
        self.failed[name] = str(error)
        del self.rivals[name]
    return results

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.stack.close()


def build_faster(name: str, subject: str, config: Config, trial, options):
  """Returns (word of WAITING, Worker) of what is faster in a trial."""
  best = None
  for word, variables in WAITING.items():
    one = worker.Worker(name, subject, config, variables=variables, **options)
    try:
      one.ask(**trial)
      seconds = time_trial(one, trial)
    except BaseException:
      one.close()
      if best is not None:
        best[2].close()
      raise
    if best is None or seconds < best[0]:
      best, loser = (seconds, word, one), best and best[2]
    else:
      loser = one
    if loser is not None:
      loser.close()
    if one.built["platform"] != "cpu":
      break
  return best[1:]


def time_trial(one, trial) -> float:
  """Returns the median of what a trial took."""
  seconds = []
  while len(seconds) < 3 or (sum(seconds) < TRIAL_SECONDS and len(seconds) < 9):
    start = time.perf_counter()
    one.ask(**trial)
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds)
