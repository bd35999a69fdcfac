"""Clips of least error."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.quantization import clip

_RNG = np.random.default_rng(0)


class _Case(parameterized.TestCase):
  """Draws the same numbers whatever ran before."""

  def setUp(self):
    super().setUp()
    global _RNG
    _RNG = np.random.default_rng(0)


class ClipTest(_Case):
  def test_finds_the_least_of_each_block(self):
    wanted = jnp.array([0.25, 0.6, 1.0, jnp.nan])
    found = clip.search(lambda s: jnp.square(s - wanted))
    np.testing.assert_allclose(found, [0.25, 0.6, 1, 1], atol=0.01)
    np.testing.assert_array_equal(clip.search(lambda s: jnp.zeros(2)), [1, 1])

  @parameterized.parameters(
    'int2',
    'int3 g16',
    'int4 g64 asym',
    'e2m1 g16 nv',
    'e2m1 g32 mx rceil',
    'nf4 g64 dq',
  )
  def test_mse_ranges_round_better(self, words):
    w = jnp.asarray(_RNG.standard_t(4, size=(128, 16)), jnp.float32)
    error = lambda words: float(
      jnp.linalg.norm(
        jc.quantize({'kernel': w}, [('kernel', words)])['kernel'].materialize()
        - w
      )
    )
    self.assertLess(error(words + ' mse'), 0.995 * error(words))

  def test_importance_lowers_the_error_of_outputs(self):
    w = jnp.asarray(_RNG.standard_t(4, size=(2, 64, 16)), jnp.float32)
    size = np.exp(_RNG.normal(size=64))
    x = jnp.asarray(_RNG.normal(size=(200, 64)) * size, jnp.float32)
    f = lambda p, x: jnp.einsum('bi,lio->lbo', x, p['w'])
    uses = jc.uses(f)({'w': w}, x)
    _, stats = jc.observe(f, {'w': jc.statistics.sum_squares()})({'w': w}, x)

    def error(importance):
      q = jc.quantize(
        {'w': w}, [('w', 'int3 mse')], uses, importance=importance
      )
      return float(jnp.linalg.norm(f(jc.materialize(q), x) - f({'w': w}, x)))

    self.assertLess(error({'w': stats['w'].state}), 0.95 * error(None))
    for bad in (jnp.nan, jnp.inf, -1.0):
      with self.assertRaisesRegex(ValueError, 'of w.* negative or not finite'):
        error({'w': jnp.ones(64).at[1].set(bad)})
    with self.assertRaisesRegex(ValueError, 'importance of w has shape'):
      error({'w': jnp.ones(63)})


if __name__ == '__main__':
  absltest.main()
