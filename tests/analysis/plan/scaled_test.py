"""By how much values are off where the number 2 of a program becomes 4."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import algebra
from jaxopt_compress.analysis import walk
from jaxopt_compress.analysis.plan import scaled

X, TWICE = jnp.ones((3, 2)), math.log(2)


def _loop(x, n):
  return lax.scan(lambda c, _: (c * 1.0, c), x * n, None, 3)[1]


# {name: (function of x and the number, the factor of its result as a power of 2, or
# None where it has none)}
CASES = {
  'times': (lambda x, n: x * n, 1),
  'over': (lambda x, n: n / (x / n), 2),
  'power': (lambda x, n: jnp.sqrt(x / n) ** 3, -1.5),
  'inverse': (lambda x, n: lax.rsqrt(x * n + 1e-6), -0.5),
  'sum': (lambda x, n: x * n + x * n, 1),
  'sum of others': (lambda x, n: x * n + x, None),
  'zero': (lambda x, n: jnp.maximum(x * n, 0) + jnp.zeros((1, 2)), 1),
  'moved': (lambda x, n: jnp.concatenate([x * n, x * n]).T[None, :, 1:], 1),
  'cancels': (lambda x, n: jnp.exp((x * n) * (x / n)), 0),
  'does not pass': (lambda x, n: jnp.exp(x * n), None),
  'compared': (lambda x, n: jnp.where(x * n > 0, x * n, 0), 1),
  'compared with another': (lambda x, n: jnp.where(x * n > x, x, 0), None),
  'largest': (lambda x, n: lax.top_k(x * n, 1)[0], 1),
  'where the largest is': (lambda x, n: jnp.argmax(x * n, -1) * 1.0, 0),
  'in a call': (lambda x, n: jax.jit(jax.checkpoint(lambda x: x * n))(x), 1),
  'in a loop': (_loop, 1),
  'grows in a loop': (
    lambda x, n: lax.scan(lambda c, _: (c * n, None), x, None, 3)[0],
    None,
  ),
  'product': (lambda x, n: (x * n) @ (x * n).T, 2),
  'softmax': (lambda x, n: jax.nn.softmax(x * n), None),
}


class ScaledTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_factor(self, name):
    fun, power = CASES[name]
    one, two = (jax.make_jaxpr(lambda x, n=n: fun(x, n))(X) for n in (2.0, 4.0))
    ratios = {}
    for at, again in zip(walk.places(one), walk.places(two), strict=True):
      logs = map(scaled.ratio, at.eqn.invars, again.eqn.invars)
      ratios[id(at.eqn)] = {i: log for i, log in enumerate(logs) if log}
    asked = scaled.Scaled(ratios)
    (out,) = algebra.evaluate(asked, one, [{}])
    if power is None:
      self.assertNotEmpty(asked.wanted)
      return
    self.assertEmpty(asked.wanted)
    self.assertAlmostEqual((out or {}).get('', 0.0), power * TWICE)
    x = jnp.array([[1.0, 3.0], [2.0, 5.0], [4.0, 0.5]])
    np.testing.assert_allclose(fun(x, 4.0), 2**power * fun(x, 2.0), rtol=1e-5)

  def test_numbers(self):
    number = lambda x: jax.make_jaxpr(lambda y: y * x)(1.0).eqns[0].invars[1]
    for a, b, log in ((2.0, 4.0, TWICE), (3.0, 3.0, 0), (-2.0, 4.0, None)):
      found = scaled.ratio(number(a), number(b))
      self.assertEqual(found is None, log is None)
      self.assertAlmostEqual(found or 0, log or 0)


if __name__ == '__main__':
  absltest.main()
