"""Parses the text of compiled HLO: instructions, loops, groups of devices.

The text is the compiler's program after partitioning, fusion and scheduling.
The TPU compiler does not record a loop's trip count, so it is derived from the
loop's counter.
"""

import dataclasses
import math
import re

import numpy as np

# HLO's name of an element type -> its bytes.
ITEM_BYTES = {
  "pred": 1,
  "s4": 0.5,
  "u4": 0.5,
  "s8": 1,
  "u8": 1,
  "s16": 2,
  "u16": 2,
  "bf16": 2,
  "f16": 2,
  "s32": 4,
  "u32": 4,
  "f32": 4,
  "s64": 8,
  "u64": 8,
  "f64": 8,
  "c64": 8,
  "c128": 16,
}
# Opcodes of fused computations; the last two run concurrently with other ops.
FUSIONS = ("fusion", "fusion-start", "async-start")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^{}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of an instruction's result.

  Attributes:
    space: memory space: 0 is HBM, 1 the TPU's vector memory.
  """

  dtype: str
  dims: tuple[int, ...]
  space: int

  @property
  def bytes(self) -> float:
    return math.prod(self.dims) * ITEM_BYTES.get(self.dtype, 1)


@dataclasses.dataclass
class Instruction:
  """One line: name = arrays opcode(operands), attributes."""

  name: str
  arrays: list[Array]
  is_tuple: bool
  opcode: str
  operands: list[str]
  literal: str
  attributes: str
  is_root: bool

  @property
  def bytes(self) -> float:
    return sum(a.bytes for a in self.arrays)

  @property
  def op_name(self) -> str:
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ""

  def attribute(self, name: str) -> str:
    """Returns the text of `name=...` up to a comma outside brackets, or ""."""
    found = re.search(rf"(?:^|[ ,]){name}=", self.attributes)
    if not found:
      return ""
    depth, text = 0, self.attributes[found.end() :]
    for i, c in enumerate(text):
      depth += c in "([{"
      depth -= c in ")]}"
      if c == "," and depth == 0:
        return text[:i]
    return text

  def called(self, name: str) -> str:
    """Returns the computation that `name=%...` names, or ""."""
    return self.attribute(name).lstrip("%").split(" ")[0]


@dataclasses.dataclass
class Computation:
  """A named list of instructions, such as the body of a loop or fusion."""

  name: str
  instructions: dict[str, Instruction]

  @property
  def root(self) -> Instruction:
    for instruction in reversed(self.instructions.values()):
      if instruction.is_root:
        return instruction
    return list(self.instructions.values())[-1]

  def parameter(self, index: int) -> Instruction | None:
    """Returns the instruction parameter(index)."""
    for instruction in self.instructions.values():
      if instruction.opcode == "parameter" and instruction.literal == str(
        index
      ):
        return instruction
    return None

  def users(self) -> dict[str, list[Instruction]]:
    """Returns {name: instructions that read it}."""
    found = {}
    for instruction in self.instructions.values():
      for name in instruction.operands:
        found.setdefault(name, []).append(instruction)
    return found


@dataclasses.dataclass
class Module:
  """A compiled program.

  Attributes:
    computations: {name: Computation}.
    entry: name of the computation that the program starts with.
  """

  computations: dict[str, Computation]
  entry: str


def parse(text: str) -> Module:
  """Returns the Module of `compiled.as_text()`."""
  computations, entry, current = {}, "", None
  for line in text.splitlines():
    if not line.startswith(" "):
      found = _HEAD.match(line)
      if found:
        current = Computation(found[2], {})
        computations[found[2]] = current
        if found[1]:
          entry = found[2]
      continue
    found = _LINE.match(line)
    if found and current is not None:
      instruction = _read_line(found[2], found[3], bool(found[1]))
      current.instructions[instruction.name] = instruction
  return Module(computations, entry)


def read_arrays(text: str) -> list[Array]:
  """Returns the arrays in a shape's text; for a tuple, in its order."""
  found = []
  for dtype, dims, layout in _ARRAY.findall(text):
    space = re.search(r"S\((\d+)\)", layout)
    sizes = tuple(int(d) for d in dims.split(",") if d)
    found.append(Array(dtype, sizes, int(space[1]) if space else 0))
  return found


