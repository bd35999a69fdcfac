"""Maps of one size brought to another."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def pooled(x: jax.Array, sides: Sequence[int]) -> jax.Array:
  """Averages over bins, so that axes between the first and the last have these sizes.

  Along an axis of n places, bin i of m has the places from floor(i n / m) to
  ceil((i + 1) n / m); bins overlap where m does not divide n, and repeat a place where
  m > n. PyTorch calls it adaptive average pooling.

  Args:
    x: [batch, places..., channels].
    sides: sizes of the places.

  Raises:
    ValueError: other sizes are asked of fewer than two axes of places: tokens are in
      an order, and what is between them is not their mean.

  >>> x = jnp.arange(4.)[None, :, None, None]
  >>> pooled(x, (2, 1)).ravel().tolist()
  [0.5, 2.5]
  """
  sides = tuple(sides)
  if x.shape[1:-1] == sides:
    return x
  if len(sides) < 2 or x.ndim != len(sides) + 2:
    raise ValueError(
      f'Values of shape {x.shape} have no images to be brought to sides {sides}:'
      ' [batch, h, w, channels] is expected. Of tokens, student and teacher must have the'
      ' same; reshape those of an image to [batch, h, w, channels].'
    )
  for axis, m in enumerate(sides, 1):
    if x.shape[axis] != m:
      bins = jnp.asarray(_bins(x.shape[axis], m), x.dtype)
      # The pooled axis comes last of the product, and goes back to its place.
      x = jnp.moveaxis(
        jnp.tensordot(x, bins, ((axis,), (0,)), precision='highest'), -1, axis
      )
  return x


def _bins(n, m):
  """[n, m]: what each place counts in each bin."""
  place, i = np.arange(n)[:, None], np.arange(m)
  begin, end = i * n // m, -(-(i + 1) * n // m)
  return ((begin <= place) & (place < end)) / (end - begin)
