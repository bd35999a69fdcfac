"""A weight with some entries masked to zero."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_compress.core import array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Masked(array.CompressedArray):
  """Stands for  where(mask, value, 0).

  `where`, not a product: NaN or inf in a pruned entry stays behind the mask, and
  its derivative is 0 exactly. The pruned entries of `value` keep what they hold,
  so that they can come back when the mask changes.

  Nothing is saved in memory or time: the array has its full size in every
  product, and the mask costs one byte a weight on top. `freeze` drops the mask and
  the values behind it.

  Attributes:
    value: floating array, or a leaf that stands for one.
    mask: bool, the shape of `value`; True where a weight is kept.

  >>> leaf = Masked(jnp.array([1., jnp.nan]), jnp.array([True, False]))
  >>> leaf.materialize().tolist(), leaf.describe()
  ([1.0, 0.0], 'masked 50%')
  """

  value: Any
  mask: jax.Array

  shape = property(lambda self: self.value.shape)
  dtype = property(lambda self: self.value.dtype)

  def materialize(self):
    return _where(self.mask, array.materialize(self.value))

  def dtypes(self):
    return dict(mask=jnp.dtype(bool))

  def freeze(self):
    """The plain array with its zeros."""
    value = (
      self.value.freeze() if array.is_compressed(self.value) else self.value
    )
    if array.is_compressed(value):
      raise ValueError(
        f'A mask over {value.describe()} would be stored as floats. Prune first,'
        ' then quantise: jc.chain(jc.prune(...), jc.fake_quantize(...)).'
      )
    return _where(self.mask, value)

  def describe(self):
    inner = (
      self.value.describe() + ' ' if array.is_compressed(self.value) else ''
    )
    if isinstance(self.mask, jax.core.Tracer | jax.ShapeDtypeStruct):
      return f'{inner}masked'
    return f'{inner}masked {1 - float(jnp.mean(self.mask)):.0%}'


def convert(leaf: Masked, *, new_dtype, **_):
  """Casts what is behind the mask."""
  return dataclasses.replace(leaf, value=leaf.value.astype(new_dtype))


def _where(mask, value):
  return jnp.where(mask, value, jnp.zeros((), value.dtype))
