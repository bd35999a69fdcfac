"""Two programs with one formula, and others that only look alike."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.kernels import formulas

X = jax.ShapeDtypeStruct((3, 4), jnp.float32)


@jax.custom_jvp
def silu(x):
  return jax.nn.silu(x)


silu.defjvp(lambda p, t: (silu(*p), t[0] * p[0]))

ALIKE = {
  'another order': (jax.nn.silu, lambda x: lax.logistic(x) * x),
  'written out': (jax.nn.silu, lambda x: x * lax.logistic(x)),
  'in jit': (jax.nn.silu, jax.jit(lambda x: jax.jit(jax.nn.silu)(x))),
  'more that nothing reads': (
    jax.nn.silu,
    jax.jit(lambda x: (jnp.sin(x), jax.nn.silu(x))[1]),
  ),
}
OTHER = {
  'another order': (lambda x: x - 2.0, lambda x: 2.0 - x),
  'another constant': (lambda x: x * 2.0, lambda x: x * 3.0),
  'another power': (lambda x: x**2, lambda x: x**3),
  'another result': (jax.nn.silu, lambda x: lax.logistic(x)),
  'a derivative of its own': (jax.nn.silu, silu),
}


class FormulasTest(parameterized.TestCase):
  @parameterized.named_parameters((n, *fs) for n, fs in ALIKE.items())
  def test_alike(self, f, g):
    found = formulas.of_function(f, X)
    self.assertIsNotNone(found)
    self.assertEqual(found, formulas.of_function(g, X))

  @parameterized.named_parameters((n, *fs) for n, fs in OTHER.items())
  def test_other(self, f, g):
    self.assertNotEqual(formulas.of_function(f, X), formulas.of_function(g, X))

  def test_derivatives_are_those_of_the_rules(self):
    plain = formulas.of_derivative(jax.nn.silu, X)
    own = formulas.of_derivative(silu, X)
    self.assertIsNotNone(own)
    self.assertNotEqual(own, plain)
    self.assertEqual(formulas.of_derivative(jax.jit(jax.nn.silu), X), plain)
    self.assertEqual(own[0][0][0], 'mul')

  def test_equations_as_a_function(self):
    jaxpr = jax.make_jaxpr(silu)(X).jaxpr
    f = formulas.as_function(jaxpr.eqns, *jaxpr.invars, *jaxpr.outvars)
    x, ones = jnp.full(X.shape, 2.0), jnp.ones(X.shape)
    y, dy = jax.jvp(f, (x,), (ones,))
    self.assertAlmostEqual(float(y[0, 0]), float(jax.nn.silu(2.0)), places=6)
    self.assertEqual(float(dy[0, 0]), 2.0)


if __name__ == '__main__':
  absltest.main()
