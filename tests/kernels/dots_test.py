"""Products of any arrangement as products of rows, with what follows them."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.core import lift
from jaxopt_compress.kernels import dots

X = jax.random.normal(jax.random.key(0), (2, 3, 16))
W = jax.random.normal(jax.random.key(1), (16, 4, 6)) / 4
B = jax.random.normal(jax.random.key(2), (4, 6))

# Equation, and the order of the axes of the weight.
ARRANGEMENTS = {
  'heads': ('btk,khd->bthd', (0, 1, 2)),
  'heads first': ('btk,hkd->bthd', (1, 0, 2)),
  'rows last': ('btk,hdk->bthd', (1, 2, 0)),
  'turned': ('btk,kdh->btdh', (0, 2, 1)),
  'of the first axis': ('kbt,khd->bthd', (0, 1, 2)),
}


def _leaf(name):
  equation, order = ARRANGEMENTS[name]
  w = jnp.transpose(W, order)
  x = jnp.moveaxis(X, -1, 0) if equation.startswith('k') else X
  f = lambda p, x: jnp.einsum(equation, x, p['w'])
  uses = jc.uses(f)({'w': w}, x)
  q = jc.quantize({'w': w}, [('w', 'int8')], uses)
  return f, x, q, jc.pack(q, uses, target='cpu')


class DotsTest(parameterized.TestCase):
  @parameterized.named_parameters((name, name) for name in ARRANGEMENTS)
  def test_with_a_bias_and_a_sum(self, name):
    f, x, q, packed = _leaf(name)
    b = B.T if name == 'turned' else B
    other = jnp.arange(144.0).reshape(2, 3, *b.shape)

    def run(p, x):
      return jax.nn.relu(f(p, x) * 0.5 + b[None, None] + other)

    want, got = (jax.jit(jc.lift(run))(p, x) for p in (q, packed))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)

  def test_how(self):
    _, x, _, packed = _leaf('rows last')
    numbers = (((2,), (2,)), ((), ()))
    how = dots.arranged(x, packed['w'], 1, numbers, None)
    self.assertEqual((how.count, how.x_order), (6, (0, 1, 2)))
    self.assertEqual(how.rows(x).shape, (6, 16))
    self.assertEqual(how.results(jnp.ones((6, 24))).shape, (2, 3, 4, 6))

  @parameterized.parameters(
    ((((2,), (0,)), ((), ())), 'over other axes'),
    ((((2,), (2,)), ((0,), (0,))), 'stacked axes are not batch'),
  )
  def test_declines(self, numbers, why):
    _, x, _, packed = _leaf('rows last')
    how = dots.arranged(x, packed['w'], 1, numbers, None)
    self.assertIsInstance(how, lift.Dense)
    self.assertIn(why, how.reason)

  def test_those_that_read_other_rows_are_not_together(self):
    _, x, _, packed = _leaf('heads')
    numbers = (((2,), (0,)), ((), ())), (((0,), (0,)), ((), ()))
    hows = [dots.arranged(x, packed['w'], 1, n, None) for n in numbers]
    self.assertIs(dots.together(x, hows, [None, None]), NotImplemented)
    ys = dots.together(x, hows[:1] * 2, [None, None])
    self.assertEqual([y.shape for y in ys], [(2, 3, 4, 6)] * 2)


if __name__ == '__main__':
  absltest.main()
