"""How a command ends: the exit codes, and the error that is one sentence."""

FAILED = 1
# What the user can mend: InputError, and paths or disks.
BAD_INPUT = 2
# Too many updates in a row were not finite.
DIVERGED = 3
# A plan that does not fit its devices.
DOES_NOT_FIT = 4
# Devices disagree on what they hold or compute: leave one out.
CORRUPT = 5
# Ended from outside, or a process was lost: start the same command again.
PREEMPTED = 75
INTERRUPTED = 130
# Who read the output has left, as `| head` does: what a shell calls SIGPIPE.
UNREAD = 141


# Characters of a sentence at most; a value that it quotes may be of any length.
MAX_SENTENCE = 2_000


class InputError(ValueError):
  """Something the user gave cannot be used; the message is one sentence.

  Whatever the message quotes, it is one line of bounded length in which a
  terminal finds nothing to obey.
  """

  def __init__(self, message: object = ""):
    super().__init__(to_line(str(message)))


def to_line(text: str) -> str:
  """Returns a text as one line: control characters escaped, the middle of a
  long text left out."""
  text = " ".join(text.splitlines())
  if len(text) > MAX_SENTENCE:
    half = MAX_SENTENCE // 2
    text = f"{text[:half]} ... {text[-half:]}"
  return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
