"""W4A16 and W8A16 products, interpreted on CPU, against the equation in numpy."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels.pallas import tiles as tiles_lib
from jaxopt_compress.kernels.pallas import weight_only


def _weight(rng, k, n, bits, group, zero=np.int8):
  """Codes, scales that are powers of two, and small zeros."""
  groups = 1 if group is None else -(-k // group)
  top = 2 ** (bits - 1)
  codes = rng.integers(-top, top, (k, n)).astype(np.int8)
  scale = rng.choice([0.5, 1.0, 2.0], (groups, n)).astype(np.float32)
  if zero is not None:
    zero = rng.integers(-7, 8, (groups, n)).astype(zero)
  return codes, scale, zero


def _dense(codes, scale, zero, group):
  """(codes - zero) * scale, in float64."""
  of_row = np.arange(codes.shape[0]) // (group or max(codes.shape[0], 1))
  shift = 0 if zero is None else zero.astype(np.float64)[of_row]
  return (codes - shift) * scale.astype(np.float64)[of_row]


def _whole_numbers(rng, m, k):
  """x whose products with a `_weight` are exact in float32, in any order."""
  return rng.integers(-4, 5, (m, k)).astype(np.float32)


def _multiply(x, parts, n, bits, group, **how):
  """matmul(x, lay_out(parts)) and restore(lay_out(parts)), in one program."""
  same = dict(n=n, bits=bits, group=group)

  @jax.jit
  def run(x, parts):
    w = weight_only.lay_out(*parts, bits=bits, group=group)
    back = weight_only.restore(w, k=x.shape[1], **same)
    return weight_only.matmul(x, w, **same, **how), back

  return run(x, tuple(parts))


class ExactTest(parameterized.TestCase):
  """Where no operation rounds, results equal the oracle's to the bit."""

  @parameterized.parameters(
    # m, k, n, bits, group, platform
    (1, 128, 128, 4, 128, 'gpu'),
    (1, 128, 128, 4, 128, 'tpu'),
    (3, 300, 130, 4, 32, 'gpu'),
    (3, 300, 130, 4, 32, 'tpu'),
    (17, 257, 1, 8, 64, 'gpu'),
    (17, 257, 1, 8, 64, 'tpu'),
    (70, 100, 9, 8, None, 'gpu'),
    (70, 1000, 9, 4, None, 'tpu'),
    (5, 129, 33, 4, 128, 'gpu'),
    (2, 40, 5, 8, 12, 'gpu'),
    (2, 500, 5, 4, 150, 'tpu'),
    (1, 1, 1, 4, 32, 'gpu'),
  )
  def test_equals_the_equation(self, *case):
    self._check(*case)

  def _check(self, m, k, n, bits, group, platform):
    rng = np.random.default_rng(k)
    parts = _weight(rng, k, n, bits, group)
    x = _whole_numbers(rng, m, k)
    got, back = _multiply(
      x, parts, n, bits, group, platform=platform, interpret=True
    )
    np.testing.assert_array_equal(got, x @ _dense(*parts, group))
    for there, here in zip(back, parts, strict=True):
      np.testing.assert_array_equal(there, here)

  @hypothesis.settings(max_examples=4, deadline=None, derandomize=True)
  @hypothesis.given(
    m=st.integers(1, 40),
    k=st.integers(1, 400),
    n=st.integers(1, 300),
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([None, 1, 32, 50, 64, 128, 200]),
    platform=st.sampled_from(['gpu', 'tpu']),
  )
  def test_any_shape(self, m, k, n, bits, group, platform):
    self._check(m, k, n, bits, group, platform)

  @parameterized.parameters(
    # platform, group, steps, zero
    ('gpu', 32, 2, np.int8),
    ('gpu', None, 3, np.int8),
    ('tpu', 32, 3, np.int8),
    ('tpu', None, 2, np.int8),
    ('tpu', None, 2, None),
    ('gpu', 32, 2, None),
  )
  def test_k_in_parts_the_last_one_shorter(self, platform, group, steps, zero):
    m, k, n = 4, 7 * 32 if group else 7 * 128, 256
    if zero is None and steps == 3:
      self.skipTest('one of both is enough')
    rng = np.random.default_rng(0)
    parts = _weight(rng, k, n, 8, group, zero)
    x = _whole_numbers(rng, m, k)
    got, _ = _multiply(
      x,
      parts,
      n,
      8,
      group,
      platform=platform,
      interpret=True,
      tiles=tiles_lib.Tiles(16, 128, steps),
    )
    np.testing.assert_array_equal(got, x @ _dense(*parts, group))

  def test_reads_nothing_out_of_bounds(self):
    m, k, n = 20, 5 * 64, 256
    rng = np.random.default_rng(0)
    parts = _weight(rng, k, n, 4, 64)
    x = _whole_numbers(rng, m, k)
    got = weight_only.matmul(
      x,
      weight_only.lay_out(*parts, bits=4, group=64),
      n=n,
      bits=4,
      group=64,
      platform='tpu',
      # The interpreter of TPU memory, which raises.
      interpret=pltpu.InterpretParams(out_of_bounds_reads='raise'),
      tiles=tiles_lib.Tiles(32, 128, 1),
    )
    np.testing.assert_array_equal(got, x @ _dense(*parts, 64))


class FloatsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('gpu', jnp.float32, 1e-6),
    ('tpu', jnp.bfloat16, 4e-3),
    ('gpu', jnp.float16, 5e-4),
    ('tpu', jnp.float16, 5e-4),
  )
  def test_dtypes(self, platform, dtype, bound):
    """Only the result is rounded: half an ulp of its largest entry."""
    m, k, n = 6, 384, 70
    rng = np.random.default_rng(0)
    codes, _, _ = _weight(rng, k, n, 8, 64)
    scale = rng.uniform(0.01, 0.02, (6, n)).astype(np.float32)
    zero = rng.normal(size=(6, n)).astype(np.float32)
    x = jnp.asarray(rng.normal(size=(m, k)), dtype)
    parts = codes, scale, zero
    got, _ = _multiply(x, parts, n, 8, 64, platform=platform, interpret=True)
    self.assertEqual(got.dtype, dtype)
    want = np.asarray(x, np.float64) @ _dense(codes, scale, zero, 64)
    error = np.abs(np.asarray(got, np.float64) - want).max()
    self.assertLess(error / np.abs(want).max(), bound)

  def test_bfloat16_scales(self):
    rng = np.random.default_rng(0)
    codes, scale, _ = _weight(rng, 96, 40, 4, 32, None)
    x = jnp.asarray(_whole_numbers(rng, 3, 96), jnp.bfloat16)
    parts = codes, jnp.asarray(scale, jnp.bfloat16), None
    got, back = _multiply(x, parts, 40, 4, 32, interpret=True)
    self.assertEqual(back[1].dtype, jnp.bfloat16)
    want = jnp.asarray(
      np.asarray(x, np.float32) @ _dense(codes, scale, None, 32), jnp.bfloat16
    )
    np.testing.assert_array_equal(got, want)

  def test_nan_stays_in_its_row(self):
    rng = np.random.default_rng(0)
    parts = _weight(rng, 64, 5, 8, 32)
    x = _whole_numbers(rng, 3, 64)
    x[1, 7], x[2, 8] = np.nan, np.inf
    got, _ = _multiply(x, parts, 5, 8, 32, interpret=True)
    finite = np.isfinite(np.asarray(got)).all(axis=1).tolist()
    self.assertEqual(finite, [True, False, False])


