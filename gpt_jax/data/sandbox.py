"""Renders a chat template of a stranger: a process that jinja.py starts.

A template is a program. Jinja's sandbox keeps it from the objects around it,
the limits of this process from time and memory without end: whatever takes too
much kills the process, and nothing else. It reads one JSON object from its
standard input and writes a line of JSON for each text.

Design choice: a template that asks for the date gets none (`strftime_now` is
not defined), as the same dialogues would have other ids the next day.
"""

import json
import resource
import signal
import sys


def build_environment(borders: list[str]):
  """Returns what templates run in: Jinja's sandbox, as transformers has it.

  Args:
    borders: what is written around the content of {% generation %}.
  """
  import jinja2
  from jinja2 import ext, nodes, sandbox

  class Sandbox(sandbox.ImmutableSandboxedEnvironment):
    """Reaching for a private attribute is an error, and not the empty text."""

    def unsafe_undefined(self, obj, attribute):
      raise sandbox.SecurityError(
        f"it reaches for the attribute {attribute!r} of a {type(obj).__name__}"
      )

  class Generation(ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
      call = self.call_method("_surround")
      return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _surround(self, caller):
      return f"{borders[0]}{caller()}{borders[1]}"

  def refuse(message):
    raise jinja2.TemplateError(str(message))

  environment = Sandbox(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, ext.loopcontrols],
  )
  environment.filters["tojson"] = _to_json
  functions: dict = environment.globals
  functions["raise_exception"] = refuse
  return environment


def _to_json(value, ensure_ascii=False, indent=None, separators=None, **_):
  # Not Jinja's own, which escapes for HTML.
  return json.dumps(
    value, ensure_ascii=ensure_ascii, indent=indent, separators=separators
  )


def _render(template, names: dict, most: int) -> str:
  parts, size = [], 0
  for part in template.generate(**names):
    parts.append(part)
    size += len(part)
    if size > most:
      raise ValueError(f"it writes more than {most:,} characters")
  return "".join(parts)


def main() -> None:
  job = json.load(sys.stdin)
  resource.setrlimit(resource.RLIMIT_AS, (job["bytes"],) * 2)
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  environment = build_environment(job["borders"])
  template = None
  for messages, is_prompt, most in job["requests"]:
    # By the default action of the signals, which no loop in C can delay. A
    # virtual machine whose host is busy may count no processor time at all.
    signal.setitimer(signal.ITIMER_PROF, job["seconds"])
    signal.setitimer(signal.ITIMER_REAL, 10 * job["seconds"])
    names = job["names"] | {"tools": None, "documents": None}
    names |= {"messages": messages, "add_generation_prompt": is_prompt}
    try:
      template = template or environment.from_string(job["template"])
      found = {"text": _render(template, names, most)}
    except Exception as error:
      why = " ".join(str(error).split())[:300] or type(error).__name__
      if isinstance(error, (MemoryError, RecursionError)):
        why = "it needs too much memory"
      found = {"error": why}
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
  main()
