"""N:M sparse products, interpreted on CPU, against a scatter in numpy."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels.pallas import n_m
from jaxopt_compress.kernels.pallas import tiles as tiles_lib


def _weight(rng, k, n, kept, of, dtype=np.float32):
  """Whole numbers as values, and their places in each group."""
  groups = -(-k // of)
  places = rng.permuted(np.tile(np.arange(of), (groups, n, 1)), axis=2)
  indices = np.sort(places[..., :kept], axis=2).transpose(0, 2, 1)
  values = rng.integers(-9, 10, indices.shape).astype(dtype)
  # Nothing is kept beyond the end of k.
  rows = np.arange(groups)[:, None, None] * of + indices
  values[rows >= k] = 0
  shape = groups * kept, n
  return values.reshape(shape), indices.reshape(shape).astype(np.int8)


def _dense(values, indices, k, kept, of):
  """dense[M g + j] = sum_i values[g, i] [indices[g, i] = j]."""
  rows, n = values.shape
  dense = np.zeros((-(-k // of) * of, n))
  for r in range(rows):
    np.add.at(
      dense, (r // kept * of + indices[r].astype(int), np.arange(n)), values[r]
    )
  return dense[:k]


def _multiply(x, parts, n, kept, of, **how):
  """matmul(x, lay_out(parts)) and restore(lay_out(parts)), in one program."""
  same = dict(kept=kept, of=of)

  @jax.jit
  def run(x, parts):
    w = n_m.lay_out(*parts, k=x.shape[1], **same)
    back = n_m.restore(w, k=x.shape[1], n=n, **same)
    return n_m.matmul(x, w, n=n, interpret=True, **same, **how), back

  return run(x, parts)


class NMTest(parameterized.TestCase):
  @parameterized.parameters(
    # m, k, n, N, M, platform
    (1, 512, 128, 2, 4, 'gpu'),
    (1, 512, 128, 2, 4, 'tpu'),
    (18, 301, 131, 2, 4, 'gpu'),
    (18, 301, 131, 2, 4, 'tpu'),
    (2, 90, 5, 1, 4, 'gpu'),
    (2, 90, 5, 4, 8, 'tpu'),
    (2, 90, 5, 2, 3, 'gpu'),
    (2, 7, 5, 1, 2, 'tpu'),
    (2, 40, 5, 2, 16, 'gpu'),
    (2, 9, 5, 3, 3, 'gpu'),
    (2, 9, 5, 1, 1, 'gpu'),
  )
  def test_equal_to_the_bit(self, m, k, n, kept, of, platform):
    rng = np.random.default_rng(k)
    values, indices = _weight(rng, k, n, kept, of)
    x = rng.integers(-4, 5, (m, k)).astype(np.float32)
    got, back = _multiply(x, (values, indices), n, kept, of, platform=platform)
    np.testing.assert_array_equal(got, x @ _dense(values, indices, k, kept, of))
    np.testing.assert_array_equal(back[0], values)
    np.testing.assert_array_equal(back[1], indices)
    self.assertIsNone(back[2])

  def test_bytes(self):
    """2:4 int8 has 2.5 bytes for every four weights."""
    values, indices = _weight(
      np.random.default_rng(0), 4096, 256, 2, 4, np.int8
    )
    w = n_m.lay_out(values, indices, k=4096, kept=2, of=4)
    self.assertEqual(w.values.nbytes + w.indices.nbytes, 2.5 / 4 * 4096 * 256)

  @parameterized.parameters('gpu', 'tpu')
  def test_k_in_parts(self, platform):
    m, k, n = 3, 5 * 1024, 128
    rng = np.random.default_rng(0)
    values, indices = _weight(rng, k, n, 2, 4)
    x = rng.integers(-4, 5, (m, k)).astype(np.float32)
    got, _ = _multiply(
      x,
      (values, indices),
      n,
      2,
      4,
      platform=platform,
      tiles=tiles_lib.Tiles(16, 128, 2),
    )
    np.testing.assert_array_equal(got, x @ _dense(values, indices, k, 2, 4))

  @parameterized.parameters(
    # x, values, result, platform
    ('bfloat16', 'bfloat16', 'bfloat16', 'gpu'),
    ('bfloat16', 'float32', 'float32', 'tpu'),
    ('bfloat16', 'int8', 'bfloat16', 'tpu'),
    ('float16', 'int8', 'float16', 'gpu'),
    ('float16', 'int8', 'float16', 'tpu'),
    ('float32', 'int8', 'float32', 'gpu'),
  )
  def test_dtypes(self, x_dtype, w_dtype, dtype, platform):
    k, n = 64, 9
    rng = np.random.default_rng(0)
    values, indices = _weight(rng, k, n, 2, 4)
    scale = rng.choice([0.5, 2.0], (1, n)).astype(np.float32)
    scale = jnp.asarray(scale) if w_dtype == 'int8' else None
    x = jnp.asarray(rng.integers(-2, 3, (3, k)), x_dtype)
    stored = jnp.asarray(values, w_dtype)
    parts = stored, indices, scale
    got, back = _multiply(x, parts, n, 2, 4, platform=platform)
    self.assertEqual(back[0].dtype, w_dtype)
    want = np.asarray(x, np.float64) @ _dense(values, indices, k, 2, 4)
    want = want if scale is None else want * np.asarray(scale)
    self.assertEqual(got.dtype, dtype)
    np.testing.assert_array_equal(got, jnp.asarray(want, dtype))

  def test_experts(self):
    e, m, k, n = 2, 3, 48, 10
    rng = np.random.default_rng(0)
    parts = [_weight(rng, k, n, 2, 4) for _ in range(e)]
    stacked = [jnp.stack(a) for a in zip(*parts, strict=True)]
    x = rng.integers(-4, 5, (e, m, k)).astype(np.float32)
    lay = functools.partial(n_m.lay_out, k=k, kept=2, of=4)
    run = functools.partial(n_m.matmul, n=n, kept=2, of=4, interpret=True)
    got = jax.jit(jax.vmap(run))(x, jax.vmap(lay)(*stacked))
    for i in range(e):
      want = x[i] @ _dense(*parts[i], k, 2, 4)
      np.testing.assert_array_equal(got[i], want)

  @parameterized.parameters((0, 5, 3), (2, 0, 3), (2, 5, 0))
  def test_empty(self, m, k, n):
    rows = -(-k // 4) * 2
    w = n_m.lay_out(
      jnp.ones((rows, n)), jnp.zeros((rows, n), jnp.int8), k=k, kept=2, of=4
    )
    got = n_m.matmul(jnp.ones((m, k)), w, n=n, kept=2, of=4, interpret=True)
    np.testing.assert_array_equal(got, np.zeros((m, n)))

  @parameterized.named_parameters(
    ('more_kept_than_there_are', dict(kept=5), '5:4 is not N:M'),
    ('other_k', dict(x=(2, 640)), 'Make them with n_m.lay_out'),
    ('other_pattern', dict(kept=1), 'Make them with n_m.lay_out'),
  )
  def test_mistakes(self, changed, message):
    values = jnp.ones((32, 8))
    w = n_m.lay_out(values, values.astype(jnp.int8), k=64, kept=2, of=4)
    how = dict(x=(2, 64), n=8, kept=2, of=4, interpret=True) | changed
    with self.assertRaisesRegex(ValueError, message):
      n_m.matmul(jnp.ones(how.pop('x')), w, **how)

  def test_indices_of_other_rows(self):
    with self.assertRaisesRegex(
      ValueError, '2:4 of 64 rows has 32 rows of both'
    ):
      n_m.lay_out(
        jnp.ones((32, 8)), jnp.ones((16, 8), jnp.int8), k=64, kept=2, of=4
      )


if __name__ == '__main__':
  absltest.main()
