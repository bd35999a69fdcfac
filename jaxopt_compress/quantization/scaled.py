"""Block-scaled products that some hardware has: MXFP8 and NVFP4.

`jax.nn.scaled_matmul` is lowered on NVIDIA GPUs, where XLA runs it natively from
Blackwell on and expands it elsewhere. Other backends multiply what the codes stand
for, which is the definition.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.quantization import product
from jaxopt_compress.quantization import qarray

# (format, dtype of the scales) -> entries of a block
_BLOCK = {
  ('e4m3', 'float8_e8m0fnu'): 32,
  ('e5m2', 'float8_e8m0fnu'): 32,
  ('e2m1', 'float8_e4m3fn'): 16,
}


def suits(a: qarray.QArray, b: qarray.QArray, d: product.Dims) -> bool:
  """Whether `scaled_matmul` computes the product of two leaves."""
  if len(d.contracting[0]) != 1:
    return False
  kinds = {(q.format == 'e2m1', q.scale.dtype.name) for q in (a, b)}
  return len(kinds) == 1 and all(
    _suits(q, axes[0]) for q, axes in zip((a, b), d.contracting, strict=True)
  )


def _suits(q, axis):
  size = _BLOCK.get((q.format, q.scale.dtype.name))
  return (
    size is not None
    and q.zero is None
    and q.blocks == ((axis - q.ndim, size),)
    and q.shape[axis] % size == 0
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
    shape = jax.eval_shape(dense, a, b).shape
    out = out.reshape(shape)
    for q, side in ((a, 0), (b, 1)):
      if q.global_scale is not None:
        out = out * product.placed(q.global_scale, side, d, out.ndim)
    return out

  return lax.platform_dependent(a, b, cuda=native, default=dense)


def _matrix(q, d, side):
  """Numbers [batch, free, contracted] and their scales, in their own dtypes."""
  batch, summed = d.batch[side], d.contracting[side]
  free = [i for i in range(q.ndim) if i not in batch + summed]
  numbers = q.qvalue if q.numbers_format.native else _four_bits(q)

  def matrix(p):
    p = lax.transpose(p, (*batch, *free, *summed))
    n = len(batch)
    rows = math.prod(p.shape[n:-1])
    return p.reshape(math.prod(p.shape[:n]), rows, p.shape[-1])

  return matrix(numbers), matrix(q.scale)


def _four_bits(q):
  return q.numbers.astype(jnp.float4_e2m1fn)
