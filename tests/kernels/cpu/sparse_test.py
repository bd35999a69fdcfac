"""Products with weights whose zeros are left out, against numpy."""

import functools
import unittest

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import sparse_cases

from jaxopt_compress.kernels import sparse_layout
from jaxopt_compress.kernels.cpu import native

P = jax.sharding.PartitionSpec


def _on_paths(call):
  """The results of a call on each instruction path that can do it."""
  return {path: call(path=path) for path in native.paths() if path != 'amx'} | {
    '': call(path='')
  }


def _rounded(x, act, symmetric, given):
  """What the codes of float32 rows stand for; `given` is a static (scale, zero)."""
  if act == 'FLOAT':
    return x
  if given is not None:
    s, z = given
  elif symmetric:
    s, z = np.abs(x).max(-1, keepdims=True) * np.float32(1 / 127.5), 0
  else:
    high = x.max(-1, keepdims=True).clip(0)
    low = x.min(-1, keepdims=True).clip(None, 0)
    s = (high - low) * np.float32(0.5) * np.float32(1 / 127.5)
    z = -0.5 - (high + low) * np.float32(0.5) * (np.float32(1) / s)
    z = np.clip(np.rint(z), -128, 127)
  # Ties fall as they do in the library.
  codes = np.clip(np.rint(x * (np.float32(1) / s)) + z, -128, 127)
  return s * (codes - z)


