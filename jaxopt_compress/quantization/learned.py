"""Ranges that are learned: LSQ, LSQ+ and PACT.

    v = x / s + z,   q = round(clip(v, lowest, highest)),   x_hat = (q - z) s

LSQ    d x_hat / d s = q - z - x / s inside, q - z where v is clipped; and the
       derivative with respect to z is 0 inside, -s where it is clipped
PACT   the clip alone is learned: d x_hat / d s = q - z where v is clipped, else 0

d x_hat / d x is one inside and zero outside. Gradients of s and z are divided by
sqrt(n * highest), n numbers sharing them. Esser et al. 2020, Learned Step Size
Quantization, https://arxiv.org/abs/1902.08153, eqs. 3 and 5 and section 2.2; Bhalgat
et al. 2020, LSQ+, https://arxiv.org/abs/2004.09576, eqs. 4 to 6; Choi et al. 2018,
PACT, https://arxiv.org/abs/1805.06085, eqs. 1 to 3.
"""

import dataclasses
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.quantization import blocks as blocks_lib
from jaxopt_compress.quantization import scales as scales_lib
from jaxopt_compress.quantization import spec as spec_lib

# A scale stays positive: blocks of zeros have none of their own.
LEAST = np.float32(1e-12)


def surrogate(
  x: jax.Array,
  scale: jax.Array,
  zero: jax.Array | None,
  *,
  spec: spec_lib.Spec,
  entries: int,
) -> jax.Array:
  """x_hat, whose derivatives are those above.

  Args:
    x: [...] floating.
    scale, zero: broadcastable to `x`; zero None for symmetric ranges.
    spec: format, and 'lsq' or 'pact'.
    entries: how many numbers share a scale.
  """
  fmt = spec.numbers
  slow = 1 / math.sqrt(entries * max(fmt.highest, 1))
  least = LEAST + (scale - lax.stop_gradient(scale))  # it may grow again
  scale = jnp.where(scale > LEAST, scale, least)
  scale = _slowed(scale, slow)
  if zero is None or jnp.issubdtype(zero.dtype, jnp.integer):
    zero = 0.0 if zero is None else zero.astype(jnp.float32)
  else:
    zero = _slowed(zero, slow)
    if fmt.integer:
      zero = zero + lax.stop_gradient(jnp.round(zero) - zero)
  v = x.astype(jnp.float32) / scale + zero
  clipped = jnp.clip(v, fmt.lowest, fmt.highest)
  number = fmt.numbers(fmt.round(lax.stop_gradient(clipped)))
  if spec.learn == 'pact':
    low, high = (fmt.lowest - zero) * scale, (fmt.highest - zero) * scale
    inside = jnp.clip(x.astype(jnp.float32), low, high)
    x_hat = (number.astype(jnp.float32) - zero) * scale
    return (inside + lax.stop_gradient(x_hat - inside)).astype(x.dtype)
  q = clipped + lax.stop_gradient(number.astype(jnp.float32) - clipped)
  return ((q - zero) * scale).astype(x.dtype)


def _slowed(p, factor):
  """`p`, its gradient times `factor`."""
  return p * factor + lax.stop_gradient(p * (1 - factor))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Ranged(array.CompressedArray):
  """A float weight as it is rounded in a learned range.

  Attributes:
    value: the weight, or a leaf that stands for it.
    scale: what is learned, one a block.
    zero: learned zero points, or None.
    spec: how.
    blocks: ((axis, size), ...) of what shares a scale.
  """

  value: Any
  scale: jax.Array
  zero: jax.Array | None
  spec: spec_lib.Spec = dataclasses.field(metadata={'static': True})
  blocks: blocks_lib.Blocks = dataclasses.field(metadata={'static': True})

  shape = property(lambda self: self.value.shape)
  dtype = property(lambda self: self.value.dtype)

  def materialize(self):
    x = array.materialize(self.value)

    def spread(p):
      return blocks_lib.expand(p, self.blocks, x.shape)

    zero = None if self.zero is None else spread(self.zero)
    entries = x.size // self.scale.size
    return surrogate(
      x, spread(self.scale), zero, spec=self.spec, entries=entries
    )


def first_range(
  x: jax.Array, spec: spec_lib.Spec, blocks
) -> dict[str, jax.Array]:
  """Where learning starts: {'scale'} and, asymmetric, {'zero'} of a weight.

  Symmetric: 2 mean|x| / sqrt(highest), Esser et al. 2020, section 2.1. Asymmetric:
  the range of the data. A block of zeros starts where the mean of all would.
  """
  x = x.astype(jnp.float32)
  if spec.symmetric:
    mean = blocks_lib.mean(jnp.abs(x), blocks)
    mean = jnp.where(mean > 0, mean, jnp.mean(jnp.abs(x)))
    return {'scale': 2 * mean / math.sqrt(max(spec.numbers.highest, 1))}
  reach, center = scales_lib.reach_and_center(x, spec, blocks)
  scale = jnp.maximum(reach / spec.numbers.bound, LEAST)
  zero = scales_lib.zero_point(center, scale, spec)
  return {'scale': scale, 'zero': zero.astype(jnp.float32)}


def stored(learned: dict[str, jax.Array], spec: spec_lib.Spec):
  """(Scales, zero) as a leaf stores them; a scale stays positive."""
  scale = jnp.maximum(learned['scale'], LEAST).astype(jnp.dtype(spec.scale))
  zero = learned.get('zero')
  if zero is not None and spec.numbers.integer:
    fmt = spec.numbers
    zero = jnp.clip(jnp.round(zero), fmt.lowest, fmt.highest).astype(jnp.int8)
  return scales_lib.Scales(scale), zero