def _read_line(name: str, text: str, is_root: bool) -> Instruction:
  if text.startswith("("):
    end = _closing(text, 0) + 1
  else:
    end = text.find(" ")
  shape, rest = text[:end], text[end:].lstrip()
  start = rest.find("(")
  close = _closing(rest, start)
  inside = rest[start + 1 : close]
  operands = re.findall(r"%([\w.\-]+)", inside)
  return Instruction(
    name=name,
    arrays=read_arrays(shape),
    is_tuple=shape.startswith("("),
    opcode=rest[:start],
    operands=operands,
    literal=inside if not operands else "",
    attributes=rest[close + 1 :].lstrip(", "),
    is_root=is_root,
  )


def _closing(text: str, start: int) -> int:
  depth = 0
  for i in range(start, len(text)):
    depth += text[i] == "("
    depth -= text[i] == ")"
    if depth == 0:
      return i
  return len(text)


def target_of(instruction: Instruction) -> str:
  """Returns the target of a custom call, "" for other instructions."""
  return instruction.attribute("custom_call_target").strip('"')


# Loops


def trip_count(module: Module, loop: Instruction, parent: Computation) -> int:
  """Returns how often a while loop runs its body, 0 where unknown."""
  known = re.search(r'known_trip_count":?\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known[1])
  condition = module.computations[loop.called("condition")]
  body = module.computations[loop.called("body")]
  state = parent.instructions.get(loop.operands[0])
  start = lambda i: _element(module, parent, state, i, {})
  # The condition compares a counter with a bound; both are elements of the
  # loop's state, or constants.
  compare = condition.root
  if compare.opcode != "compare":
    compare, condition, start = _unwrap(module, condition, compare, start)
  if compare is None or len(compare.operands) != 2:
    return 0
  sides = []
  for operand in compare.operands:
    index = _index_read(condition, operand)
    if index is None:
      value = _value(module, condition, operand, {})
      sides.append((value, 0))
      continue
    first = start(index)
    after = [
      _element(module, body, body.root, index, {index: probe})
      for probe in (0, 1)
    ]
    step = None
    if after[0] is not None and after[1] == after[0] + 1:
      step = after[0]
    sides.append((first, step))
  (left, left_step), (right, right_step) = sides
  if left is None or right is None or left_step is None or right_step is None:
    return 0
  direction, step = compare.attribute("direction"), left_step - right_step
  gap = right - left
  if direction in ("LE", "GE"):
    gap += 1 if direction == "LE" else -1
  if step == 0 or gap / step < 0 or direction == "EQ":
    return 0
  return math.ceil(gap / step)


def _unwrap(module, condition, root, start):
  """Returns the comparison in a fusion, with its parameters substituted."""
  inner = module.computations.get(root.called("calls"))
  if inner is None or inner.root.opcode != "compare":
    return None, condition, start
  flat = dict(inner.instructions)
  for index, operand in enumerate(root.operands):
    parameter = inner.parameter(index)
    if parameter is not None and operand in condition.instructions:
      flat[parameter.name] = condition.instructions[operand]
  flat |= {k: v for k, v in condition.instructions.items() if k not in flat}
  return inner.root, Computation(condition.name, flat), start


def _index_read(computation: Computation, name: str) -> int | None:
  """Returns the index of `name` in the loop's state, or None."""
  for _ in range(8):
    instruction = computation.instructions.get(name)
    if instruction is None:
      return None
    if instruction.opcode == "get-tuple-element":
      return int(instruction.attribute("index"))
    if instruction.opcode in ("copy", "bitcast", "convert"):
      name = instruction.operands[0]
      continue
    return None
  return None


def _element(module, computation, instruction, index: int, bound: dict):
  """Returns the integer in element `index` of a tuple, or None."""
  for _ in range(8):
    if instruction is None:
      return None
    if instruction.opcode == "tuple":
      if index >= len(instruction.operands):
        return None
      return _value(module, computation, instruction.operands[index], bound)
    if instruction.opcode in ("copy", "opt-barrier", "optimization-barrier"):
      instruction = computation.instructions.get(instruction.operands[0])
      continue
    return None
  return None


def _value(module, computation, name: str, bound: dict, depth: int = 0):
  """Returns the integer that a scalar instruction yields, or None.

  Args:
    bound: {index in the loop's state, or ("parameter", index): value}.
  """
  instruction = computation.instructions.get(name)
  if instruction is None or depth > 12:
    return None
  of = lambda n: _value(module, computation, n, bound, depth + 1)
  operation = instruction.opcode
  if operation == "constant":
    try:
      return int(instruction.literal)
    except ValueError:
      return None
  if operation == "parameter":
    return bound.get(("parameter", int(instruction.literal)))
  if operation == "get-tuple-element":
    index = int(instruction.attribute("index"))
    source = computation.instructions.get(instruction.operands[0])
    if source is not None and source.opcode == "tuple":
      return of(source.operands[index])
    return bound.get(index)
  if operation in ("copy", "bitcast", "convert", "reshape"):
    return of(instruction.operands[0])
  if operation in ("add", "subtract", "multiply"):
    a, b = (of(n) for n in instruction.operands)
    if a is None or b is None:
      return None
    return {"add": a + b, "subtract": a - b, "multiply": a * b}[operation]
  if operation == "fusion":
    inner = module.computations[instruction.called("calls")]
    values = {
      ("parameter", i): of(n) for i, n in enumerate(instruction.operands)
    }
    return _value(module, inner, inner.root.name, values, depth + 1)
  return None


# Groups of devices


def read_groups(text: str, num_devices: int) -> list[list[int]]:
  """Returns the groups of devices of `replica_groups=TEXT`.

  There are three forms. {{0,1},{2,3}} lists groups; {} is one group of all
  devices. [2,2]<=[4] and [2,2]<=[2,2]T(1,0) reshape and transpose the ids 0, 1,
  ...; each row is a group. mesh['a'=2,'b'=2] {'b'} groups along named axes.
  """
  if text.startswith("mesh"):
    return _mesh_groups(text)
  if text.startswith("["):
    ids = _read_iota(text)
    return ids.reshape(-1, ids.shape[-1]).tolist()
  groups = re.findall(r"\{([\d,\s]+)\}", text)
  if not groups:
    return [list(range(num_devices))]
  return [[int(i) for i in group.split(",")] for group in groups]


def read_pairs(text: str) -> list[tuple[int, int]]:
  """Returns (source, target) of `source_target_pairs=TEXT`."""
  return [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", text)]


def _read_iota(text: str) -> np.ndarray:
  found = re.match(r"\[([\d,]+)\](?:<=\[([\d,]+)\](?:T\(([\d,]+)\))?)?", text)
  assert found, f"groups of devices in a form that is not known: {text}"
  numbers = lambda t: [int(n) for n in t.split(",")]
  dims = numbers(found[1])
  source = numbers(found[2]) if found[2] else [math.prod(dims)]
  ids = np.arange(math.prod(source)).reshape(source)
  if found[3]:
    ids = ids.transpose(numbers(found[3]))
  return ids.reshape(dims)


def _mesh_groups(text: str) -> list[list[int]]:
  axes = re.findall(r"'([^']+)'=(\d+)", text)
  names, sizes = [a for a, _ in axes], [int(n) for _, n in axes]
  order = re.search(r"device_ids=\((.*?)\)(?=[ ,]|$)", text)
  if order and order[1].startswith("["):
    ids = _read_iota(order[1]).reshape(sizes)
  elif order:
    ids = np.array([int(n) for n in order[1].split(",")]).reshape(sizes)
  else:
    ids = np.arange(math.prod(sizes)).reshape(sizes)
  listed = text[text.rindex("{") + 1 : text.rindex("}")]
  # A part of an axis is written 'a':(before)size.
  for name, before, part in re.findall(r"'([^']+)':\((\d+)\)(\d+)", listed):
    at, before, part = names.index(name), int(before), int(part)
    after = sizes[at] // before // part
    sizes[at : at + 1] = [before, part, after]
    names[at : at + 1] = [f"{name}<", f"{name}:{before},{part}", f"{name}>"]
    listed = listed.replace(
      f"'{name}':({before}){part}", f"'{name}:{before},{part}'"
    )
    ids = ids.reshape(sizes)
  wanted = [names.index(n) for n in re.findall(r"'([^']+)'", listed)]
  others = [i for i in range(len(names)) if i not in wanted]
  size = math.prod(sizes[i] for i in wanted)
  return ids.transpose(others + wanted).reshape(-1, size).tolist()
