from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc


def fun(p, x):
  h = jax.nn.relu(x @ p['a'])
  h = jax.nn.relu(h @ p['b'])
  h = h - h.mean(-1, keepdims=True)  # not exact
  return h @ p['c']


P = {'a': jnp.ones((4, 16)), 'b': jnp.ones((16, 8)), 'c': jnp.ones((8, 2))}
X = jnp.ones((3, 4))
FOUND = jc.structure(fun)(P, X)
IMPORTANCE = {
  'a:-1': np.arange(16.0)[::-1],
  'b:-1': np.array([0.0, 1, 2, 3, 3, 2, 1, 0]),
}


class SelectTest(parameterized.TestCase):
  def test_the_largest_stay(self):
    plan = jc.select(FOUND, IMPORTANCE, keep=0.25)
    self.assertEqual(plan.sizes, {'a:-1': 4})  # b is not exact
    self.assertEqual(plan.sources['a:-1'].tolist(), [0, 1, 2, 3])

  def test_rules_let_others_go(self):
    plan = jc.select(FOUND, IMPORTANCE, keep=0.5, by=[('.*', 'keep')])
    self.assertEqual(plan.sources['b:-1'].tolist(), [2, 3, 4, 5])
    by = [('b.*', 0.25), ('.*', None)]
    plan = jc.select(FOUND, IMPORTANCE, keep=0.5, by=by)
    self.assertEqual(plan.sizes, {'b:-1': 2})

  @parameterized.parameters(
    # keep, multiple, at_least: of 16
    (0.7, 1, 1, 11),
    (0.7, 4, 1, 8),
    (0.1, 4, 1, 4),
    (0.1, 4, 5, 8),
    (0.01, 1, 1, 1),
    (1.0, 1, 1, 16),
    (0.5, 32, 1, 16),
  )
  def test_sizes(self, keep, multiple, at_least, want):
    plan = jc.select(
      FOUND, IMPORTANCE, keep=keep, multiple=multiple, at_least=at_least
    )
    self.assertEqual(plan.shapes['a'], (4, want))

  @parameterized.parameters(
    dict(flops=0.5), dict(params=100), dict(bytes=0.6), dict(params=0.9)
  )
  def test_budget(self, **limits):
    budget = jc.Budget(fun, P, X, **limits)
    plan = jc.select(FOUND, IMPORTANCE, budget=budget)
    ((name, limit),) = budget.limits.items()
    self.assertLessEqual(budget.costs(plan)[name], limit)
    # One channel more would be too much.
    n = plan.sizes['a:-1']
    more = jc.Plan(FOUND, {'a:-1': np.arange(n + 1)})
    self.assertGreater(budget.costs(more)[name], limit)
    y = fun(plan.apply(P), X)
    np.testing.assert_allclose(y, fun(plan.mask(P), X), rtol=1e-6)

  @parameterized.named_parameters(
    ('both', dict(keep=0.5, budget=1), 'one of the two'),
    ('neither', {}, 'one of the two'),
    ('keep', dict(keep=0), 'keep=0'),
    ('multiple', dict(keep=0.5, multiple=0), 'multiple=0'),
    ('fraction', dict(keep=0.5, by=[('.*', 2.0)]), '=2.0; a fraction'),
    ('nothing', dict(keep=0.5, by=[('.*', None)]), 'stay as they are'),
    ('rule', dict(keep=0.5, by=[('d.*', 0.5), ('.*', None)]), 'd\\.\\*'),
    (
      'budget',
      dict(budget=jc.Budget(fun, P, X, params=10)),
      "smallest network .*'params': 28.*'params': 10",
    ),
  )
  def test_refused(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      jc.select(FOUND, IMPORTANCE, **options)

  @parameterized.named_parameters(
    ('locked', {'c:-1': np.ones(2)}, 'c:-1 is no group that may go'),
    ('shape', {'a:-1': np.ones(3)}, r'shape \(3,\).*16 finite'),
    ('nan', {'a:-1': np.full(16, np.nan)}, '16 numbers that are not finite'),
  )
  def test_importance_that_is_refused(self, importance, message):
    with self.assertRaisesRegex(ValueError, message):
      jc.select(FOUND, importance, keep=0.5)


if __name__ == '__main__':
  absltest.main()
