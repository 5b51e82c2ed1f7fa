"""Pallas kernels for GPUs that multiply a few rows by an int4 matrix.

XLA would write the dequantized matrix, nine times the bytes, for each token.
Here a program reads the integers of some outputs in place. The reference is the
matmul with the dequantized matrix in quantized.py.

- One row: converting each integer to a float would take longer than reading it.
  So the row is split into two base-254 digits, as on a CPU (quantized.py), but
  relative to the largest of each group, and one instruction multiplies four
  integers.
- More rows: on tensor cores, in the dtype of the rows. A byte is 16 * high +
  low, so a matmul with the byte and one with its high half give both halves.

Tiles, warps and stages were tried on an H200 with the matrices of an 8B model
(docs/performance.md).
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

# Number of rows of a tensor-core matmul, the fewest it takes.
ROWS = 16
# Number of inputs whose integers a thread reads at once, as four words.
PIECE = 16


def can_multiply(num_rows: int, values_GFC) -> bool:
  """Returns whether the kernels' tiles divide the matrix."""
  _, F, C = values_GFC.shape
  return num_rows <= ROWS and F % 32 == 0 and C in (32, 64)


def multiply(x_LGC, values_GFC, scale_GF, interpret: bool = False):
  """Returns y_LF in float32, with twice as many outputs as values_GFC has rows.

  Args:
    x_LGC: up to 16 rows.
    values_GFC, scale_GF: of a quantized.Quantized in int4.
    interpret: run in Pallas' interpreter, on any platform.
  """
  if len(x_LGC) == 1:
    return _multiply_one(x_LGC[0], values_GFC, scale_GF, interpret)[None]
  return _multiply_few(x_LGC, values_GFC, scale_GF, interpret)


