"""Grouped matmul: rows sorted by group, each group with its own matrix.

There are P rows and E groups. Where XLA has no kernel for this, it multiplies
every row with every group's matrix, E times the work: always on a CPU, and for
the gradient of the matrices on a TPU (libtpu of jax 0.10.2 and 0.12). Here a
loop over blocks of rows of one group does the work that is needed, plus part of
a block for each group.
"""

import functools
import math

import jax
import jax.numpy as jnp

# Largest block, in rows: on a CPU what fits its cache, elsewhere enough that
# accumulating into the E gradients costs little beside the matmuls.
CPU_BLOCK, BLOCK = 128, 1024
# Smallest block, where there are enough rows.
MIN_BLOCK = 32


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def take_rows(x_TD, index_P, inverse_P, copies: int):
  """Returns x_TD with each row repeated `copies` times, then permuted.

  Backward gathers as well: a scatter would add in no fixed order on a GPU.

  Args:
    index_P: the permutation of the P = T * copies rows.
    inverse_P: its inverse.
  """
  return x_TD[index_P // copies]


def _take_forward(x_TD, index_P, inverse_P, copies):
  return x_TD[index_P // copies], inverse_P


def _take_backward(copies, inverse_P, dy_PD):
  dx_TAD = dy_PD[inverse_P].reshape(-1, copies, dy_PD.shape[-1])
  return dx_TAD.sum(1), None, None


take_rows.defvjp(_take_forward, _take_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def take_some(x_TD, place_S, slot_P, copies: int):
  """Returns x_TD with rows repeated, then moved to slots; empty ones are zero.

  As take_rows, but some of the P = T * copies rows may have no slot, and some
  of the S slots no row.

  Args:
    place_S: index of each slot's row among the P rows; P for an empty slot.
    slot_P: slot of each row; S or more for a row without one.
  """
  return _take_or_zero(x_TD, place_S // copies)


def _take_or_zero(x_TD, index):
  return x_TD.at[index].get(mode="fill", fill_value=0)


def _some_forward(x_TD, place_S, slot_P, copies):
  return _take_or_zero(x_TD, place_S // copies), slot_P


def _some_backward(copies, slot_P, dy_SD):
  dx_PD = _take_or_zero(dy_SD, slot_P)
  return dx_PD.reshape(-1, copies, dy_SD.shape[-1]).sum(1), None, None


take_some.defvjp(_some_forward, _some_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def grouped(x_PD, w_EDF, sizes_E, grad_dtype: str, dim: int, axes: tuple):
  """Returns y_PF: the first sizes[0] rows times w[0], the next times w[1], ...

  Rows beyond the groups are zero. As in `matmul`, the gradient of w is computed
  and summed over `axes` in grad_dtype.

  Args:
    x_PD: the rows; or x_ECD, E groups of C rows, with sizes_E None: the result
      is then y_ECF.
    w_EDF: the parameter.
    dim, axes: the dim of w_EDF that is sharded, and the mesh axes it is over.
  """
  return _grouped_forward(x_PD, w_EDF, sizes_E, grad_dtype, dim, axes)[0]


def _grouped_forward(x_PD, w_EDF, sizes_E, grad_dtype, dim, axes):
  whole_EDF = _whole(w_EDF, x_PD.dtype, dim, axes)
  return _times(x_PD, whole_EDF, sizes_E), (x_PD, w_EDF, sizes_E)


def _grouped_backward(grad_dtype, dim, axes, saved, dy_PF):
  x_PD, w_EDF, sizes_E = saved
  whole_EDF = _whole(w_EDF, x_PD.dtype, dim, axes)
  dx_PD = _times(dy_PF, whole_EDF.swapaxes(1, 2), sizes_E)
  if sizes_E is None:
    dw_EDF = jnp.einsum(
      "ECD,ECF->EDF", x_PD, dy_PF, preferred_element_type=grad_dtype
    )
  else:
    outer = functools.partial(outer_by_blocks, dtype=grad_dtype)
    dw_EDF = jax.lax.platform_dependent(
      x_PD,
      dy_PF,
      sizes_E,
      cpu=functools.partial(outer, most=CPU_BLOCK),
      default=functools.partial(outer, most=BLOCK),
    )
  if axes:
    dw_EDF = jax.lax.psum_scatter(
      dw_EDF, axes, scatter_dimension=dim, tiled=True
    )
  return dx_PD, dw_EDF.astype(w_EDF.dtype), None


grouped.defvjp(_grouped_forward, _grouped_backward)


def _whole(w_EDF, dtype, dim: int, axes: tuple):
  w_EDF = w_EDF.astype(dtype)
  if axes:
    w_EDF = jax.lax.all_gather(w_EDF, axes, axis=dim, tiled=True)
  return w_EDF


def _times(x_PD, w_EDF, sizes_E):
  if sizes_E is None:
    return jnp.einsum("ECD,EDF->ECF", x_PD, w_EDF)
  y_PF = jax.lax.platform_dependent(
    x_PD, w_EDF, sizes_E, cpu=times_by_blocks, default=jax.lax.ragged_dot
  )
  # Kernels leave undefined values in rows of no group.
  is_in_P = jnp.arange(x_PD.shape[0]) < sizes_E.sum()
  return jnp.where(is_in_P[:, None], y_PF, 0)


# Loops over blocks of rows of one group, where XLA has no kernel (see the top).


def times_by_blocks(x_PD, w_EDF, sizes_E):
  """Returns ragged_dot(x_PD, w_EDF, sizes_E), except in rows of no group."""
  P, F = x_PD.shape[0], w_EDF.shape[2]
  size, total, block_of = _blocks(P, sizes_E, CPU_BLOCK)
  x_PD = jnp.pad(x_PD, ((0, size), (0, 0)))

  # A block's rows beyond its group are overwritten by the next block.
  def one(i, y_PF):
    e, start, _ = block_of(i)
    x = jax.lax.dynamic_slice_in_dim(x_PD, start, size)
    w_DF = jax.lax.dynamic_index_in_dim(w_EDF, e, keepdims=False)
    return jax.lax.dynamic_update_slice_in_dim(y_PF, x @ w_DF, start, 0)

  y_PF = jnp.zeros((P + size, F), x_PD.dtype)
  return jax.lax.fori_loop(0, total, one, y_PF)[:P]


def outer_by_blocks(x_PD, dy_PF, sizes_E, dtype, most=CPU_BLOCK):
  """Returns dw_EDF, the sum over each group's rows of x times dy.

  Args:
    most: largest number of rows of a block.
  """
  E, D, F = sizes_E.size, x_PD.shape[1], dy_PF.shape[1]
  size, total, block_of = _blocks(x_PD.shape[0], sizes_E, most)
  x_PD, dy_PF = (jnp.pad(a, ((0, size), (0, 0))) for a in (x_PD, dy_PF))

  def one(i, dw_EDF):
    e, start, end = block_of(i)
    x = jax.lax.dynamic_slice_in_dim(x_PD, start, size)
    x = jnp.where((start + jnp.arange(size) < end)[:, None], x, 0)
    dy = jax.lax.dynamic_slice_in_dim(dy_PF, start, size)
    new = jnp.einsum("PD,PF->DF", x, dy, preferred_element_type=dtype)
    old = jax.lax.dynamic_index_in_dim(dw_EDF, e, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(dw_EDF, old + new, e, 0)

  dw_EDF = jnp.zeros((E, D, F), dtype)
  return jax.lax.fori_loop(0, total, one, dw_EDF)


def _blocks(num_rows: int, sizes_E, most: int):
  """Returns (rows of a block, number of blocks, block -> (e, start, end))."""
  size = 2 ** round(math.log2(max(1, num_rows / sizes_E.size)))
  size = min(max(size, MIN_BLOCK), most, num_rows)
  blocks_E = -(-sizes_E // size)
  last_E, end_E = jnp.cumsum(blocks_E), jnp.cumsum(sizes_E)

  def block_of(i):
    e = (last_E <= i).sum()
    within = i - (last_E[e] - blocks_E[e])
    return e, end_E[e] - sizes_E[e] + within * size, end_E[e]

  return size, last_E[-1], block_of
