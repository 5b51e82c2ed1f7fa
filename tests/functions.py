"""Tasks made of the standard library's functions: the data of families.py.

python tests/functions.py write FOLDER
python tests/functions.py table SWEEP

packages.jsonl: a function, and the package that it is from, one of six.
names.tsv: what a function does, and its name, which its body does not have.
"""

import ast
import collections
import json
import pathlib
import statistics
import sys
import sysconfig

PACKAGES = "asyncio email importlib multiprocessing unittest xml".split()
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
# Characters of a function, and functions of one name.
SHORTEST, LONGEST, MOST = 40, 240, 40


def functions(root: pathlib.Path):
  """Yields (first folder or file, name, text) of each function."""
  for path in sorted(root.rglob("*.py")):
    parts = path.relative_to(root).parts
    if SKIPPED & set(parts):
      continue
    try:
      text = path.read_text("utf-8")
      found = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):
      continue
    for node in found:
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        lines = text.splitlines()[node.lineno - 1 : node.end_lineno]
        whole = "\n".join(lines)
        if SHORTEST <= len(whole) <= LONGEST and "\t" not in whole:
          yield parts[0], node.name, whole


def write(folder: str, root: str | None = None) -> None:
  """Writes both files.

  Args:
    root: whose modules are read; None is the standard library's.
  """
  place = pathlib.Path(folder)
  place.mkdir(parents=True, exist_ok=True)
  labelled, pairs, count = {}, {}, collections.Counter()
  for package, name, whole in functions(
    pathlib.Path(root or sysconfig.get_path("stdlib"))
  ):
    if package in PACKAGES:
      labelled[whole] = package
    # The indent is the same for all, and a line of a file has no others.
    hidden = " ".join(whole.split()).replace(f"def {name}(", "def (", 1)
    if name not in hidden and hidden not in pairs and count[name] < MOST:
      count[name] += 1
      pairs[hidden] = name
  records = (json.dumps({"text": t, "label": p}) for t, p in labelled.items())
  (place / "packages.jsonl").write_text("".join(f"{r}\n" for r in records))
  lines = (f"{source}\t{name}\n" for source, name in pairs.items())
  (place / "names.tsv").write_text("".join(lines))


def table(sweep: str) -> str:
  """Returns a line for each group of a sweep's cells: means over seeds."""
  found = collections.defaultdict(list)
  for path in sorted(pathlib.Path(sweep, "cells").glob("*/cell.json")):
    cell, rows = json.loads(path.read_text()), path.with_name("metrics.jsonl")
    last = {}
    for line in rows.read_text().splitlines() if rows.exists() else ():
      last |= {k: v for k, v in json.loads(line).items() if "eval/" in k}
    if last:
      found[cell["name"]].append(last)
  lines = []
  for name, each in sorted(found.items()):
    parts = [f"{name:40} {len(each)} seeds"]
    for key in ("loss", "accuracy", "f1_macro"):
      values = [
        one[f"eval/valid/{key}"] for one in each if f"eval/valid/{key}" in one
      ]
      if values:
        mean, spread = statistics.fmean(values), max(values) - min(values)
        parts.append(f"{key} {mean:.4f} (range {spread:.4f})")
    lines.append("  ".join(parts))
  return "\n".join(lines)


if __name__ == "__main__":
  verb, place = sys.argv[1:]
  print(table(place)) if verb == "table" else write(place)