class BatchTest(parameterized.TestCase):
  @parameterized.parameters('gpu', 'tpu')
  def test_experts(self, platform):
    """Leading axes of x, of the weight and of both."""
    e, m, k, n, group = 3, 2, 100, 12, 32
    rng = np.random.default_rng(0)
    parts = [_weight(rng, k, n, 4, group) for _ in range(e)]
    stacked = [np.stack(a) for a in zip(*parts, strict=True)]
    x = np.stack([_whole_numbers(rng, m, k) for _ in range(e)])
    dense = np.stack([_dense(*p, group) for p in parts])
    lay = functools.partial(weight_only.lay_out, bits=4, group=group)
    w = jax.vmap(lay)(*map(jnp.asarray, stacked))
    first = jax.tree.map(lambda a: a[0], w)
    run = functools.partial(
      weight_only.matmul,
      n=n,
      bits=4,
      group=group,
      platform=platform,
      interpret=True,
    )
    both = jax.jit(jax.vmap(run))(x, w)
    np.testing.assert_array_equal(both, np.einsum('emk,ekn->emn', x, dense))
    shared = jax.vmap(run, (0, None))(x, first)
    np.testing.assert_array_equal(shared, x @ dense[0])
    spread = jax.vmap(run, (None, 0))(x[0], w)
    np.testing.assert_array_equal(spread, x[0] @ dense)


class EdgesTest(parameterized.TestCase):
  @parameterized.parameters((0, 5, 3), (2, 0, 3), (2, 5, 0))
  def test_empty(self, m, k, n):
    groups = -(-k // 32)
    w = weight_only.lay_out(
      jnp.zeros((k, n), jnp.int8), jnp.ones((groups, n)), bits=4, group=32
    )
    got = weight_only.matmul(
      jnp.ones((m, k)), w, n=n, bits=4, group=32, interpret=True
    )
    np.testing.assert_array_equal(got, np.zeros((m, n)))

  @parameterized.named_parameters(
    ('three_axes', dict(x=(2, 3, 64)), r'expected \[m, k\]'),
    ('other_k', dict(x=(2, 65)), 'Make them with weight_only.lay_out'),
    ('other_n', dict(n=129), 'Make them with weight_only.lay_out'),
    ('no_such_bits', dict(bits=3), '4 or 8 bits, not 3'),
    ('no_rows', dict(group=0), 'at least one row'),
    ('on_a_cpu', dict(interpret=False), 'interpret=True'),
    (
      'tiles_that_leave_a_rest',
      dict(tiles=tiles_lib.Tiles(16, 96, 1)),
      'do not divide a result of 16 x 128',
    ),
    ('no_such_device', dict(platform='npu'), "'cuda', 'gpu', 'rocm', 'tpu'"),
  )
  def test_mistakes(self, changed, message):
    w = weight_only.lay_out(
      jnp.zeros((64, 8), jnp.int8), jnp.ones((2, 8)), bits=4, group=32
    )
    how = dict(x=(2, 64), n=8, bits=4, group=32, interpret=True) | changed
    with self.assertRaisesRegex(ValueError, message):
      weight_only.matmul(jnp.ones(how.pop('x')), w, **how)

  def test_scales_of_other_groups(self):
    with self.assertRaisesRegex(ValueError, r'have \[2, 8\] of them'):
      weight_only.lay_out(
        jnp.zeros((64, 8), jnp.int8), jnp.ones((3, 8)), bits=4, group=32
      )

  def test_too_many_entries(self):
    k, n = 2**16, 2**15
    shapes = jax.eval_shape(
      lambda c, s: weight_only.lay_out(c, s, bits=8, group=None),
      jax.ShapeDtypeStruct((k, n), jnp.int8),
      jax.ShapeDtypeStruct((1, n), jnp.float32),
    )
    run = functools.partial(
      weight_only.matmul, n=n, bits=8, group=None, platform='gpu'
    )
    with self.assertRaisesRegex(ValueError, 'fewer than 2.31'):
      jax.eval_shape(run, jax.ShapeDtypeStruct((1, k), jnp.bfloat16), shapes)


if __name__ == '__main__':
  absltest.main()
