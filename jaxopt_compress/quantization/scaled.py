"""Block-scaled products that some hardware has: MXFP8.

`jax.nn.scaled_matmul` is lowered on NVIDIA GPUs, where XLA runs it natively from
Blackwell on and expands it elsewhere. Other backends multiply what the codes stand
for, which is the definition. So do all for NVFP4: on an H100 (jax 0.11.2) a network's
results through `scaled_matmul` were not those of the definition, for MXFP8 they were.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.quantization import product
from jaxopt_compress.quantization import qarray

# Entries of a block.
_BLOCK = 32


def suits(a: qarray.QArray, b: qarray.QArray, d: product.Dims) -> bool:
  """Whether `scaled_matmul` computes the product of two leaves."""
  if len(d.contracting[0]) != 1:
    return False
  return all(
    _suits(q, axes[0]) for q, axes in zip((a, b), d.contracting, strict=True)
  )


def _suits(q, axis):
  return (
    q.format in ('e4m3', 'e5m2')
    and q.scale.dtype == jnp.float8_e8m0fnu
    and q.zero is None
    and q.blocks == ((axis - q.ndim, _BLOCK),)
    and q.shape[axis] % _BLOCK == 0
    and all(
      m == n
      for i, (m, n) in enumerate(zip(q.scale.shape, q.shape, strict=True))
      if i != axis
    )
  )


def multiply(a: qarray.QArray, b: qarray.QArray, d: product.Dims, dense):
  """The product, float32: natively on NVIDIA GPUs, `dense(a, b)` elsewhere."""

  def native(a, b):
    (x, x_scale), (y, y_scale) = _matrix(a, d, 0), _matrix(b, d, 1)
    out = jax.nn.scaled_matmul(
      x, y, x_scale, y_scale, preferred_element_type=jnp.float32
    )
    return out.reshape(jax.eval_shape(dense, a, b).shape)

  return lax.platform_dependent(a, b, cuda=native, default=dense)


def _matrix(q, d, side):
  """Numbers [batch, free, contracted] and their scales, in their own dtypes."""
  batch, summed = d.batch[side], d.contracting[side]
  free = [i for i in range(q.ndim) if i not in batch + summed]

  def matrix(p):
    # Blocks run along the contracted axis, which is last, so that merging the others
    # does not cut any.
    p = lax.transpose(p, (*batch, *free, *summed))
    n = len(batch)
    rows = math.prod(p.shape[n:-1])
    return p.reshape(math.prod(p.shape[:n]), rows, p.shape[-1])

  return matrix(q.qvalue), matrix(q.scale)
