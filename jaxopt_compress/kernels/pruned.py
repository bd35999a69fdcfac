"""Weights without their zeros: `PackedArray`s that are streams, see `sparse_layout`.

Where half or more of the numbers are zero, and what is left takes so much less memory
that reading it is faster.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.kernels import matrix as matrix_lib
from jaxopt_compress.kernels import packed
from jaxopt_compress.kernels import sparse_layout
from jaxopt_compress.pruning import masked

# So many must be zero (half, where rounding made a few more or fewer), and so much
# of the memory may be left.
_ZEROS = 0.48
_WORTH = 0.8


def of_codes(dense: packed.PackedArray) -> packed.PackedArray | None:
  """A packed leaf without its zeros; None where it has few, or is not of bytes."""
  how = packed.LAYOUT[dense.format]
  if how.name != 'int8' or dense.zero is not None:
    return None
  numbers = np.asarray(jnp.round(dense.numbers() / how.unit)).astype(np.int8)
  if np.mean(numbers == 0) < _ZEROS:
    return None
  thin = _stream(numbers, dense)
  worth = array.nbytes(thin) < _WORTH * array.nbytes(dense)
  return thin if worth else None


def of_floats(
  w: np.ndarray, matrix: matrix_lib.Matrix, stack: int
) -> packed.PackedArray | None:
  """Floats without their zeros; None where that saves little.

  Args:
    w: [stack..., *matrix.shape] float32 or bfloat16.
    matrix: how its axes are those of matrices.
    stack: how many axes come before those.
  """
  ones = (1,) * max(len(matrix.order), 3)
  dense = packed.PackedArray(
    jnp.zeros((*w.shape[:stack], *ones), jnp.uint8),
    *(None,) * 6,
    '',
    jnp.dtype(w.dtype),
    matrix,
    matrix.k,
  )
  thin = _stream(np.asarray(matrix.to_matrix(jnp.asarray(w))), dense)
  return thin if array.nbytes(thin) < _WORTH * w.nbytes else None


def is_pruned(leaf: Any) -> bool:
  """Whether a leaf is an array of floats, many of them zero, or a mask over one."""
  if array.is_compressed(leaf) and not isinstance(leaf, masked.Masked):
    return False
  if array.is_compressed(leaf) and array.is_compressed(leaf.value):
    return False
  floats = getattr(leaf, 'dtype', None) in (jnp.float32, jnp.bfloat16)
  if not floats or leaf.ndim < 2:
    return False
  w = np.asarray(array.materialize(leaf))
  return w.size > 0 and np.mean(w == 0) >= _ZEROS


def _stream(numbers, dense):
  """`dense` with [stack..., k, n] numbers in streams."""
  stream, offsets, how = sparse_layout.to_streams(numbers, dense.group)
  lead, ndim = dense.stack, len(dense.matrix.order)
  full = lambda p: jnp.asarray(p).reshape(
    *lead, *(1,) * (max(ndim, 1) - 1), p.shape[-1]
  )
  return dataclasses.replace(
    dense, payload=full(stream), offsets=full(offsets), sparse=how
  )
