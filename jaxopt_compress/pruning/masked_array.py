"""A weight with some entries masked to zero."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Masked(array.CompressedArray):
  """Stands for  where(mask, value, 0).

  `where`, not a product: NaN or inf in a pruned entry stays behind the mask, and
  its derivative is 0 exactly. The pruned entries of `value` keep what they hold,
  so that they can come back when the mask changes.

  With gradient='dense' the derivative by `value` is that without the mask: what the
  loss would gain or lose if a masked weight were something else (the straight-through
  estimator, Bengio et al. 2013, https://arxiv.org/abs/1308.3432). Learned scores,
  which choose the mask and are in no product, get the derivative that they would
  have if they multiplied the weights: d y / d scores = value.

  Nothing is saved in memory or time: the array has its full size in every
  product, and the mask costs one byte a weight on top. `freeze` drops the mask and
  the values behind it.

  Attributes:
    value: floating array, or a leaf that stands for one.
    mask: bool, the shape of `value`; True where a weight is kept.
    scores: floating, the shape of `value`; None where none are learned.
    gradient: 'masked' or 'dense'.

  >>> leaf = Masked(jnp.array([1., jnp.nan]), jnp.array([True, False]))
  >>> leaf.materialize().tolist(), leaf.describe()
  ([1.0, 0.0], 'masked 50%')
  """

  value: Any
  mask: jax.Array
  scores: jax.Array | None = None
  gradient: str = dataclasses.field(
    default='masked', metadata=dict(static=True)
  )

  shape = property(lambda self: self.value.shape)
  dtype = property(lambda self: self.value.dtype)

  def materialize(self):
    value = array.materialize(self.value)
    if self.gradient == 'dense' or self.scores is not None:
      return _straight(self.gradient, self.mask, value, self.scores)
    return _where(self.mask, value)

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
        ' then quantise: jc.chain(jc.methods.gradual(...), jc.fake_quantize(...)).'
      )
    return _where(self.mask, value)

  def describe(self):
    inner = (
      self.value.describe() + ' ' if array.is_compressed(self.value) else ''
    )
    # Tracers, shapes, and what Flax puts there to print a module.
    known = isinstance(self.mask, jax.Array | np.ndarray)
    if not known or isinstance(self.mask, jax.core.Tracer):
      return f'{inner}masked'
    zeros = 1 - float(jnp.mean(self.mask)) if self.mask.size else 0.0
    return f'{inner}masked {zeros:.0%}'


def convert(leaf: Masked, *, new_dtype, **_):
  """Casts what is behind the mask."""
  return dataclasses.replace(leaf, value=leaf.value.astype(new_dtype))


def _where(mask, value):
  return jnp.where(mask, value, jnp.zeros((), value.dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _straight(gradient, mask, value, scores):
  return _where(mask, value)


@_straight.defjvp
def _straight_jvp(gradient, primals, tangents):
  mask, value, scores = primals
  d_value, d_scores = tangents[1:]
  tangent = d_value if gradient == 'dense' else _where(mask, d_value)
  if scores is not None:
    tangent += d_scores.astype(value.dtype) * value
  return _where(mask, value), tangent
