from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.analysis import flops

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

  def test_another_program(self):
    fixed = lambda p, x: (x @ p['a']).reshape(5, 2, 4).reshape(5, 8) @ p['b']
    plan = jc.Plan(jc.structure(fun)(_P, _X), {'a:-1': [0, 1]})
    with self.assertRaisesRegex(ValueError, "another program .*'a', 'b'"):
      jc.Budget(fixed, _P, _X, flops=0.5).costs(plan)

  def test_a_size_in_the_program(self):
    fixed = lambda p, x: (x @ p['a']).reshape(5, 8) @ p['b']
    found = jc.structure(fixed)(_P, _X)
    self.assertIn('reshape', found.groups['a:-1'].fixed)
    budget = jc.Budget(fixed, _P, _X, flops=0.5)
    plan = jc.Plan(found, {'a:-1': [0, 1]})
    self.assertEqual(budget.costs(plan), {'flops': 2 * 5 * (3 * 2 + 2 * 2)})
    with self.assertRaisesRegex(ValueError, "'a:-1': 2.*reshape"):
      budget.measured(plan)

  def test_several(self):
    found = jc.structure(fun)(_P, _X)
    given = {'a:-1': np.arange(8.0)}
    for limits in (dict(flops=0.5, params=0.9), dict(flops=0.9, params=0.5)):
      budget = jc.Budget(fun, _P, _X, **limits)
      plan = jc.select(found, given, budget=budget)
      self.assertEqual(plan.sizes, {'a:-1': 4})
      self.assertEqual(
        budget.told(plan).split('\n')[1],
        f'params   40 -> 20, at most {40 * limits["params"]:.0f}',
      )

  @parameterized.parameters({}, {'flops': 0}, {'params': -1})
  def test_refused(self, **limits):
    with self.assertRaisesRegex(ValueError, 'positive limit'):
      jc.Budget(fun, _P, _X, **limits)

  def test_layers(self):
    # Of three blocks one goes, and the others get narrower.
    def deep(p, x):
      for block in p['blocks']:
        x = x + jax.nn.relu(x @ block['up']) @ block['down']
      return x @ p['head']

    block = {'up': jnp.ones((3, 8)), 'down': jnp.ones((8, 3))}
    p = {'blocks': [block] * 3, 'head': jnp.ones((3, 2))}
    found = jc.structure(deep)(p, _X)
    (layers,) = found.layers
    narrow = [n for n, g in found.free.items() if g.size == 8]
    plan = jc.Plan(found, {layers: [0, 2], **{n: [0, 1, 2, 3] for n in narrow}})
    budget = jc.Budget(deep, p, _X, flops=1.0, params=1.0, bytes=1.0)
    small = jc.shrink(plan, p)
    size = sum(x.size for x in jax.tree.leaves(small))
    self.assertEqual(
      budget.costs(plan),
      {
        'flops': flops.flops(deep)(small, _X),
        'params': size,
        'bytes': 4 * size,
      },
    )
    self.assertGreater(budget.measured(plan), 0)
    # Budgets choose how many of them stay, too.
    given = {layers: np.array([2.0, 0.0, 1.0])}
    half = jc.Budget(deep, p, _X, flops=0.7)
    plan = jc.select(found, given, budget=half, by=[('.*', 'keep')])
    self.assertEqual(plan.sources[layers].tolist(), [0, 2])

  def test_a_table_without_latency(self):
    with self.assertRaisesRegex(ValueError, 'is for a budget with latency='):
      jc.Budget(fun, _P, _X, flops=0.5, table='x.json')


if __name__ == '__main__':
  absltest.main()
