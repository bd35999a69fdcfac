"""What the channels of a wider network start from.

    net2net     copies, which share what reads them at random: exact, and they differ
    fpi         copies, which share it equally
    aki         new outputs are those of the layer above
    zero        new units have random inputs, and nothing reads them yet: exact

A start is a function `(leaf, key) -> array`: of one parameter, a `Leaf`, that grows.
"""

__all__ = ['aki', 'fpi', 'net2net', 'zero']

from collections.abc import Callable
import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Leaf:
  """A parameter of the larger network, before it has its values.

  All are of the new shape, or broadcast to it.

  Attributes:
    path: its name.
    copies: the parameter with channels repeated, not divided yet.
    above: the same of the next layer, or `copies` where there is none.
    product: whether it is a weight of a product, or a table: no gain, bias, statistic.
    new: bool, entries of a channel that is there again.
    made: bool, entries of a new channel that the parameter makes, not reads.
    shared: `(values, key)`: divides among the copies of each channel what the
      function says has to be: equally, or, with a key, at random.
    alone: `(values)`: copies, but values for what is new, or zeros where the function
      asks for them.
  """

  path: str
  copies: jax.Array
  above: jax.Array
  product: bool
  new: np.ndarray
  made: np.ndarray
  shared: Callable
  alone: Callable


def net2net(leaf: Leaf, key: jax.Array | None) -> jax.Array:
  """Copies of channels, and shares of what reads them: Net2WiderNet.

  Chen et al. 2016, https://arxiv.org/abs/1511.05641, eq. 2 divides by the number of
  copies, and adds noise so that they come to differ. Here they differ by their shares,
  which are random and sum to one: the function is kept, and each gets a gradient of its
  own. Without a key the shares are equal, and copies stay copies.
  """
  return leaf.shared(leaf.copies, key)


def fpi(leaf: Leaf, key: jax.Array | None) -> jax.Array:
  """Copies of channels, and equal shares: function preserving initialisation.

  Chen et al. 2022, https://arxiv.org/abs/2110.07143, eq. 6 to 8. Draw the copies by
  `jc.widen(..., key=key)`, or copies that are alike stay so.
  """
  return leaf.shared(leaf.copies, None)


def aki(leaf: Leaf, key: jax.Array | None) -> jax.Array:
  """New outputs from the layer above: advanced knowledge initialisation.

  Chen et al. 2022, https://arxiv.org/abs/2110.07143, eq. 9 to 11. It keeps the function
  only as far as layers are alike, and breaks the symmetry of copies. Gains, biases and
  the last layer are as in `fpi`.
  """
  if not leaf.product:
    return leaf.shared(leaf.copies, None)
  return leaf.shared(jnp.where(leaf.made, leaf.above, leaf.copies), None)


def zero(leaf: Leaf, key: jax.Array | None) -> jax.Array:
  """New units have random inputs and zero outputs.

  The function is kept, and what reads the new units has a gradient at once. Of a residual
  stream under a norm it is the other way round: nothing is written to new channels
  yet, and what reads them is random. Random weights have the spread of those that
  are there. Where neither keeps the function, as under a norm that takes a mean
  off, channels are copies, and share equally: `jc.grow` warns which.
  """
  if key is None:
    raise ValueError('A zero start draws weights: pass key=jax.random.key(0).')
  if not leaf.product:
    return leaf.alone(leaf.copies)
  own = jax.random.fold_in(key, zlib.crc32(leaf.path.encode()))
  spread = jnp.std(leaf.copies.astype(jnp.float32))
  drawn = spread * jax.random.normal(own, leaf.copies.shape)
  return leaf.alone(drawn.astype(leaf.copies.dtype))


def check(key: jax.Array | None) -> None:
  """Raises ValueError for what is no PRNG key, as a seed."""
  if key is None:
    return
  try:
    jax.eval_shape(lambda k: jax.random.fold_in(k, 0), key)
  except (TypeError, ValueError) as e:
    raise ValueError(
      f'key={key!r}; one PRNG key is expected: of a seed, key=jax.random.key(seed).'
    ) from e
