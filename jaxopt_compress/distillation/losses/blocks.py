"""A sum over positions, block by block, and its gradient in the same pass.

    total = sum_i f(x_i, w)     d total / d x = [df/dx_1, df/dx_2, ...]
                                d total / d w = sum_i df/dw (x_i, w)

Both are known once the last block has been seen. The backward pass scales them by the
gradient that comes in, a scalar, so nothing of a block is kept and nothing is computed
twice.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import math

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import jaxprs


@dataclasses.dataclass(frozen=True)
class Cut:
  """How positions [n, m] become [n / a, blocks, r]: a block is one in the middle.

  The leading axis stays in front and whole, or is cut with a stride, so that of a
  batch that lies on several devices each has its share in every block.

  >>> Cut.of((4, 6), 8)(jnp.arange(24).reshape(4, 6))[:, 0].tolist()
  [[0, 1], [6, 7], [12, 13], [18, 19]]
  >>> Cut.of((6,), 2)(jnp.arange(6))[:, 0].tolist()
  [[0], [3]]

  Attributes:
    lead: shape of the positions.
    n, m: the first number of it, and the product of the others.
    a: blocks along the first axis.
    r: positions of a block along the others.
  """

  lead: tuple[int, ...]
  n: int
  m: int
  a: int
  r: int

  @classmethod
  def of(cls, lead: tuple[int, ...], most: int) -> 'Cut':
    """Blocks of at most so many positions."""
    n, m = (lead[0], math.prod(lead[1:])) if lead else (1, 1)
    return cls(lead, n, m, -(-n // most), min(max(most // n, 1), m))

  @property
  def padding(self) -> tuple[int, int]:
    """Positions that are added to n and to m."""
    return -self.n % self.a, -self.m % self.r

  def __call__(self, x: jax.Array) -> jax.Array:
    """[*lead, ...] -> [n / a, blocks, r, ...], filled up with zeros."""
    rest = x.shape[len(self.lead) :]
    x = x.reshape(self.n, self.m, *rest)
    if any(self.padding):
      more = [(0, k) for k in self.padding] + [(0, 0)] * len(rest)
      x = jnp.pad(x, more)
    # One of a and r is 1: the middle axis is the stride of n, or counts runs of m.
    return x.reshape(x.shape[0] // self.a, -1, self.r, *rest)


@dataclasses.dataclass(frozen=True, eq=False)
class Sum:
  """(total, count), summed over blocks; the total has a gradient.

  Attributes:
    of_block: `(list of arrays) -> (total, count)`, scalars.
    rows: so many of the arrays have blocks, [b, blocks, ...]; each block gets its
      part [b, ...] of them, and the others as they are.
    axes: mesh axes along which the arrays vary, in a `shard_map`.
  """

  of_block: Callable[[list[jax.Array]], tuple[jax.Array, jax.Array]]
  rows: int
  axes: frozenset[str] = frozenset()

  def __call__(
    self, arrays: Sequence[jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    dtypes = [x.dtype for x in arrays]

    @jax.custom_vjp
    def summed(arrays):
      return self._without_gradient(arrays)

    def forward(arrays):
      # Of what nobody differentiates, no gradient is formed.
      at = [i for i, x in enumerate(arrays) if x.perturbed]
      return self._with_gradient([x.value for x in arrays], at)

    def backward(gradients, cotangents):
      scale, _ = cotangents
      if isinstance(scale, jax.custom_derivatives.SymbolicZero):
        gradients = [None] * len(dtypes)
      return (
        [
          None if x is None else (x * scale).astype(dtype)
          for x, dtype in zip(gradients, dtypes, strict=True)
        ],
      )

    summed.defvjp(forward, backward, symbolic_zeros=True)
    return summed(list(arrays))

  def _without_gradient(self, arrays):
    (total, count), _ = self._scan(lambda xs: (self.of_block(xs), None), arrays)
    return total, count

  def _with_gradient(self, arrays, at):
    """(total, count), and the gradient of the total for the arrays at `at`."""
    some_rows = sum(i < self.rows for i in at)

    def step(block):
      def of_block(*some):
        return self.of_block(_put(block, at, some))

      some = [block[i] for i in at]
      total, pull, count = jax.vjp(of_block, *some, has_aux=True)
      gradients = pull(jnp.ones_like(total))
      return (total, count, *gradients[some_rows:]), gradients[:some_rows]

    (total, count, *others), rows = self._scan(step, arrays)
    # The scan stacks blocks in front; their place is behind the first axis.
    rows = [jnp.moveaxis(x, 0, 1) for x in rows]
    return (total, count), _put([None] * len(arrays), at, [*rows, *others])

  def _scan(self, step, arrays):
    """Sums of what `step(block)` returns first, and a stack of the second."""

    def block(i):
      rows = arrays[: self.rows]
      cut = [lax.dynamic_index_in_dim(x, i, 1, keepdims=False) for x in rows]
      return [*cut, *arrays[self.rows :]]

    def body(sums, i):
      new, rest = step(block(i))
      new = [a + b.astype(a.dtype) for a, b in zip(sums, new, strict=True)]
      return tuple(new), rest

    shapes, _ = jax.eval_shape(lambda: step(block(0)))
    zeros = (jnp.zeros(x.shape, _wide(x)) for x in shapes)
    start = tuple(jaxprs.vary(x, self.axes) for x in zeros)
    return lax.scan(body, start, jnp.arange(arrays[0].shape[1]))


def _wide(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def _put(values, at, some):
  values = list(values)
  for i, x in zip(at, some, strict=True):
    values[i] = x
  return values
