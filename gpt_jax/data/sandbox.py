"""Renders an untrusted chat template, in a process that jinja.py starts.

A template is a program. Jinja's sandbox keeps it away from Python's objects,
and the resource limits of this process bound its time and memory: a template
that exceeds them kills this process, and nothing else. The process reads one
JSON object from standard input and writes one JSON line for each text.

Design choice: templates cannot ask for the date (`strftime_now` is not
defined), as the same dialogues would have other ids the next day.
"""

import json
import resource
import signal
import sys


def build_environment(borders: list[str]):
  """Returns Jinja's sandboxed environment, set up as in transformers.

  Args:
    borders: the texts to write before and after each {% generation %} block.
  """
  import jinja2
  from jinja2 import ext, nodes, sandbox

  class Sandbox(sandbox.ImmutableSandboxedEnvironment):
    """Makes access to a private attribute an error, not an empty string."""

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
  # Jinja's own filter escapes for HTML.
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
    # The signals' default action kills the process, which no loop in C can
    # delay. A virtual machine on a busy host may count no CPU time at all, so
    # there is a wall-clock limit too.
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
