"""Half-quadratic zero points against the published iteration, in numpy."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc


def _weights():
  rng = np.random.default_rng(0)
  return (rng.standard_t(3, size=(128, 24)) + 0.3).astype(np.float32)


def _oracle(w, bits, group, steps=20, p=0.7, beta=10.0):
  """The iteration for groups along the first axis, in float64."""
  w = np.float64(w).reshape(-1, group, w.shape[1])
  low, high = np.minimum(w.min(1), 0), np.maximum(w.max(1), 0)
  s = ((high - low) / (2**bits - 1))[:, None]
  lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
  z = -0.5 - ((high + low) / 2)[:, None] / s
  z = np.clip(np.round(z), lowest, highest) if bits > 2 else z
  best = np.full(z.shape, np.inf)
  w_hat = np.zeros_like(w)
  for _ in range(steps + 1):
    q = np.clip(np.round(w / s + z), lowest, highest)
    error = w - (q - z) * s
    norm = (np.abs(error) ** p).mean(1, keepdims=True)
    w_hat = np.where(norm < best, (q - z) * s, w_hat)
    best = np.minimum(best, norm)
    size = np.maximum(np.abs(error), 1e-8)
    kept = np.sign(error) * np.maximum(size - size ** (p - 1) / beta, 0)
    z = (q - (w - kept) / s).mean(1, keepdims=True)
    beta *= 1.01
  return w_hat.reshape(-1, w.shape[2]), best


def _error(q, w):
  return float((np.abs(np.asarray(q.materialize()) - w) ** 0.7).mean())


class HqqTest(parameterized.TestCase):
  @parameterized.product(bits=(2, 3, 4), group=(16, 64))
  def test_equals_the_iteration(self, bits, group):
    w = _weights()
    q = jc.quantize(
      {'kernel': jnp.asarray(w)}, [('kernel', f'int{bits} g{group} asym hqq')]
    )['kernel']
    want, norm = _oracle(w, bits, group)
    self.assertEqual(q.zero.dtype, jnp.float32)
    np.testing.assert_allclose(_error(q, w), norm.mean(), rtol=2e-3)
    got = np.asarray(q.materialize())
    self.assertGreater((np.abs(got - want) < 1e-3).mean(), 0.97)

  @parameterized.parameters('int2 g32', 'int3 g64', 'int4 g64', 'e2m1 g32')
  def test_is_better_than_rounding_in_its_norm(self, words):
    w = _weights()
    plain, better = (
      jc.quantize(
        {'kernel': jnp.asarray(w)}, [('kernel', f'{words} asym{how}')]
      )
      for how in ('', ' hqq')
    )
    self.assertLess(
      _error(better['kernel'], w), 0.99 * _error(plain['kernel'], w)
    )
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 128)), jnp.float32)
    y = jax.jit(jc.lift(jnp.dot, strict=True))(x, better['kernel'])
    np.testing.assert_allclose(
      y, x @ better['kernel'].materialize(), rtol=1e-4, atol=1e-3
    )

  def test_needs_zero_points(self):
    with self.assertRaisesRegex(ValueError, 'symmetric=False'):
      jc.schemes.Spec('int4', range='hqq')


if __name__ == '__main__':
  absltest.main()
