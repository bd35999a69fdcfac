"""What each entry takes up: shares along axes that hold more than one group."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.distillation.growth import parts


def fun(p, x):
  # Two branches side by side, and places that stay: [2, 3 + 2] entries are read.
  a, b = jnp.tanh(x @ p['a']), jnp.sin(x @ p['b'])
  y = jnp.concatenate([a, b], -1)
  return y.reshape(y.shape[0], -1) @ p['head']


PARAMS = {
  'a': jnp.ones((4, 3)),
  'b': jnp.ones((4, 2)),
  'head': jax.random.normal(jax.random.key(0), (10, 1)),
}
STRUCTURE = jc.structure(fun)(PARAMS, jnp.ones((5, 2, 4)))


class PartsTest(parameterized.TestCase):
  def test_marks_what_is_new(self):
    grown = parts.Grown(jc.widen(STRUCTURE, sizes={'a:-1': 4}))
    want = [0, 0, 0, 1, 0, 0] * 2
    np.testing.assert_array_equal(grown.part('head').new[:, 0], want)
    self.assertFalse(grown.part('head').made.any())
    np.testing.assert_array_equal(grown.part('a').made[0], [0, 0, 0, 1])

  @parameterized.parameters(None, 3)
  def test_shares_along_a_sum_and_a_product(self, seed):
    grown = parts.Grown(jc.widen(STRUCTURE, factor=2))
    key = None if seed is None else jax.random.key(seed)
    got = grown.part('head').shared(jnp.ones((20, 1)), key).reshape(2, 10)
    a, b = got[:, :6], got[:, 6:]
    np.testing.assert_allclose(a[:, :3] + a[:, 3:], 1.0, rtol=1e-6)
    np.testing.assert_allclose(b[:, :2] + b[:, 2:], 1.0, rtol=1e-6)
    self.assertEqual(bool((a == 0.5).all()), seed is None)

  def test_other_sources_from_row_to_row_are_refused(self):
    scan = lambda p, x: jax.lax.scan(
      lambda x, w: (x + jnp.tanh(x @ w[0]) @ w[1], None), x, p
    )[0]
    p = jnp.ones((2, 3, 4)), jnp.ones((2, 4, 3))
    structure = jc.structure(scan)(p, jnp.ones((1, 3)))
    (name,) = [n for n, g in structure.free.items() if g.size == 4]
    rows = [[0, 1, 2, 3, 0], [0, 1, 2, 3, 1]]
    with self.assertRaisesRegex(ValueError, 'one\n? ?list for all'):
      parts.Grown(jc.Plan(structure, {name: rows}))


if __name__ == '__main__':
  absltest.main()
