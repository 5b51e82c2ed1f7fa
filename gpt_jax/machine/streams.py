"""Keeps standard input, output and error open, and their errors harmless.

If a descriptor were closed at the start, the next file opened would get its
number, and C libraries would print into that file.

Design choice: a run's results are in its folder, so what it prints is only a
comment. A reader that has gone (| head), a full disk, a closed terminal or a
reader that has stopped reading (Ctrl-S, a pager) costs lines, not the run.
"""

import contextlib
import io
import os
import select
import sys

# Bytes that a pipe accepts without blocking once poll reports it writable.
PIPE_BYTES = 4096
# Seconds to wait for a reader before output is dropped.
READER_SECONDS = 5.0
NAMES = ("stdin", "stdout", "stderr")


def hold(is_comment: bool = False) -> None:
  """Opens any standard streams that are closed; call it first.

  Args:
    is_comment: standard output is not the command's result, so errors of
      writing to it are ignored, as they always are for standard error.
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
    # A character that the terminal cannot encode must not end a command.
    sys.stdout.reconfigure(errors="replace")


def replace_stream(name: str, descriptor: int) -> None:
  """Makes sys.`name` write to a descriptor and ignore its errors.

  A stream without a file descriptor, such as a test's, is left alone.
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
  """Lets only Python write to standard output.

  gloo prints a greeting from C++ whenever processes connect, in the middle of
  output that another program may read.
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
  """Returns whether lines are written at once, as with PYTHONUNBUFFERED."""
  return stream.line_buffering or stream.write_through


def drop_output() -> None:
  """Sends standard output to /dev/null, including what is still buffered."""
  null = os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, 1)
  os.close(null)


def tell(line: str) -> None:
  """Writes a line straight to descriptor 2, standard error; never raises."""
  with contextlib.suppress(OSError):
    os.write(2, line.encode(errors="backslashreplace"))


class _Unfailing(io.FileIO):
  """A file whose writes always succeed, though the bytes may be dropped."""

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
    # Once the reader has stopped, do not wait for it again.
    self.patience = READER_SECONDS if has_room else 0.0
    return has_room
