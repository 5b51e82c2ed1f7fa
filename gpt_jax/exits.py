"""How a command ends: the exit codes, and the error that is one sentence."""

FAILED = 1
# What the user can mend: InputError, and paths or disks.
BAD_INPUT = 2
# Too many updates in a row were not finite.
DIVERGED = 3
# A plan that does not fit its devices.
DOES_NOT_FIT = 4
# Ended from outside, or a process was lost: start the same command again.
PREEMPTED = 75
INTERRUPTED = 130


class InputError(ValueError):
  """Something the user gave cannot be used; the message is one sentence."""
