"""Norms of rows that stand in front of products.

    layer norm   y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * scale + shift
    RMS norm     y = x / sqrt(mean(x^2) + eps) * scale + shift

with means over the last axis. A kernel that rounds the rows of its operand reads them
anyway, and computes the norm on the way.
"""

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Norm:
  """What is done with rows of k numbers before they meet a matrix.

  Attributes:
    scale, shift: None, or [k] floating.
    eps: added to the mean of squares.
    centered: whether means are taken off: a layer norm. Else an RMS norm.
  """

  scale: jax.Array | None = None
  shift: jax.Array | None = None
  eps: float = dataclasses.field(default=1e-6, metadata={'static': True})
  centered: bool = dataclasses.field(default=True, metadata={'static': True})

  def __call__(self, x: jax.Array) -> jax.Array:
    """The norm of rows, computed in float32 and of the dtype of `x`.

    Args:
      x: [..., k] floating.

    Returns:
      [..., k].

    >>> x = jnp.array([[1.0, 3.0]])
    >>> print(Norm(eps=0.0)(x), Norm(eps=0.0, centered=False)(2 * x / x))
    [[-1.  1.]] [[1. 1.]]
    """
    along_rows = (1,) * (x.ndim - 1) + (-1,)
    y = x.astype(jnp.float32)
    if self.centered:
      y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * lax.rsqrt(
      jnp.mean(y * y, axis=-1, keepdims=True) + jnp.float32(self.eps)
    )
    if self.scale is not None:
      y = y * self.scale.astype(jnp.float32).reshape(along_rows)
    if self.shift is not None:
      y = y + self.shift.astype(jnp.float32).reshape(along_rows)
    return y.astype(x.dtype)
