import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress.analysis import flops
from jaxopt_compress.analysis.plan import resized
from jaxopt_compress.pruning.structured import latency
from jaxopt_compress.pruning.structured import stopwatch

P = {'a': jnp.ones((3, 16)), 'b': jnp.ones((16, 8)), 'c': jnp.ones((2, 8, 8))}
X = jnp.ones((5, 3))


def fun(p, x):
  x = jax.nn.relu(x @ p['a']) @ p['b']
  return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p['c'])[0]


class Counted(stopwatch.Table):
  """A machine on which an operation takes a second."""

  def _measured(self, operation):
    return float(flops.of_equation(operation))


class LatencyTest(parameterized.TestCase):
  @parameterized.parameters(
    # seconds of the whole, of the group a in size n
    (1.0, 16),
    (1.0, 7),
    (3.0, 16),
    (3.0, 12),
    (3.0, 1),
  )
  def test_of_counted_seconds(self, slow, n):
    program = resized.resized(fun)(P, X)
    dots = lambda n: 2 * 5 * (3 * n + n * 8) + 2 * (2 * 5 * 8 * 8)
    # relu, and tanh twice, write floats; jitted functions write theirs once
    others = sum(
      o.times * sum(v.aval.size * 4 for v in o.outvars)
      for o in (e.at(program.sizes | {'a:-1': n}) for e in program.equations)
      if o.primitive.name != 'dot_general'
    )
    all_others = sum(
      o.times * sum(v.aval.size * 4 for v in o.outvars)
      for o in (e.at(program.sizes) for e in program.equations)
      if o.primitive.name != 'dot_general'
    )
    now = slow * dots(16)
    made = latency.Latency(program, now, Counted())
    rest = max(now - dots(16), 0) * others / all_others
    self.assertAlmostEqual(made.seconds({'a:-1': n}), dots(n) + rest, places=3)
    self.assertAlmostEqual(made.seconds({}), now, places=3)

  def test_products_that_are_faster_together(self):
    program = resized.resized(fun)(P, X)
    half = latency.Latency(program, 0.5 * 2160, Counted())
    self.assertEqual(half.now, half.seconds({}))

  def test_few_sizes_are_measured(self):
    table, program = Counted(), resized.resized(fun)(P, X)
    made = latency.Latency(program, 1e6, table)
    for n in range(1, 17):
      made.seconds({'a:-1': n})
    #  of two products 1, 2, 4, 8, 12, 16, of which one is the third product, too
    self.assertLen(table.seconds, 2 * 6)

  def test_a_budget(self):
    file = self.enterContext(tempfile.TemporaryDirectory()) + '/new/x.json'
    found = jc.structure(fun)(P, X)
    budget = jc.Budget(fun, P, X, latency=0.9, table=file)
    plan = jc.Plan(found, {'a:-1': [0, 1]})
    has, now = budget.costs(plan)['latency'], budget.now['latency']
    self.assertBetween(has, 0, now)
    self.assertGreater(budget.measured(plan), 0)
    self.assertRegex(budget.told(plan), r'latency  .* ms -> .* ms, at most')
    # What was measured is read: the same products, in another process.
    again = stopwatch.Table(file)
    again._measured = None
    program = resized.resized(fun)(P, X)
    latency.Latency(program, 1.0, again).seconds(plan.sizes)


if __name__ == '__main__':
  absltest.main()
