"""Counts what a compiled step does: FLOPs, HBM bytes, bytes between chips.

All figures are for one device and one step. Where the HLO is ambiguous, the
smaller figure is taken, so that the roofline remains an upper bound on speed.
"""

import dataclasses
import math
import re

import numpy as np

from gpt_jax.lab.plan import collectives, hlo
from gpt_jax.lab.plan.collectives import Collective

# Opcodes that move no bytes, or whose bytes are counted where they are used.
FREE = (
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "while",
  "conditional",
  "call",
  "opt-barrier",
  "optimization-barrier",
  "after-all",
  "partition-id",
  "replica-id",
  "iota",
  "add-dependency",
  "send-done",
  "recv",
  "recv-done",
)
_SLICES = ("dynamic-slice", "slice", "gather")
# Custom calls whose targets begin with these read and write HBM.
KERNELS = ("tpu_custom_call", "__cublas", "__cudnn", "__gpu$xla.gpu.triton")


@dataclasses.dataclass(frozen=True)
class Op:
  """One instruction of the program, with the cost of each execution.

  Attributes:
    count: executions per step.
    flops: FLOPs of its matmuls in one execution.
    bytes: bytes read from and written to HBM in one execution.
    is_async: whether other ops run at the same time.
  """

  name: str
  op_name: str
  count: float
  flops: float
  bytes: float
  is_async: bool


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a step does on one device.

  Attributes:
    unknown_loops: names of loops whose trip count could not be read. Their
      bodies are counted once.
  """

  ops: list[Op]
  collectives: list[Collective]
  unknown_loops: list[str]

  @property
  def flops(self) -> float:
    return sum(op.count * op.flops for op in self.ops)

  @property
  def hbm_bytes(self) -> float:
    return sum(op.count * op.bytes for op in self.ops)


def measure(module: hlo.Module, num_devices: int, causal: float) -> Cost:
  """Returns the Cost of a module.

  Args:
    causal: the fraction of all scores that attention kernels must compute.
  """
  ops, found, unknown = [], {}, []

  def visit(name: str, count: float):
    computation = module.computations[name]
    for instruction in computation.instructions.values():
      opcode = instruction.opcode
      if opcode == "while":
        trips = hlo.trip_count(module, instruction, computation)
        if not trips:
          unknown.append(instruction.name)
        visit(instruction.called("body"), count * max(trips, 1))
      elif opcode == "call":
        visit(instruction.called("to_apply"), count)
      elif opcode == "conditional":
        branches = re.findall(
          r"%([\w.\-]+)",
          instruction.attribute("branch_computations")
          or instruction.attribute("true_computation")
          + instruction.attribute("false_computation"),
        )
        # Which branch is taken is unknown, so all are weighted equally. Ring
        # attention does take each of its two branches half of the time.
        for branch in branches:
          visit(branch, count / len(branches))
      if opcode in FREE:
        continue
      for kind, key, entry in collectives.find(
        module, computation, instruction, num_devices
      ):
        found.setdefault((name, key), (kind, count, *entry))
      ops.append(
        Op(
          name=instruction.name,
          op_name=instruction.op_name,
          count=count,
          flops=_flops(module, computation, instruction, causal),
          bytes=_hbm_bytes(module, computation, instruction),
          is_async=opcode.endswith(("-start", "-done")),
        )
      )

  visit(module.entry, 1)
  return Cost(ops, [Collective(*e) for e in found.values()], unknown)


# FLOPs


def _flops(module, computation, instruction, causal: float) -> float:
  opcode = instruction.opcode
  if opcode == "dot":
    return _dot_flops(computation, instruction)
  if opcode == "convolution":
    return _convolution_flops(computation, instruction)
  if opcode in hlo.FUSIONS:
    inner = module.computations.get(instruction.called("calls"))
    if inner is None:
      return 0.0
    parts = inner.instructions.values()
    return sum(_flops(module, inner, i, causal) for i in parts)
  if opcode == "custom-call":
    target = hlo.target_of(instruction)
    if target.startswith("__cublas"):
      return _cublas_flops(computation, instruction)
    if target.startswith("__cudnn$fmha"):
      return _cudnn_flops(computation, instruction) * causal
    return _kernel_flops(computation, instruction) * causal
  return 0.0


def _cublas_flops(computation, instruction) -> float:
  """Returns the FLOPs of a matmul by cuBLAS."""
  left = _dims(computation, instruction.operands[0])
  listed = re.search(
    r'"lhs_contracting_dimensions":\s*\[(.*?)\]', instruction.attributes
  )
  assert listed, f"no contracted dims in: {instruction.attributes[:200]}"
  axes = [int(a) for a in re.findall(r"\d+", listed[1])]
  contracted = math.prod(left[a] for a in axes)
  return 2.0 * math.prod(instruction.arrays[0].dims) * contracted


def _cudnn_flops(computation, instruction) -> float:
  """Returns FLOPs of cuDNN's attention over all scores.

  Forward has 2 matmuls, backward 5, of which one recomputes scores.
  """
  text = instruction.attributes
  listed = re.search(
    r'"intermediate_tensor_shape":\s*\{.*?"dimensions":\s*\[(.*?)\]', text
  )
  assert listed, f"no shape of scores in: {text[:200]}"
  scores = math.prod(int(n) for n in re.findall(r"\d+", listed[1]))
  width = _dims(computation, instruction.operands[0])[-1]
  products = 5 if "Backward" in hlo.target_of(instruction) else 2
  return 2.0 * scores * width * products


def _dims(computation, name: str) -> tuple[int, ...]:
  return computation.instructions[name].arrays[0].dims


def _dot_flops(computation, instruction) -> float:
  left = _dims(computation, instruction.operands[0])
  axes = re.findall(r"\d+", instruction.attribute("lhs_contracting_dims"))
  contracted = math.prod(left[int(a)] for a in axes)
  return 2.0 * math.prod(instruction.arrays[0].dims) * contracted


def _convolution_flops(computation, instruction) -> float:
  """Returns FLOPs of a convolution, which is how TPUs write matmuls.

  Batch dims become window dims. Multiplications by padding and by the zeros of
  dilation are not counted, because the hardware skips them.
  """
  left, right = (_dims(computation, n) for n in instruction.operands[:2])
  out = instruction.arrays[0].dims
  label = instruction.attribute("dim_labels")
  of_left, rest = label.split("_")
  of_right, of_out = rest.split("->")
  window = _read_window(instruction.attribute("window"))
  flops = 2.0 * right[of_right.index("i")]
  flops *= out[of_out.index("b")] * out[of_out.index("f")]
  for spatial, (size, stride, low, dilate, right_dilate) in window.items():
    mark = str(spatial)
    flops *= _count_pairs(
      out[of_out.index(mark)],
      left[of_left.index(mark)],
      size,
      stride,
      low,
      dilate,
      right_dilate,
    )
  for mark in re.findall(r"\d", of_out):
    if int(mark) not in window:
      flops *= out[of_out.index(mark)]
  return flops


def _read_window(text: str) -> dict[int, tuple[int, ...]]:
  """Returns {spatial dim: (size, stride, low padding, dilations)}."""
  words = dict(re.findall(r"(\w+)=([\dx_\-]+)", text))
  if "size" not in words:
    return {}
  sizes = [int(n) for n in words["size"].split("x")]
  read = lambda key, default: [
    int(n) for n in words.get(key, "x".join([default] * len(sizes))).split("x")
  ]
  pads = words.get("pad", "x".join(["0_0"] * len(sizes))).split("x")
  low = [int(p.split("_")[0]) for p in pads]
  columns = zip(
    sizes,
    read("stride", "1"),
    low,
    read("lhs_dilate", "1"),
    read("rhs_dilate", "1"),
    strict=True,
  )
  return dict(enumerate(columns))


def _count_pairs(out, size_in, size, stride, low, dilate, right_dilate) -> int:
  """Returns the number of (output, kernel tap) pairs that read an input.

  The others read padding, or zeros that dilation inserts.
  """
  at = np.arange(out)[:, None] * stride - low
  at = at + np.arange(size)[None, :] * right_dilate
  is_real = (at >= 0) & (at <= (size_in - 1) * dilate) & (at % dilate == 0)
  return int(is_real.sum())


def _kernel_flops(computation, instruction) -> float:
  """Returns FLOPs of an attention kernel over all scores.

  Forward has 2 matmuls, the gradient of queries 3, that of keys and values 4,
  all gradients in one kernel 5 (Dao et al. 2022, which recomputes scores).
  """
  is_triton = hlo.target_of(instruction) == "__gpu$xla.gpu.triton"
  if "tpu_custom_call" not in instruction.attributes and not is_triton:
    return 0.0
  name = instruction.op_name.lower() + instruction.name.lower()
  if not re.search(r"splash|flash|attention", name):
    return 0.0
  arrays = [
    computation.instructions[n].arrays[0]
    for n in instruction.operands
    if n in computation.instructions
    and len(computation.instructions[n].arrays) == 1
  ]
  # Integer operands say which blocks to skip.
  shapes = [
    a.dims
    for a in arrays
    if a.dtype in ("bf16", "f16", "f32") and len(a.dims) >= 3
  ]
  if len(shapes) < 2:
    return 0.0
  queries, keys = shapes[0], shapes[1]
  rows = math.prod(queries[:-2])
  one = 2.0 * rows * queries[-2] * keys[-2] * queries[-1]
  if is_triton:  # ops/flash.py: q_BTNH, k_BTKH
    one = 2.0 * math.prod(queries) * keys[1]
  products = 2
  if "dkv" in name:
    fused = len(instruction.arrays) >= 3 or "fused" in name
    products = 5 if fused else 4
  elif "dq" in name:
    products = 3
  return one * products


# Bytes of HBM


def _hbm_bytes(module, computation, instruction) -> float:
  """Returns bytes that an op reads from and writes to HBM, each array once."""
  opcode = instruction.opcode
  if opcode in (*FREE, "send") or opcode.endswith("-done"):
    return 0.0
  if opcode in collectives.KINDS or opcode.startswith(collectives.KINDS):
    return 0.0
  if opcode == "custom-call" and not hlo.target_of(instruction).startswith(
    KERNELS
  ):
    return 0.0
  inner = None
  if opcode in hlo.FUSIONS:
    inner = module.computations.get(instruction.called("calls"))
    if inner is None or collectives.is_in(inner):
      return 0.0
  total = 0.0
  for index, name in enumerate(instruction.operands):
    source = computation.instructions.get(name)
    if source is None or len(source.arrays) != 1:
      continue
    array = source.arrays[0]
    if array.space == 0:
      total += _read_bytes(instruction, inner, index, array)
  if opcode in ("copy-start", "slice-start"):
    # The result is (destination, source, context): count the destination.
    moved = instruction.arrays[0]
    is_written = moved.space == 0
    return total / max(len(instruction.operands), 1) + (
      moved.bytes if is_written and opcode == "copy-start" else 0.0
    )
  return total + _written_bytes(instruction, inner)


def _read_bytes(instruction, inner, index: int, array) -> float:
  if inner is None:
    if instruction.opcode in _SLICES:
      return instruction.bytes if index == 0 else 0.0
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
      return 0.0 if index == 0 else array.bytes
    return array.bytes
  parameter = inner.parameter(index)
  if parameter is None:
    return 0.0
  users, read = inner.users(), 0.0
  waiting = [parameter.name]
  while waiting:
    name = waiting.pop()
    for user in users.get(name, []):
      if user.opcode in ("bitcast", "copy", "reshape"):
        waiting.append(user.name)
      elif user.opcode in _SLICES and user.operands[0] == name:
        read += user.bytes
      elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
        continue
      else:
        return array.bytes
  return min(read, array.bytes)


def _written_bytes(instruction, inner) -> float:
  outputs, arrays = [instruction], instruction.arrays
  if inner is not None:
    root = inner.root
    names = root.operands if root.opcode == "tuple" else [root.name]
    outputs = [inner.instructions[n] for n in names]
    if root.opcode == "custom-call":
      return _results_bytes(root)
    if instruction.opcode == "fusion-start":
      # The result is (operands, results, context): only results are written.
      arrays = arrays[-1 - len(outputs) : -1]
    if len(outputs) != len(arrays):
      return 0.0
  elif instruction.is_tuple:
    return _results_bytes(instruction)
  total = 0.0
  owner = inner.instructions if inner is not None else None
  for array, output in zip(arrays, outputs, strict=True):
    if array.space != 0:
      continue
    while owner and output.opcode == "bitcast" and output.operands[0] in owner:
      output = owner[output.operands[0]]
    if output.opcode == "dynamic-update-slice" and owner is not None:
      total += owner[output.operands[1]].bytes
    elif output.opcode == "dynamic-update-slice":
      continue  # the update was counted when it was read
    elif output.opcode != "parameter":
      total += array.bytes
  return total


def _results_bytes(instruction) -> float:
  """Returns bytes of results in HBM, without a GPU library's workspace."""
  is_library = hlo.target_of(instruction).startswith("__cu")
  return sum(
    a.bytes
    for a in instruction.arrays
    if a.space == 0 and not (is_library and a.dtype in ("s8", "u8"))
  )
