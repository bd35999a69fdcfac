from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
from networks import free_of
import numpy as np

# Of p [2, 6, 4]: what is left free of it, in sizes; '~' where that is not exact.
CASES = {
  'sorted': (lambda p: jnp.sort(p, 1).sum(), '2~ 4~'),
  'cumulated': (lambda p: jnp.cumsum(p, 1).sum(), '2 4'),
  'argmax': (lambda p: (jnp.argmax(p, 1) * 1.0).sum(), '2~ 4~'),
  'maximum': (lambda p: p.max(1).sum(), '2 6~ 4'),
  'constant': (lambda p: (p * np.eye(4)[None, :1]).sum(), '2 6'),
  # Rows and columns of one number; the first row has one column apart.
  'identity': (lambda p: (p * jnp.eye(4)[None, :1]).sum(), '2 6 (+3)'),
  'square': (lambda p: jnp.einsum('abc,adc->bd', p, p).sum(), '2 6 4'),
  'scan': (
    lambda p: lax.scan(lambda c, w: (c + w, None), jnp.zeros((6, 4)), p)[
      0
    ].sum(),
    '2~ 6~ 4~',
  ),
  'while': (
    lambda p: lax.fori_loop(0, 3, lambda i, c: c + p, p).sum(),
    '2~ 6~ 4~',
  ),
  'cond': (
    lambda p: lax.cond(p.sum() > 0, lambda: p, lambda: -p).sum(),
    '2 6 4',
  ),
  'remat': (lambda p: jax.checkpoint(jnp.sin)(p).sum(), '2 6 4'),
  'vmap': (lambda p: jax.vmap(jnp.sin)(p).sum(), '2 6 4'),
}


class StructureRulesTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_free(self, name):
    fun, want = CASES[name]
    self.assertEqual(free_of(fun, jnp.ones((2, 6, 4))), want)


if __name__ == '__main__':
  absltest.main()
