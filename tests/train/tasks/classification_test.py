"""Classes as answers."""

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.train.tasks import classification


class ClassificationTest(absltest.TestCase):
  def test_among_the_first(self):
    rng = np.random.default_rng(0)
    # With ties, of which the first counts as the larger, as sorted stably.
    y = rng.integers(0, 4, (40, 7)).astype('f')
    label = rng.integers(0, 7, 40)
    mask = rng.random(40) < 0.7
    for k in (1, 3, 5):
      first = np.argsort(-y, axis=-1, kind='stable')[:, :k]
      expected = (first == label[:, None]).any(-1)[mask].sum()
      found = classification.among(
        jnp.array(y), jnp.array(label), jnp.array(mask), k=k
      )
      self.assertEqual([int(x) for x in found], [expected, mask.sum()])
    found = classification.right(jnp.array(y), jnp.array(label), mask)
    self.assertEqual(int(found[0]), (y.argmax(-1) == label)[mask].sum())
    self.assertEqual(
      int(classification.among(jnp.full((1, 3), jnp.nan), jnp.array([2]))[0]), 0
    )

  def test_bits(self):
    bits = classification.next_byte.metrics['bits per byte']
    self.assertAlmostEqual(bits.finish(np.log(2) * 6, 4), 1.5)
    self.assertFalse(bits.higher_is_better)
    self.assertEqual(next(iter(classification.masked_byte.metrics))[:4], 'bits')


if __name__ == '__main__':
  absltest.main()
