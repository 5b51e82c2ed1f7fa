"""Standard input, output and error: always there, and never a run's end.

A descriptor that was closed at the start would be given to the next file that
is opened, and what C libraries print would go into it.

Design choice: of a run that is kept in a folder, what is printed is a comment.
A reader that has left (| head), a full disk or a closed terminal costs lines
and not the run; neither does one that has stopped reading (Ctrl-S, a pager).
"""

import contextlib
import io
import os
import select
import sys

# Bytes that a pipe which can be written to takes without waiting.
PIPE_BYTES = 4096
# Seconds to wait for a reader, before what is printed is dropped.
READER_SECONDS = 5.0
NAMES = ("stdin", "stdout", "stderr")


def hold(is_comment: bool = False) -> None:
  """Opens what is closed of the standard streams; call before all else.

  Args:
    is_comment: what goes to standard output is not what the command is for;
      errors of writing to it are passed over, as always to standard error.
  """
  for descriptor, name in enumerate(NAMES):
    try:
      os.fstat(descriptor)
    except OSError:
      mode = os.O_WRONLY if descriptor else os.O_RDONLY
      null = os.open(os.devnull, mode)
      if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
      os.set_inheritable(descriptor, True)
      setattr(sys, name, None)
    if getattr(sys, name) is None:
      mode = "w" if descriptor else "r"
      stream = open(
        descriptor, mode, encoding="utf-8", errors="replace", closefd=False
      )
      setattr(sys, name, stream)
  replace_stream("stderr", 2)
  if is_comment:
    replace_stream("stdout", 1)
  elif isinstance(sys.stdout, io.TextIOWrapper):
    # A terminal that cannot show a character must not end a command.
    sys.stdout.reconfigure(errors="replace")


def replace_stream(name: str, descriptor: int) -> None:
  """Has sys.`name` write to a descriptor, and pass over its errors.

  A stream that is not a file's, such as a test's, is left alone.
  """
  old = getattr(sys, name)
  try:
    old.fileno()
    old.flush()
  except io.UnsupportedOperation:
    return
  except OSError:
    pass
  stream = io.TextIOWrapper(
    io.BufferedWriter(_Unfailing(descriptor, "w", closefd=False)),
    encoding=old.encoding,
    errors="backslashreplace" if name == "stderr" else "replace",
    line_buffering=_is_by_line(old) or name == "stderr",
  )
  setattr(sys, name, stream)


def keep_stdout_for_python() -> None:
  """Leaves standard output to Python alone.

  gloo greets there from C++ whenever processes connect, in the midst of what a
  command prints for another to read.
  """
  old = sys.stdout
  with contextlib.suppress(OSError):
    old.flush()
  own = os.dup(old.fileno())
  drop_output()
  is_comment = isinstance(getattr(old.buffer, "raw", None), _Unfailing)
  raw = (_Unfailing if is_comment else io.FileIO)(own, "w")
  sys.stdout = io.TextIOWrapper(
    io.BufferedWriter(raw),
    encoding=old.encoding,
    errors="replace",
    line_buffering=_is_by_line(old),
  )


def _is_by_line(stream) -> bool:
  """Returns whether lines go out at once; PYTHONUNBUFFERED says so too."""
  return stream.line_buffering or stream.write_through


def drop_output() -> None:
  """Has standard output lead nowhere: what is buffered cannot be written."""
  null = os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, 1)
  os.close(null)


def tell(line: str) -> None:
  """Writes a line to standard error, by its descriptor; never raises."""
  with contextlib.suppress(OSError):
    os.write(2, line.encode(errors="backslashreplace"))


class _Unfailing(io.FileIO):
  """A file of which each write succeeds, whatever becomes of the bytes."""

  patience = READER_SECONDS

  def write(self, data) -> int:
    view = memoryview(data).cast("B")
    with contextlib.suppress(OSError):
      for start in range(0, len(view), PIPE_BYTES):
        if not self._has_room():
          break
        super().write(view[start : start + PIPE_BYTES])
    return len(view)

  def _has_room(self) -> bool:
    poll = select.poll()
    poll.register(self.fileno(), select.POLLOUT)
    has_room = bool(poll.poll(1000 * self.patience))
    # Once it is known to be stopped, it is not waited for again.
    self.patience = READER_SECONDS if has_room else 0.0
    return has_room
