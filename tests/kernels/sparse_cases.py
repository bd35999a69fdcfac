"""Weights with zeros in many places, for tests of what leaves them out."""

import functools

import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels.cpu import native


def _random(rng, sparsity, shape):
  return rng.random(shape) >= sparsity


def _n_m(rng, kept, of, shape):
  """Which rows are kept: `kept` of every `of`."""
  k, n = shape
  order = np.argsort(rng.random((-(-k // of), of, n)), axis=1)
  return (order < kept).reshape(-1, n)[:k]


def _rows(rng, sparsity, shape):
  return np.broadcast_to(rng.random((shape[0], 1)) >= sparsity, shape)


def _blocks(rng, sparsity, shape):
  k, n = shape
  blocks = rng.random((-(-k // 8), -(-n // 32))) >= sparsity
  return np.repeat(np.repeat(blocks, 8, 0), 32, 1)[:k, :n]


KEPT = {
  'dense': functools.partial(_random, sparsity=0.0),
  'half': functools.partial(_random, sparsity=0.5),
  'tenth': functools.partial(_random, sparsity=0.9),
  'hundredth': functools.partial(_random, sparsity=0.99),
  'none': functools.partial(_random, sparsity=1.0),
  'rows': functools.partial(_rows, sparsity=0.9),
  'blocks': functools.partial(_blocks, sparsity=0.8),
  '2:4': functools.partial(_n_m, kept=2, of=4),
  '1:4': functools.partial(_n_m, kept=1, of=4),
  '4:8': functools.partial(_n_m, kept=4, of=8),
}
SIZES = [(1, 1), (37, 5), (131, 33), (64, 96), (259, 70), (520, 64)]


def weight(rng, dtype, kept, shape):
  """Whole numbers, which all types hold, where `kept` has them."""
  w = rng.integers(1, 128, shape) * rng.choice([-1, 1], shape)
  return (w * KEPT[kept](rng, shape=shape)).astype(dtype)


def cases():
  i = 0
  for dtype in ('int8', 'bfloat16', 'float32'):
    for kept in KEPT:
      yield dtype, kept, *SIZES[i % len(SIZES)]
      i += 5


def sparse_matmul(
  x,
  stream,
  offsets,
  scale,
  zero=None,
  rounding=native.Rounding(),
  finish=native.Finish(),
  *,
  how,
  k,
  n,
  group,
  out_dtype=jnp.float32,
  path='',
):
  """A product of the library with one weight whose zeros are left out.

  Args:
    stream, offsets: as `sparse_layout.to_streams` makes them; `how` is what it says.
    scale, zero: None for weights of floats.
    x, rounding, finish, how, k, n, group, out_dtype, path: as for `native.matmul`.
  """
  weight = native.Weight(
    stream, scale, n, zero, rounding, finish, out_dtype, offsets, how.constant
  )
  (y,) = native.matmuls(
    x,
    [weight],
    format=how.type,
    k=k,
    group=group,
    sparse=True,
    skips=how.skips,
    path=path,
  )
  return y
