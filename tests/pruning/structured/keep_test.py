import dataclasses

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

  def test_rules_with_numbers_of_channels(self):
    by = [('b.*', 6), ('.*', 'keep')]
    plan = jc.select(FOUND, IMPORTANCE, keep=0.5, by=by)
    self.assertEqual(plan.sizes, {'a:-1': 8, 'b:-1': 6})

  def test_a_rule_that_names_what_is_locked(self):
    with self.assertRaisesRegex(
      ValueError, 'c:-1, .*the size of a result. .*ope'
    ):
      jc.select(FOUND, IMPORTANCE, keep=0.5, by=[('c.*-1', 0.5), ('.*', None)])

  @parameterized.parameters(
    # keep, multiple, at_least, rounding: of 16
    (0.7, 1, 1, 'down', 11),
    (0.7, 4, 1, 'down', 8),
    (0.7, 4, 1, 'nearest', 12),
    (0.6, 4, 1, 'nearest', 8),
    (0.6, 4, 1, 'up', 12),
    (0.1, 4, 1, 'down', 4),
    (0.1, 4, 5, 'down', 8),
    (0.1, 4, 0.5, 'down', 8),
    (0.01, 1, 1, 'down', 1),
    (1.0, 1, 1, 'down', 16),
    (1.0, 6, 1, 'down', 16),
    (0.99, 6, 1, 'up', 16),
  )
  def test_sizes(self, keep, multiple, at_least, rounding, want):
    options = dict(multiple=multiple, at_least=at_least, rounding=rounding)
    if want == 16 and keep < 1:
      with self.assertRaisesRegex(ValueError, 'Nothing goes: .*smaller mult'):
        jc.select(FOUND, IMPORTANCE, keep=keep, **options)
      return
    plan = jc.select(FOUND, IMPORTANCE, keep=keep, **options)
    self.assertEqual(plan.shapes['a'], (4, want))
    asked = plan.asked['a:-1']
    self.assertEqual(f'(asked for {asked})' in str(plan), asked != want)
    again = jc.Plan.from_json(plan.to_json())
    self.assertEqual(str(again), str(plan))

  @parameterized.named_parameters(
    # a 0 .. 15 and b 0 1 2 3 3 2 1 0, of which one has to stay
    ('local', dict(scope='local'), 8, 4),
    ('global', dict(scope='global'), 11, 1),
    ('alike', dict(scope='alike'), 8, 4),
    ('rules', dict(scope=[('.*', 'all')]), 11, 1),
    ('rules apart', dict(scope=[('a.*', 'all'), ('.*', 'b')]), 8, 4),
    ('floor', dict(scope='global', at_least=0.5), 8, 4),
    ('cap', dict(scope='global', at_most=0.5), 8, 4),
    ('cap of one', dict(scope='global', at_most=4), 4, 4),
    ('rounded', dict(scope='global', multiple=4), 8, 4),
  )
  def test_scopes(self, options, a, b):
    by = [('.*', 'keep')]
    plan = jc.select(FOUND, IMPORTANCE, keep=0.5, by=by, **options)
    self.assertEqual(plan.sizes, {'a:-1': a, 'b:-1': b})

  def test_layers_share_a_threshold(self):
    p = {f'layer_{i}': jnp.ones((4, 4)) for i in range(3)}
    f = lambda p, x: x @ p['layer_0'] @ p['layer_1'] @ p['layer_2']
    found = jc.structure(f)(p, X)
    given = {
      'layer_0:-1': np.array([1.0, 2, 3, 4]),
      'layer_1:-1': np.array([0.0, 0, 0, 5]),
    }
    plan = jc.select(found, given, keep=0.5, scope='alike')
    self.assertEqual(plan.sizes, {'layer_0:-1': 3, 'layer_1:-1': 1})

  @parameterized.parameters(
    dict(flops=0.5), dict(params=100), dict(bytes=0.6), dict(params=0.9)
  )
  def test_budget(self, **limits):
    budget = jc.Budget(fun, P, X, **limits)
    plan = jc.select(FOUND, IMPORTANCE, budget=budget)
    ((name, limit),) = budget.limits.items()
    self.assertLessEqual(budget.costs(plan)[name], limit)
    self.assertEmpty(plan.asked)
    # One channel more would be too much.
    n = plan.sizes['a:-1']
    more = jc.Plan(FOUND, {'a:-1': np.arange(n + 1)})
    self.assertGreater(budget.costs(more)[name], limit)
    y = fun(jc.shrink(plan, P), X)
    np.testing.assert_allclose(y, fun(plan.mask(P), X), rtol=1e-6)

  def test_groups_that_step_together_grow_one_by_one(self):
    p = {'a': jnp.ones((4, 2)), 'b': jnp.ones((2, 2)), 'c': jnp.ones((2, 2))}
    f = lambda p, x: x @ p['a'] @ p['b'] @ p['c']
    found = jc.structure(f)(p, X)
    given = dict.fromkeys(('a:-1', 'b:-1'), np.ones(2))
    # Of 8 + 4 + 4 both halved leave 7; with the first whole 12; the second, 10.
    for params, a, b in (
      (8, 1, 1),
      (9, 1, 1),
      (10, 1, 2),
      (11, 1, 2),
      (12, 2, 1),
      (15, 2, 1),
    ):
      plan = jc.select(found, given, budget=jc.Budget(f, p, X, params=params))
      self.assertEqual(plan.sizes, {'a:-1': a, 'b:-1': b})

  @parameterized.named_parameters(
    ('both', dict(keep=0.5, budget=1), 'one of the two'),
    (
      'both with limits',
      dict(keep=0.5, budget=jc.Budget(fun, P, X, params=10)),
      r"budget=\{'params': 10\}: give one",
    ),
    (
      'a multiple of all',
      dict(budget=jc.Budget(fun, P, X, params=0.5), multiple=64),
      'Nothing goes: .*multiple=64 with',
    ),
    ('neither', {}, 'one of the two'),
    ('fraction as budget', dict(budget=0.5), 'a jc.Budget is expected'),
    ('keep', dict(keep=0), 'keep=0'),
    ('word', dict(keep='half'), 'keep=half'),
    ('scope', dict(keep=0.5, scope='globally'), "Did you mean 'global'"),
    ('rounding', dict(keep=0.5, rounding='off'), "choose one of \\('down'"),
    ('floor', dict(keep=0.5, at_least=0.6, at_most=0.5), 'more than at_most'),
    ('none', dict(keep=0.5, at_least=0), 'at_least=0'),
    ('channels', dict(keep=0.5, by=[('.*', 9)]), 'b:-1=9'),
    ('large', dict(keep=0.5, multiple=32), "{'a:-1': 8} .*{'a:-1': 16}"),
    ('multiple', dict(keep=0.5, multiple=0), 'multiple=0'),
    ('fraction', dict(keep=0.5, by=[('.*', 2.0)]), '=2.0; a fraction'),
    ('nothing', dict(keep=0.5, by=[('.*', None)]), 'stay as they are'),
    ('rule', dict(keep=0.5, by=[('d.*', 0.5), ('.*', None)]), 'd\\.\\*'),
    (
      'locked',
      dict(keep=0.5, by=[('c:.*', 0.5), ('.*', None)]),
      r"'c:\.\*'.*c:-1 has to stay.*size of a result, so open .*opened\('c:-1'\)",
    ),
    (
      'budget',
      dict(budget=jc.Budget(fun, P, X, params=10)),
      "smallest network .*'params': 28.*'params': 10",
    ),
  )
  def test_refused(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      jc.select(FOUND, IMPORTANCE, **options)

  def test_refused_for_what_the_structure_says(self):
    b = {'b:-1': IMPORTANCE['b:-1']}
    with self.assertRaisesRegex(ValueError, 'are: not exact: div has'):
      jc.select(FOUND, b, keep=0.5)
    fixed = dataclasses.replace(FOUND.groups['a:-1'], fixed='shape (4, 16)')
    found = dataclasses.replace(FOUND, groups={**FOUND.groups, 'a:-1': fixed})
    says = (
      r'are: build the model again: shape \(4, 16\); not .* jc.config_delta'
    )
    with self.assertRaisesRegex(ValueError, says):
      jc.select(found, IMPORTANCE, keep=0.5)
    self.assertIn(fixed.remarks[0], str(found))

  @parameterized.named_parameters(
    ('locked', {'c:-1': np.ones(2)}, 'c:-1 is no group that may go'),
    ('nothing', {}, 'No group has an importance'),
    ('shape', {'a:-1': np.ones(3)}, r'shape \(3,\).*16 finite'),
    ('nan', {'a:-1': np.full(16, np.nan)}, '16 numbers that are not finite'),
  )
  def test_importance_that_is_refused(self, importance, message):
    with self.assertRaisesRegex(ValueError, message):
      jc.select(FOUND, importance, keep=0.5)


if __name__ == '__main__':
  absltest.main()
