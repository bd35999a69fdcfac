"""Weights that go and come: an oracle in numpy, and the numbers kept."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.pruning import exchange
from jaxopt_compress.pruning import masking

KEYS = jax.random.split(jax.random.key(0), 4)


def oracle(mask, w, grow, fraction):
  """Algorithm 1 of Evci et al. 2020, sorted in numpy."""
  mask, size, grow = mask.ravel(), np.abs(w).ravel(), grow.ravel()
  n = mask.sum()
  stay = round(float(n) * (1 - fraction))
  order = np.argsort(-np.where(mask, size, -1.0), kind='stable')
  kept = np.zeros_like(mask)
  kept[order[:stay]] = True
  order = np.argsort(-np.where(kept, np.inf, grow), kind='stable')
  new = np.zeros_like(mask)
  new[order[:n]] = True
  return new


class ExchangeTest(parameterized.TestCase):
  @parameterized.product(
    fraction=(0.0, 0.3, 1.0), dtype=('float32', 'bfloat16')
  )
  def test_as_sorted_in_numpy(self, fraction, dtype):
    w, grow = (jax.random.normal(k, (6, 9), dtype) for k in KEYS[:2])
    grow = jnp.abs(grow)
    mask = jax.random.bernoulli(KEYS[2], 0.4, (6, 9))
    got = jax.jit(exchange.exchange)(mask, w, grow, jnp.float32(fraction))
    want = oracle(*(np.asarray(x) for x in (mask, w, grow)), fraction)
    np.testing.assert_array_equal(got.ravel(), want)
    self.assertEqual(got.sum(), mask.sum())

  @parameterized.parameters(jnp.inf, jnp.nan)
  def test_a_gradient_that_is_not_finite_drops_nothing_that_stays(self, bad):
    mask = jnp.array([True, True, False, False])
    w = jnp.array([1.0, 2.0, 0.0, 0.0])
    grow = jnp.array([0.0, 0.0, bad, bad])
    got = jax.jit(exchange.exchange)(mask, w, grow, 0.5)
    self.assertTrue(got[1])
    self.assertEqual(int(got.sum()), 2)

  def test_each_layer_keeps_its_number(self):
    w = jax.random.normal(KEYS[0], (3, 4, 5))
    mask = jnp.stack([jnp.arange(20).reshape(4, 5) < n for n in (4, 9, 20)])
    spec = masking.Sparsity(0.5)
    got = exchange.exchanged(
      spec, {'w': w}, {'w': mask}, lambda p, x: jnp.abs(jnp.cos(x)), 0.5
    )['w']
    self.assertEqual(got.sum((1, 2)).tolist(), [4, 9, 20])
    for layer in range(3):
      one = exchange.exchange(
        mask[layer], w[layer], jnp.abs(jnp.cos(w[layer])), 0.5
      )
      np.testing.assert_array_equal(got[layer], one)

  def test_random_scores_differ_by_path_step_and_seed(self):
    x = jnp.ones((4, 4))
    of = [(0, 'a', 0), (1, 'a', 0), (0, 'b', 0), (0, 'a', 1)]
    seen = {exchange.uniform(s, p, x, t).tobytes() for s, p, t in of}
    self.assertLen(seen, 4)
    again = exchange.uniform(0, 'a', x, jnp.int32(1))
    self.assertIn(again.tobytes(), seen)

  def test_mistakes(self):
    rules = [('w', masking.Sparsity(kind='n_m', n=2, m=4))]
    with self.assertRaisesRegex(ValueError, "'w' has kind='n_m'.*sr_ste"):
      exchange.check(rules, 0.3)
    with self.assertRaisesRegex(ValueError, 'drop=30'):
      exchange.check([], 30)


if __name__ == '__main__':
  absltest.main()
