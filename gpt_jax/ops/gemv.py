"""One row times a matrix in int4 on a GPU, as a Pallas kernel.

XLA would write the dequantized matrix, nine times the bytes, for each token.
Here a program takes some outputs, reads their integers in place and multiplies
in float32. Its twin is the product with the dequantized matrix in quantized.py.

Not for int8 and not for several rows: XLA's own products are faster there
(docs/performance.md).
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

# Outputs of a program in each half of F, and inputs that it reads at a time.
OUTPUTS, INPUTS = 16, 512


def can_multiply(values_GFC) -> bool:
  """Returns whether the kernel's tiles divide the matrix."""
  G, F, C = values_GFC.shape
  return F % OUTPUTS == 0 and INPUTS % C == 0 and (G * C) % INPUTS == 0


def multiply(x_GC, values_GFC, scale_GF, interpret: bool = False):
  """Returns y_F in float32, twice as many outputs as values_GFC has rows.

  Args:
    x_GC: the row.
    values_GFC, scale_GF: of a quantized.Quantized in int4.
    interpret: run in Pallas' interpreter, on any platform.
  """
  G, F, _ = values_GFC.shape
  y_HF = pl.pallas_call(
    _kernel,
    out_shape=jax.ShapeDtypeStruct((2, F), jnp.float32),
    grid=(F // OUTPUTS,),
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
    interpret=interpret,
    name="gemv_int4",
  )(x_GC.astype(jnp.float32), values_GFC, scale_GF.reshape(G, 2, F))
  return y_HF.reshape(-1)


def _kernel(x_ref, values_ref, scale_ref, y_ref):
  outputs = pl.ds(pl.program_id(0) * OUTPUTS, OUTPUTS)
  G, C = x_ref.shape
  count = INPUTS // C

  def add(i, sums):
    groups = pl.ds(i * count, count)
    bytes_GFC = plgpu.load(values_ref.at[groups, outputs]).astype(jnp.int32)
    x_GC = plgpu.load(x_ref.at[groups])
    scale_GHF = plgpu.load(scale_ref.at[groups, :, outputs])
    new = []
    for half, numbers_GFC in enumerate([(bytes_GFC & 15) - 8, bytes_GFC >> 4]):
      y_GF = (numbers_GFC.astype(jnp.float32) * x_GC[:, None]).sum(2)
      # A program cannot index its arrays: the other half's scale is masked.
      is_half = jax.lax.broadcasted_iota(jnp.int32, scale_GHF.shape, 1) == half
      scale_GF = jnp.where(is_half, scale_GHF, 0).sum(1)
      new.append(sums[half] + (y_GF * scale_GF).sum(0))
    return tuple(new)

  zero_F = jnp.zeros(OUTPUTS, jnp.float32)
  sums = jax.lax.fori_loop(0, G // count, add, (zero_F, zero_F))
  for half, y_F in enumerate(sums):
    plgpu.store(y_ref.at[pl.ds(half, 1), outputs], y_F[None])
