"""How a command ends: the exit codes, and the error that is one sentence."""

FAILED = 1
# An error that the user can mend: InputError, or one of paths and disks.
BAD_INPUT = 2
# Too many updates in a row were not finite.
DIVERGED = 3
# A plan that does not fit its devices.
DOES_NOT_FIT = 4
# Devices differ in what they store or compute: leave out the faulty one.
CORRUPT = 5
# Ended from outside, or a process was lost: start the same command again.
PREEMPTED = 75
INTERRUPTED = 130
# The reader of the output has gone, as `| head` does: 128 + SIGPIPE.
UNREAD = 141


# Characters of a sentence at most, since a quoted value may have any length.
MAX_SENTENCE = 2_000


class InputError(ValueError):
  """Something the user gave cannot be used; the message is one sentence.

  It is a single line of bounded length without control characters, whatever
  it quotes.
  """

  def __init__(self, message: object = ""):
    super().__init__(to_line(str(message)))


def to_line(text: str) -> str:
  """Returns the text as one line, control characters escaped.

  The middle of a text beyond MAX_SENTENCE is left out.
  """
  text = " ".join(text.splitlines())
  if len(text) > MAX_SENTENCE:
    half = MAX_SENTENCE // 2
    text = f"{text[:half]} ... {text[-half:]}"
  return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
