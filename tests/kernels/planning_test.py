"""Which matrices a weight becomes, drawn, and why some become none."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress.kernels import planning


def _einsum(equation):
  return lambda p, x: jnp.einsum(equation, x, p['w'])


PLANNED = {  # equation, x, w, words: rows, columns, order, group, stack
  'dense': ('bk,kn->bn', (2, 8), (8, 6), 'int8', (8,), (6,), (0, 1), 8, 0),
  'groups': ('bk,kn->bn', (2, 8), (8, 6), 'int8 g4', (8,), (6,), (0, 1), 4, 0),
  'transposed': ('bk,nk->bn', (2, 8), (6, 8), 'int8', (8,), (6,), (1, 0), 8, 0),
  'heads': (
    'bk,khd->bhd',
    (2, 8),
    (8, 3, 5),
    'int8',
    (8,),
    (3, 5),
    (0, 1, 2),
    8,
    0,
  ),
  'two rows': (
    'bhd,hdn->bn',
    (2, 3, 8),
    (3, 8, 6),
    'int8',
    (3, 8),
    (6,),
    (0, 1, 2),
    24,
    0,
  ),
  'experts': (
    'ebk,ekn->ebn',
    (4, 2, 8),
    (4, 8, 6),
    'int8',
    (8,),
    (6,),
    (0, 1),
    8,
    1,
  ),
}


def _planned(equation, x, w, words):
  f = _einsum(equation)
  params = {'w': jax.random.normal(jax.random.key(0), w)}
  uses = jc.uses(f)(params, jnp.ones(x))
  q = jc.quantize(params, [('w', words)], uses)['w']
  return planning.plan('w', q, uses)


class PlanningTest(parameterized.TestCase):
  @parameterized.named_parameters((n, *case) for n, case in PLANNED.items())
  def test_plan(
    self, equation, x, w, words, rows, columns, order, group, stack
  ):
    found = _planned(equation, x, w, words)
    self.assertEqual(found.plan.matrix, (rows, columns, order))
    self.assertEqual((found.plan.group, found.stack), (group, stack))
    self.assertEqual(planning.why_not_on_cpu(found), '')

  @parameterized.parameters(
    ('bk,kn->bn', (2, 9), (9, 6), 'int8 g3', 'a scale for every 3 rows'),
    ('bk,kn->bn', (2, 140_000), (140_000, 1), 'int8', '32 bits do not hold'),
    (
      'bhd,hdn->bn',
      (2, 3, 9),
      (3, 9, 6),
      'int8 g4',
      'groups of 4 do not divide',
    ),
  )
  def test_why_not(self, equation, x, w, words, why):
    found = _planned(equation, x, w, words)
    self.assertIsNone(found.plan)
    self.assertIn(why, found.why)


if __name__ == '__main__':
  absltest.main()
