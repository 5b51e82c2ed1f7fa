"""A hash of what a package computes: its syntax trees, free of paths.

The hash ignores comments, formatting, docstrings, annotations of functions, and
which file a definition is in. An imported module's name only says where a
definition is, so each reference is replaced by its target: `optim.build(...)`
and, after a move, `schedules.build(...)` are both "the function build whose
syntax tree has this hash". The trees are serialised here, not by ast.dump,
whose text differs between versions of Python.
"""

import ast
import os
import re

from gpt_jax import digest

# Placeholder of a reference until it is filled in. No other text contains it,
# because repr() writes this character as an escape.
_HOLE = "\0"
# Each round fills references with the hashes of the previous round; the first
# fills in names only. With N rounds, two definitions of the same name and text
# get different hashes if definitions up to N - 1 references away differ.
_ROUNDS = 4
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_SCOPES = (*_DEFINITIONS[:2], ast.Lambda, ast.ListComp, ast.SetComp)
_SCOPES += (ast.DictComp, ast.GeneratorExp)
# Statements that contain no other statement, and so no import.
_SIMPLE = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Return)
_SIMPLE += (ast.Raise, ast.Assert, ast.Delete)
# Fields that change no result, or that only some versions of Python have.
_IGNORED = {"ctx", "kind", "type_comment", "type_ignores", "type_params"}
_IGNORED |= {"returns"}


def hash_package(root: str, without: tuple[str, ...] = ()) -> str:
  """Returns the SHA-256, in hex, of a package's syntax trees.

  Args:
    root: the package's folder; its name is the package's.
    without: folders directly below it that are left out.
  """
  modules = _read_modules(root, without)
  writers = {
    (name, index): _Writer(modules, name, index)
    for name, module in modules.items()
    for index in range(len(module.groups))
  }
  hashes = dict.fromkeys(writers, "")
  for _ in range(_ROUNDS):
    texts = {place: w.filled(hashes) for place, w in writers.items()}
    hashes = {place: digest.of_text(text) for place, text in texts.items()}
  return digest.of_text("\n".join(sorted(hashes.values())))


def _read_modules(root: str, without) -> dict[str, "_Module"]:
  """Returns {dotted name: module} of a package."""
  package, modules = os.path.basename(root), {}
  for folder, folders, files in os.walk(root):
    folders[:] = [f for f in folders if f != "__pycache__"]
    if folder == root:
      folders[:] = [f for f in folders if f not in without]
    for file in files:
      if not file.endswith(".py"):
        continue
      path = os.path.relpath(os.path.join(folder, file), root)
      parts = [package, *path.removesuffix(".py").split(os.sep)]
      is_package = parts[-1] == "__init__"
      name = ".".join(parts[:-1] if is_package else parts)
      with open(os.path.join(folder, file), "rb") as stream:
        tree = ast.parse(stream.read())
      modules[name] = _Module(name, is_package, package, tree)
  return modules


class _Module:
  """The statements at the top of one file.

  Attributes:
    groups: lists of statements that are hashed together: a definition, or all
      assignments to one name, whose order matters.
    owners: {name: index of the group that binds it}.
    imports: {name: what it was imported from}, see _imports_of.
  """

  def __init__(self, name: str, is_package: bool, package: str, tree):
    self.package = package
    self.home = name if is_package else name.rpartition(".")[0]
    self.groups: list[list[ast.stmt]] = []
    self.owners: dict[str, int] = {}
    self.imports: dict[str, str] = {}
    for statement in tree.body:
      if isinstance(statement, ast.Import | ast.ImportFrom):
        self.imports |= _imports_of(statement, self.home)
      elif not _is_silent(statement):
        self._add(statement)
        if not isinstance(statement, _DEFINITIONS):  # imports tried, or chosen
          self.imports |= _imports_within(statement, self.home)

  def _add(self, statement: ast.stmt) -> None:
    names = _bound_by(statement)
    index = next((self.owners[n] for n in names if n in self.owners), None)
    if index is None:
      index = len(self.groups)
      self.groups.append([])
    self.groups[index].append(statement)
    self.owners |= dict.fromkeys(names, index)


def _bound_by(statement: ast.stmt) -> list[str]:
  """Returns the names that a statement at the top of a module binds."""
  if isinstance(statement, _DEFINITIONS):
    return [statement.name]
  return [
    node.id
    for node in ast.walk(statement)
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
  ]


def _imports_of(statement, home: str) -> dict[str, str]:
  """Returns {local name: dotted name} of an import statement.

  Args:
    home: the package that a relative import starts from.
  """
  if isinstance(statement, ast.Import):
    return {
      a.asname or a.name.partition(".")[0]: (
        a.name if a.asname else a.name.partition(".")[0]
      )
      for a in statement.names
    }
  source = statement.module or ""
  if statement.level:
    parts = home.split(".")
    base = parts[: len(parts) - statement.level + 1]
    source = ".".join([*base, *([source] if source else [])])
  return {a.asname or a.name: f"{source}.{a.name}" for a in statement.names}


def _imports_within(statement: ast.stmt, home: str) -> dict[str, str]:
  """Returns {local name: dotted name} of all imports within a statement."""
  found: dict[str, str] = {}
  todo: list[ast.AST] = [statement]
  while todo:
    node = todo.pop()
    if isinstance(node, (ast.Import, ast.ImportFrom)):
      found |= _imports_of(node, home)
    elif not isinstance(node, _SIMPLE):
      todo += _children(node)
  return found