def _multiply_one(x_GC, values_GFC, scale_GF, interpret: bool):
  G, F, C = values_GFC.shape
  # Few outputs: more programs, and more threads in each.
  outputs, most, warps = (4, 32, 8) if F <= 4096 else (8, 16, 4)
  groups = math.gcd(G, most)
  pieces = C // PIECE
  digits_2GC, unit_G = _to_digits(x_GC)
  words = lambda a: jax.lax.bitcast_convert_type(
    a.reshape(*a.shape[:-1], pieces, 4, 4), jnp.int32
  )

  def kernel(x_ref, unit_ref, values_ref, scale_ref, y_ref):
    at = pl.ds(pl.program_id(0) * outputs, outputs)

    def add(i, sums):
      own = pl.ds(i * groups, groups)
      # [groups, outputs, pieces, 4]; a word holds bytes of four inputs.
      bytes_ = plgpu.load(values_ref.at[own, at])
      unit_G1 = plgpu.load(unit_ref.at[own])[:, None]
      x1, x2 = (plgpu.load(x_ref.at[_at(i), own])[:, None] for i in range(2))
      # 16 times each integer; the low half is stored plus 8.
      low = ((bytes_ << 4) & _repeat(0xF0)) ^ _repeat(0x80)
      new = []
      for half, numbers in enumerate((low, bytes_ & _repeat(0xF0))):
        dots = [_dot4(numbers, x, interpret).sum(3) for x in (x1, x2)]
        y_GFP = (dots[0] * 254 + dots[1]).astype(jnp.float32)
        scale_GF = plgpu.load(scale_ref.at[own, _at(half), at]) * unit_G1
        new.append(sums[half] + y_GFP * scale_GF[:, :, None])
      return tuple(new)

    zero = jnp.zeros((groups, outputs, pieces), jnp.float32)
    sums = jax.lax.fori_loop(0, G // groups, add, (zero, zero))
    for half, y_GFP in enumerate(sums):
      y_F = y_GFP.sum(2).sum(0) * jnp.float32(1 / (16 * 254))
      plgpu.store(y_ref.at[_at(half), at], y_F)

  y_2F = pl.pallas_call(
    kernel,
    out_shape=jax.ShapeDtypeStruct((2, F), jnp.float32),
    grid=(F // outputs,),
    compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=2),
    interpret=interpret,
    name="gemv_int4",
  )(words(digits_2GC), unit_G, words(values_GFC), scale_GF.reshape(G, 2, F))
  return y_2F.reshape(-1)


def _to_digits(x_GC):
  """Returns int8 digits_2GC and unit_G; x is (d_0 + d_1 / 254) * unit."""
  x_GC = x_GC.astype(jnp.float32)
  unit_G1 = jnp.abs(x_GC).max(-1, keepdims=True) / 127
  x_GC /= jnp.where(unit_G1 == 0, 1, unit_G1)
  digit_GC = jnp.round(x_GC)
  digits = digit_GC, jnp.round(254 * (x_GC - digit_GC))
  return jnp.stack(digits).astype(jnp.int8), unit_G1[:, 0]


def _dot4(a, b, interpret: bool):
  """Returns the sums of products of the four bytes of each word, int32."""
  a, b = jnp.broadcast_arrays(a, b)
  if interpret:
    byte = lambda word, k: (word << (24 - 8 * k)) >> 24
    return sum(byte(a, k) * byte(b, k) for k in range(4))
  return plgpu.elementwise_inline_asm(
    "dp4a.s32.s32 $0, $1, $2, 0;",
    args=[a, b],
    constraints="=r,r,r",
    pack=1,
    result_shape_dtypes=[jax.ShapeDtypeStruct(a.shape, jnp.int32)],
  )[0]


def _repeat(byte: int):
  """Returns a word of four equal bytes, int32."""
  return jnp.int32(int.from_bytes([byte] * 4, "little", signed=True))


def _at(index: int):
  """Returns a constant index in a form that the interpreter accepts."""
  return jax.lax.full((), index, jnp.int32)


def _multiply_few(x_LGC, values_GFC, scale_GF, interpret: bool):
  L, G, C = x_LGC.shape
  F = values_GFC.shape[1]
  # Programs split the inputs too, and write partial sums. With many outputs
  # there are fewer parts: the sums can be as many bytes as the matrix.
  outputs, parts = math.gcd(F, 128), math.gcd(G, 16 if F <= 4096 else 8)
  own = G // parts
  # N = 16 rows.
  x_NGC = jnp.pad(x_LGC, ((0, ROWS - L), (0, 0), (0, 0)))
  sum_NG = 8 * x_NGC.astype(jnp.float32).sum(2)

  def kernel(x_ref, sum_ref, values_ref, scale_ref, y_ref):
    at = pl.ds(pl.program_id(0) * outputs, outputs)
    part = pl.program_id(1)

    def add(i, sums):
      g = part * own + i
      bytes_FC = plgpu.load(values_ref.at[g, at])
      x_NC = plgpu.load(x_ref.at[:, g])
      high_FC = bytes_FC & jnp.int8(-16)
      both_NF, high_NF = (
        jax.lax.dot_general(
          x_NC,
          numbers_FC.astype(x_NC.dtype),
          (((1,), (1,)), ((), ())),
          # Float32 stays float32: a tensor core would round it to 10 bits.
          precision="highest" if x_NC.dtype == jnp.float32 else None,
          preferred_element_type=jnp.float32,
        )
        for numbers_FC in (bytes_FC, high_FC)
      )
      low_NF = both_NF - high_NF - plgpu.load(sum_ref.at[:, g])[:, None]
      scales = (plgpu.load(scale_ref.at[g, _at(i), at]) for i in range(2))
      return tuple(
        total + y_NF * scale_F[None]
        for total, y_NF, scale_F in zip(
          sums, (low_NF, high_NF), scales, strict=True
        )
      )

    zero_NF = jnp.zeros((ROWS, outputs), jnp.float32)
    low_NF, high_NF = jax.lax.fori_loop(0, own, add, (zero_NF, zero_NF))
    plgpu.store(y_ref.at[part, _at(0), :, at], low_NF)
    plgpu.store(y_ref.at[part, _at(1), :, at], high_NF / 16)

  y_2NF = pl.pallas_call(
    kernel,
    out_shape=jax.ShapeDtypeStruct((parts, 2, ROWS, F), jnp.float32),
    grid=(F // outputs, parts),
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=4),
    interpret=interpret,
    name="gemm_int4",
  )(x_NGC, sum_NG, values_GFC, scale_GF.reshape(G, 2, F)).sum(0)
  return y_2NF[:, :L].swapaxes(0, 1).reshape(L, -1)
