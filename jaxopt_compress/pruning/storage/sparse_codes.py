"""The storage leaf of a weight that was pruned and then quantised.

    codes  =  stored ^ the codes that zero has        bit by bit

so what stands for zero is stored as no bits at all, whatever the format calls it: 0 of
int8, the zero point of an asymmetric one, 8 of a packed int4, 7 of NF4. What is left
goes into a `Bitmask` or `NMArray` of bytes. Codes that share a byte are left out
together.

    bits a weight    int8 at 90% zeros   1 + 0.1 * 8 = 1.8, and the scales

The leaf says what its codes are by three methods, as this room does not know the
formats: `codes_as_stored()`, `zero_codes()`, what they are where all is zero, and
`with_codes(codes)`, the same with others.
"""

import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis.plan import gathered
from jaxopt_compress.core import array
from jaxopt_compress.core import lift


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SparseCodes(array.CompressedArray):
  """Stands for a leaf of codes, those of zero left out.

  Its products are those of that leaf: integers stay integers. The codes are put back
  first, so memory is saved and time is not.

  Attributes:
    stored: `Bitmask` or `NMArray` of uint8.
    leaf: a leaf that has everything but codes: `None` is in their place.
  """

  stored: Any
  leaf: Any

  shape = property(lambda self: self._whole().shape)
  dtype = property(lambda self: self.leaf.dtype)

  def dtypes(self):
    return dict(stored=jnp.dtype(jnp.uint8))

  def can_cut(self, axis, size):
    return self._whole().can_cut(axis, size) and self.stored.can_cut(axis, size)

  def _whole(self):
    """The leaf with an array in place of its codes that has only their shape."""
    return self.leaf.with_codes(self.stored)

  def put_back(self):
    """The leaf with its codes."""
    rest = self.stored.materialize()
    leaf = self.leaf.with_codes(rest)
    zero = leaf.zero_codes()
    codes = rest ^ _as_bytes(zero)
    return leaf.with_codes(lax.bitcast_convert_type(codes, zero.dtype))

  def materialize(self):
    return self.put_back().materialize()

  def taken(self, index: np.ndarray, axis: int) -> 'SparseCodes':
    """The entries `index` along an axis: see `analysis.gathered`."""
    leaf = gathered.taken(self.put_back(), {self.ndim + axis: index})
    stored = self.stored.again(rest_of(leaf))
    return SparseCodes(stored, leaf.with_codes(None))

  def describe(self):
    return f'{self._whole().describe()}, {self.stored.describe()}'


def rest_of(leaf: array.CompressedArray) -> jax.Array:
  """Its codes as bytes, zero where they stand for zero: what is to be stored."""
  return _as_bytes(leaf.codes_as_stored()) ^ _as_bytes(leaf.zero_codes())


def _as_bytes(codes):
  return lax.bitcast_convert_type(codes, jnp.uint8)


def through(primitive):
  """The rule of a primitive: that of the leaf, with its codes put back."""

  def rule(*operands, **params):
    (sparse,) = [x for x in operands if isinstance(x, SparseCodes)]
    leaf = sparse.put_back()
    of_leaf = lift.rule_for(primitive, type(leaf))
    if of_leaf is None:
      return lift.Dense(f'{type(leaf).__name__} has no rule for it')
    out = of_leaf(*(leaf if x is sparse else x for x in operands), **params)
    if primitive is lax.convert_element_type_p and array.is_compressed(out):
      # Of another type, of the same codes.
      return dataclasses.replace(sparse, leaf=out.with_codes(None))
    return out

  return rule


# Where weights are read or moved; joins of several put all of them back.
PRIMITIVES = (
  lax.convert_element_type_p,
  lax.transpose_p,
  lax.reshape_p,
  lax.squeeze_p,
  lax.slice_p,
  lax.dynamic_slice_p,
  lax.gather_p,
  lax.dot_general_p,
  lax.conv_general_dilated_p,
  'ragged_dot_general',  # which JAX does not export
)
