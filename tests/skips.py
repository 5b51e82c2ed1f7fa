"""With GPT_JAX_CI=1, a skip that skips.txt does not list fails the run.

A plugin of pytest, which conftest.py names. A check that nobody sees skipped is
a check that nobody has.
"""

import fnmatch
import os
import pathlib

LIST = pathlib.Path(__file__).parent / "skips.txt"


def read_list(text: str) -> list[tuple[str, str]]:
  """Returns (pattern of the file, beginning of the reason) of each line."""
  listed = []
  for line in text.splitlines():
    if line and not line.startswith("#"):
      file, reason, why = (part.strip() for part in line.split(" | "))
      assert file and reason and why, line
      listed.append((file, reason))
  return listed


def is_listed(file: str, reason: str, listed: list[tuple[str, str]]) -> bool:
  return any(
    fnmatch.fnmatch(file, pattern) and reason.startswith(begins)
    for pattern, begins in listed
  )


class Watch:
  """Collects the skips of a run; of all workers, where pytest has some."""

  def __init__(self, listed: list[tuple[str, str]]):
    self.listed, self.unlisted = listed, []

  def _note(self, report) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
      file = report.nodeid.split("::")[0]
      reason = report.longrepr[2].removeprefix("Skipped: ")
      if not is_listed(file, reason, self.listed):
        self.unlisted.append(f"{report.nodeid}: {reason}")

  def pytest_runtest_logreport(self, report) -> None:
    self._note(report)

  def pytest_collectreport(self, report) -> None:
    self._note(report)

  def pytest_sessionfinish(self, session) -> None:
    if self.unlisted and not session.exitstatus:
      session.exitstatus = 1

  def pytest_terminal_summary(self, terminalreporter) -> None:
    if self.unlisted:
      terminalreporter.section("skipped, and not in tests/skips.txt", red=True)
      for line in self.unlisted:
        terminalreporter.line(line)


def pytest_configure(config) -> None:
  is_worker = hasattr(config, "workerinput")
  if os.environ.get("GPT_JAX_CI") == "1" and not is_worker:
    listed = read_list(LIST.read_text())
    if os.environ.get("GPT_JAX_CI_WITHOUT") == "chromium":
      # .ci/run tried to install it, could not, and has said so.
      listed.append(("tests/*.py", "chromium is not installed"))
    config.pluginmanager.register(Watch(listed))
