"""Times gpt_jax and peers in alternation, each in a process of its own.

A machine's speed drifts by more than the difference between two programs. So
each run is compared only with the one right after it, and the median over these
pairs is reported.
"""

import contextlib
import statistics
import time

from gpt_jax.config import Config, InputError
from gpt_jax.lab.bench import peers, worker

# Without this, jax would reserve most of the GPU's memory and leave peers none.
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
# How a peer's OpenMP threads wait for each other. Spinning, the default, is
# faster on a free machine and twenty times slower on a busy one, so each peer
# uses whichever is faster in a trial.
WAITING = {"spin": {}, "sleep": {"OMP_WAIT_POLICY": "PASSIVE"}}
# A trial repeats its command for this long, but 3 to 9 times.
TRIAL_SECONDS = 5.0
# A worker that uses more than this share of a core while idle disturbs others.
MAX_IDLE_SHARE = 0.05


class Duel:
  """The workers of gpt_jax and of a peer.

  Attributes:
    ours: the worker of gpt_jax.
    rivals: {name: Worker} of the peer's forms that could be built.
    failed: {name: why the others could not be built, or failed}.
    waiting: {name: key of WAITING} of the rivals.
    idle_share: the largest share of a core that a worker used while it should
      have been idle.
  """

  def __init__(
    self,
    config: Config,
    subject: str,
    peer: str | None,
    devices: int | None,
    trial: dict,
    ours=(),
    **options,
  ):
    """Builds all workers.

    Args:
      peer: a name of peers.NAMES; None builds gpt_jax alone.
      devices: number of simulated devices of gpt_jax, or None.
      trial: a short command, to choose how a peer's threads wait.
      ours: options of the subject that a peer does not have.
      options: of the subject.
    """
    self.waiting = {}
    self.stack = contextlib.ExitStack()
    self.rivals, self.failed, self.idle_share = {}, {}, 0.0
    names = ()
    if peer is not None:
      peers.check(config, peer, subject)
      names = peers.NAMES[peer]
    with self.stack:
      self.ours = self.stack.enter_context(
        worker.Worker(
          "gpt_jax",
          subject,
          config,
          devices,
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
    """Returns a worker's answer; records its CPU use while it waited."""
    one = self.ours if who == "gpt_jax" else self.rivals[who]
    answer = one.ask(**command)
    idle = answer["idle"]
    # Threads take a moment to fall asleep, so ignore shorter waits.
    if idle["seconds"] > 0.2:
      share = idle["processor_seconds"] / idle["seconds"]
      self.idle_share = max(self.idle_share, share)
    return answer

  def round(self, commands: dict[str, dict]) -> dict[str, dict]:
    """Returns {name: answer}; asks the workers one after the other."""
    return self.each(lambda name: self.ask(name, **commands[name]))

  def each(self, work) -> dict:
    """Returns {name: work(name)}; removes a rival that fails."""
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
  """Returns (key of WAITING, Worker) of the waiting that is faster in a trial.

  A worker on an accelerator is not compared: it uses the first of WAITING.
  """
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
    loser = one
    if best is None or seconds < best[0]:
      best, loser = (seconds, word, one), best[2] if best else None
    if loser is not None:
      loser.close()
    if one.built["platform"] != "cpu":
      break
  assert best is not None
  return best[1:]


def time_trial(one, trial) -> float:
  """Returns the median seconds of a trial."""
  seconds = []
  while len(seconds) < 3 or (sum(seconds) < TRIAL_SECONDS and len(seconds) < 9):
    start = time.perf_counter()
    one.ask(**trial)
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds)
