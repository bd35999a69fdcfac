from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from jaxopt_compress.analysis import algebra
from jaxopt_compress.analysis.structure import rules as structure_rules
from jaxopt_compress.analysis.structure import tied

_W, _X = jnp.ones((3, 8)), jnp.ones((5, 3))

# Whether f(x @ w) is zero at the columns at which w is.
VANISH = {
  'relu': (jax.nn.relu, True),
  'gelu': (jax.nn.gelu, True),
  'silu': (jax.nn.silu, True),
  'tanh': (jnp.tanh, True),
  'sigmoid': (jax.nn.sigmoid, False),
  'exp': (jnp.exp, False),
  'softplus': (jax.nn.softplus, False),
  'elu': (jax.nn.elu, True),
  'a bias': (lambda y: y + 1, False),
  'a gain': (lambda y: y * 3, True),
  'a gate': (lambda y: y * jax.nn.sigmoid(y), True),
  'a residual': (lambda y: y + jnp.tanh(y), True),
  'a part': (lambda y: jnp.where(y > 0, y, 0), True),
  'beside zeros': (lambda y: jnp.concatenate([y, 0 * y], -1), True),
  'beside ones': (lambda y: jnp.concatenate([y, y + 1], -1), False),
}


class TiedTest(parameterized.TestCase):
  @parameterized.parameters(*VANISH)
  def test_vanishes(self, name):
    f, want = VANISH[name]
    asked = tied.Tied(structure_rules.RULES)
    closed = jax.make_jaxpr(lambda w, x: f(x @ w))(_W, _X)
    rows, columns = map(asked.channels.axis, _W.shape)
    w = tied.Value((rows, columns), frozenset((*rows, *columns)))
    (out,) = algebra.evaluate(asked, closed, [w, asked.plain(_X)])
    self.assertEqual(set(columns).isdisjoint(asked.outside(out)), want)
    # Of what is masked, the same is true of numbers.
    y = f(_X @ _W.at[:, 2].set(0.0))
    places = [i for i in range(y.shape[-1]) if i % 8 == 2]
    self.assertEqual(not jnp.any(y[:, jnp.array(places)]), want)


if __name__ == '__main__':
  absltest.main()
