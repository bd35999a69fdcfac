from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp

import jaxopt_compress as jc

_P = {'a': jnp.ones((3, 8)), 'b': jnp.ones((8, 2), jnp.bfloat16)}
_X = jnp.ones((5, 3))


def fun(p, x):
  return x @ p['a'] @ p['b']


class BudgetTest(parameterized.TestCase):
  def test_counted(self):
    found = jc.structure(fun)(_P, _X)
    budget = jc.Budget(fun, _P, _X, flops=0.5, params=1000, bytes=0.25)
    plan = jc.Plan(found, {'a:-1': [0, 1]})
    costs = {'flops': 2 * 5 * (3 * 2 + 2 * 2), 'params': 10, 'bytes': 32}
    self.assertEqual(budget.costs(plan), costs)
    limits = {'flops': 5 * (3 * 8 + 8 * 2), 'params': 1000, 'bytes': 32}
    self.assertEqual(budget.limits, limits)

  def test_a_size_in_the_program(self):
    fixed = lambda p, x: (x @ p['a']).reshape(5, 2, 4).reshape(5, 8) @ p['b']
    plan = jc.Plan(jc.structure(fun)(_P, _X), {'a:-1': [0, 1]})
    with self.assertRaisesRegex(ValueError, "'a:-1': 2.*reshape"):
      jc.Budget(fixed, _P, _X, flops=0.5).costs(plan)

  @parameterized.parameters({}, {'flops': 0}, {'params': -1})
  def test_refused(self, **limits):
    with self.assertRaisesRegex(ValueError, 'positive limit'):
      jc.Budget(fun, _P, _X, **limits)


if __name__ == '__main__':
  absltest.main()