def _children(node: ast.AST) -> list[ast.AST]:
  """Returns a node's children, without those of _IGNORED."""
  found = []
  for name in node._fields:
    if name in _IGNORED:
      continue
    value = getattr(node, name, None)
    if type(value) is list:
      found += [child for child in value if isinstance(child, ast.AST)]
    elif isinstance(value, ast.AST):
      found.append(value)
  return found


def _locals_of(function) -> set[str]:
  """Returns the names that a function or a comprehension binds for itself."""
  names, todo = set(), _children(function)
  while todo:
    node = todo.pop()
    if isinstance(node, ast.arg):
      names.add(node.arg)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
      names.add(node.id)
    elif isinstance(node, _DEFINITIONS):
      names.add(node.name)
    if not isinstance(node, _SCOPES):
      todo += _children(node)
  return names


def _is_silent(statement: ast.stmt) -> bool:
  """Returns whether a statement computes nothing: docstring, pass, import."""
  kind = type(statement)
  if isinstance(statement, ast.Expr):
    value = statement.value
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
  return kind in (ast.Pass, ast.Import, ast.ImportFrom)


class _Writer:
  """Serialises one group of statements.

  References to the package's own definitions are written as _HOLE, which
  `filled` replaces.

  Args:
    modules: {dotted name: module} of the package.
    name: the module of the group.
    index: the group's index in that module.
  """

  def __init__(self, modules, name: str, index: int):
    self.modules, self.name = modules, name
    module = modules[name]
    self.owners = module.owners
    self.root, self.imports = module.package, dict(module.imports)
    for statement in module.groups[index]:
      self.imports |= _imports_within(statement, module.home)
    self.scopes: list[set[str]] = []
    self.references: list[tuple[str, list[tuple[str, int]]]] = []
    self.text = " ".join(map(self._write, module.groups[index]))

  def filled(self, hashes: dict[tuple[str, int], str]) -> str:
    """Returns the text with each reference filled in: its name and its hash.

    Args:
      hashes: {(module, index of a group): its hash}.
    """
    words = (
      f"<{name} {sorted(hashes[place] for place in places)}>"
      for name, places in self.references
    )
    return re.sub(_HOLE, lambda _: next(words), self.text)

  def _write(self, value) -> str:
    kind = type(value)  # `kind is` takes half the time of isinstance
    if kind is list:
      kept = [v for v in value if not _is_silent(v)]
      return f"[{' '.join(map(self._write, kept))}]"
    if kind is ast.Constant:
      return f"{type(value.value).__name__} {value.value!r}"
    if kind is ast.JoinedStr:
      return f"(JoinedStr {' '.join(self._parts(value))})"
    if kind is ast.Name or kind is ast.Attribute:
      reference = self._reference(value)
      if reference is not None:
        return reference
    elif not isinstance(value, ast.AST):
      return repr(value)
    is_scope = kind in _SCOPES
    if is_scope:
      self.scopes.append(_locals_of(value))
    fields = []
    for name in value._fields:
      if name in _IGNORED or name == "annotation" and kind is ast.arg:
        continue
      field = getattr(value, name, None)
      if field is not None and field != []:
        fields.append(f"{name}={self._write(field)}")
    if is_scope:
      self.scopes.pop()
    return f"({type(value).__name__} {' '.join(fields)})"

  def _parts(self, string: ast.JoinedStr) -> list[str]:
    """Returns an f-string's parts, with adjacent pieces of text joined."""
    parts, text = [], ""
    for part in string.values:
      if isinstance(part, ast.Constant):
        text += str(part.value)
        continue
      parts += [repr(text)] * bool(text) + [self._write(part)]
      text = ""
    return parts + [repr(text)] * bool(text)

  def _reference(self, node) -> str | None:
    """Returns the text of a name, or an attribute of a module, as a reference.

    None for a name that is neither imported nor defined at the module's top.
    """
    dotted = self._dotted(node)
    if dotted is None:
      return None
    if not f"{dotted}.".startswith(f"{self.root}."):
      return f"<{dotted}>"
    last, place = dotted.rpartition(".")[2], self._find(dotted)
    if place is not None:
      self.references.append((last, [place]))
    elif dotted in self.modules:  # a module as a value: all its definitions
      count = len(self.modules[dotted].groups)
      places = [(dotted, i) for i in range(count)]
      self.references.append(("module", places))
    else:
      return f"<{last}>"  # defined at run time, such as __file__
    return _HOLE

  def _dotted(self, node) -> str | None:
    """Returns the dotted name that a node refers to, None as in _reference."""
    if isinstance(node, ast.Name):
      if any(node.id in scope for scope in self.scopes):
        return None
      if node.id in self.imports:
        return self.imports[node.id]
      return f"{self.name}.{node.id}" if node.id in self.owners else None
    if isinstance(node, ast.Attribute):
      owner = self._dotted(node.value)
      if owner in self.modules:
        return f"{owner}.{node.attr}"
    return None

  def _find(self, dotted: str) -> tuple[str, int] | None:
    """Returns the (module, index) of the group that binds a name, or None.

    Follows modules that only import the name.
    """
    for _ in range(len(self.modules)):
      name, _, last = dotted.rpartition(".")
      if dotted in self.modules or name not in self.modules:
        return None
      module = self.modules[name]
      if last in module.owners:
        return name, module.owners[last]
      if last not in module.imports:
        return None
      dotted = module.imports[last]
    return None