@unittest.skipUnless(native.available(), 'the library was not built')
class SparseMatmulTest(parameterized.TestCase):
  @parameterized.parameters(*sparse_cases.cases())
  def test_equal_on_every_path(self, dtype, kept, k, n):
    rng = np.random.default_rng(k)
    w = sparse_cases.weight(rng, dtype, kept, (k, n))
    codes = dtype == 'int8'
    streams = [sparse_layout.to_streams(w, k)]
    if kept in ('rows', 'half'):
      how = streams[0][2]
      streams.append(sparse_layout.to_streams(w, k, skips=not how.skips))
      streams.append(sparse_layout.to_streams(w, k, constant=not how.constant))
    # Few rows, more, and enough for several tiles.
    xs = [rng.integers(-9, 10, (m, k)) for m in (1, 3, 5, 19)]
    xs = [x.astype(np.int8 if codes else np.float32) for x in xs]

    @jax.jit
    def run(xs):
      def call(x, stream, offsets, how, path):
        return sparse_cases.sparse_matmul(
          x,
          stream,
          offsets,
          None,
          rounding=native.Rounding(
            act=native.Act.CODES if codes else native.Act.FLOAT
          ),
          how=how,
          k=k,
          n=n,
          group=k,
          out_dtype=jnp.int32 if codes else jnp.float32,
          path=path,
        )

      return [
        _on_paths(functools.partial(call, x, *s)) for x in xs for s in streams
      ]

    got = run(xs)
    for i, results in enumerate(got):
      x = xs[i // len(streams)]
      # Sums of whole numbers below 2^24 are exact in float32.
      expected = x.astype(np.int64) @ w.astype(np.int64)
      for path, result in results.items():
        np.testing.assert_array_equal(result, expected, err_msg=path)

  @parameterized.parameters(
    # act, symmetric, x, m, group, kept
    ('DYNAMIC', True, 'float32', 1, 131, 'half'),
    ('DYNAMIC', False, 'float32', 3, 20, 'half'),
    ('DYNAMIC', False, 'bfloat16', 9, 64, 'hundredth'),
    ('STATIC', False, 'float32', 2, 131, '2:4'),
    ('FLOAT', True, 'float32', 1, 32, 'hundredth'),
    ('FLOAT', True, 'float32', 7, 20, 'half'),
    ('FLOAT', True, 'bfloat16', 2, 131, '2:4'),
  )
  def test_activations(self, act, symmetric, x_type, m, group, kept):
    k, n = 131, 70
    rng = np.random.default_rng(m)
    w = sparse_cases.weight(rng, 'int8', kept, (k, n))
    x = (rng.standard_normal((m, k)) + 0.3).astype(x_type)
    groups = -(-k // group)
    scale = rng.uniform(0.5, 1.5, (groups, n)).astype(np.float32)
    zero = rng.integers(-3, 4, (groups, n)).astype(np.float32)
    bias = rng.standard_normal((1, n)).astype(np.float32)
    of = np.repeat(np.arange(groups), group)[:k]
    real = (w - zero[of]) * scale[of]  # [k, n]
    act_scale, act_zero = np.float32([[0.05]]), np.float32([[3.0]])
    stream, offsets, how = sparse_layout.to_streams(w, group)

    @jax.jit
    def run(x):
      call = functools.partial(
        sparse_cases.sparse_matmul,
        x,
        stream,
        offsets,
        scale,
        zero,
        native.Rounding(
          act=native.Act[act],
          scale=act_scale if act == 'STATIC' else None,
          zero=act_zero if act == 'STATIC' else None,
          totals=None if symmetric else real.sum(0, keepdims=True),
          symmetric=symmetric,
        ),
        native.Finish(bias=bias),
        how=how,
        k=k,
        n=n,
        group=group,
      )
      return _on_paths(call)

    given = (act_scale, act_zero) if act == 'STATIC' else None
    rounded = _rounded(x.astype(np.float32), act, symmetric, given)
    expected = rounded.astype(np.float64) @ real + bias
    # Bfloat16 x is kept to 2^-15 of the largest.
    bound = 1e-4 if x_type == 'bfloat16' else 1e-5
    for path, y in run(x).items():
      error = np.abs(y - expected).max() / np.abs(expected).max()
      self.assertLess(error, bound, path)

  @parameterized.parameters('float32', 'bfloat16', 'int8')
  def test_not_finite(self, dtype):
    """As the dense product has it, skipped units included."""
    k, n = 67, 40
    rng = np.random.default_rng(0)
    w = sparse_cases.weight(rng, dtype, 'hundredth', (k, n))
    x = rng.standard_normal((4, k)).astype(np.float32)
    x[1, 5], x[2, 66] = np.nan, np.inf
    streams = [
      sparse_layout.to_streams(w, k, skips=skips) for skips in (True, False)
    ]
    scale = None if dtype != 'int8' else jnp.ones((1, n))

    @jax.jit
    def run(x):
      return [
        _on_paths(
          functools.partial(
            sparse_cases.sparse_matmul,
            rows,
            *streams[skips][:2],
            scale,
            how=streams[skips][2],
            k=k,
            n=n,
            group=k,
          )
        )
        for skips in (0, 1)
        for rows in (x, jnp.tile(x, (6, 1)))
      ]

    with np.errstate(invalid='ignore'):
      expected = x @ w.astype(np.float32)
    if dtype == 'int8':
      expected[2] = np.nan  # of digits
    for results in run(x):
      for path, y in results.items():
        for part in np.split(np.asarray(y), len(y) // 4):
          np.testing.assert_allclose(
            part, expected, rtol=1e-5, atol=1e-4, err_msg=path
          )

  def test_stacks(self):
    """Stacked matrices, vmap, shard_map."""
    k, n, m = 45, 40, 3
    rng = np.random.default_rng(0)
    w = np.stack(
      [
        sparse_cases.weight(rng, 'float32', kept, (k, n))
        for kept in ('tenth', 'half')
      ]
      * 2
    )
    x = rng.integers(-9, 10, (4, m, k)).astype(np.float32)
    stream, offsets, how = sparse_layout.to_streams(w, k)

    def call(x, stream, offsets):
      return sparse_cases.sparse_matmul(
        x, stream, offsets, None, how=how, k=k, n=n, group=k
      )

    mesh = jax.make_mesh((4,), ('i',), axis_types=(jax.sharding.AxisType.Auto,))
    shard = functools.partial(jax.shard_map, mesh=mesh, out_specs=P('i'))

    @jax.jit
    def run(x, stream, offsets):
      return (
        call(x, stream, offsets),
        jax.vmap(call)(x, stream, offsets),
        jax.vmap(lambda row: call(row[:, None], stream, offsets)[:, 0], 1, 1)(
          x
        ),
        shard(call, in_specs=(P('i'),) * 3)(x, stream, offsets),
      )

    for y in run(x, stream, offsets):
      np.testing.assert_array_equal(y, x @ w)
    y = call(x, stream[1], offsets[1])
    np.testing.assert_array_equal(y, x @ w[1])

  def test_refuses(self):
    k, n = 12, 40
    w = sparse_cases.weight(np.random.default_rng(0), 'float32', 'half', (k, n))
    stream, offsets, how = sparse_layout.to_streams(w, k)

    def call(stream, offsets, m=1, how=how, **other):
      x = jnp.zeros((m, k))
      return sparse_cases.sparse_matmul(
        x, stream, offsets, None, how=how, k=k, n=n, group=k, **other
      )

    self.assertEqual(call(stream, offsets, m=0).shape, (0, n))
    with self.assertRaisesRegex(Exception, 'offsets do not fit'):
      call(stream, offsets * 0)
    with self.assertRaisesRegex(Exception, 'offsets do not fit'):
      call(stream[:-1], offsets)
    with self.assertRaisesRegex(Exception, 'shapes do not fit'):
      call(stream, offsets[:-1])
    with self.assertRaisesRegex(Exception, 'types do not fit'):
      call(stream, offsets, rounding=native.Rounding(act=native.Act.DYNAMIC))
    # What does not come from `to_streams` gives anything, and reads nothing else.
    rng = np.random.default_rng(0)
    for skips in (False, True):
      junk = rng.integers(0, 256, stream.shape, np.uint8)
      y = call(junk, offsets, how=how._replace(skips=skips))
      self.assertEqual(y.shape, (1, n))


if __name__ == '__main__':
  absltest.main()
