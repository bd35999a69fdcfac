from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
from networks import free_of

import jaxopt_compress as jc

# Of p [2, 6, 4]: what is left free of it, in sizes; '~' where that is not exact.
CASES = {
  'one-hot of the largest': (
    lambda p: jax.nn.one_hot(jnp.argmax(p, 1), 6, axis=1) * p,
    '2 6~ 4',
  ),
  'entries of the largest': (
    lambda p: jnp.take_along_axis(p, lax.top_k(p, 2)[1], -1),
    '2 6 4~',
  ),
  'sorted by the places': (
    lambda p: jnp.take_along_axis(p, jnp.argsort(p, 1)[:, :3], 1),
    '2 6~ 4',
  ),
  'counted': (
    lambda p: jnp.bincount(jnp.argmax(p, -1).ravel(), length=4) @ p[0, 0],
    '(+) (+5) 4~',
  ),
  'computed with': (lambda p: p.sum() + 2.5 * jnp.argmax(p, 1), '2~ 4~'),
  'of a constant': (lambda p: p * (jnp.argmax(p, 1) == 3)[:, None], '2 4'),
  'more than there are': (
    lambda p: jax.nn.one_hot(jnp.argmax(p, 1), 7, axis=1),
    '2~ 4~',
  ),
  'in a slice': (
    lambda p: lax.dynamic_index_in_dim(p, jnp.argmax(p.sum((0, 2))), 1),
    '2 4',
  ),
  'in a loop over them': (
    lambda p: lax.map(
      lambda ex: (jnp.argmax(p.sum((1, 2))) == ex[0]) * ex[1],
      (jnp.arange(2), p),
    ),
    '2~ 6 4',
  ),
}


class StructureNumbersTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_free(self, name):
    fun, want = CASES[name]
    found = free_of(lambda p: jnp.sum(fun(p)), jnp.ones((2, 6, 4)))
    self.assertEqual(found, want)

  def test_rows_of_an_input(self):
    def fun(p, ids, kinds):
      return (p['words'][ids] + p['kinds'][kinds] + p['places'][None]) @ p[
        'head'
      ]

    p = {'words': (9, 4), 'kinds': (3, 4), 'places': (6, 4), 'head': (4, 9)}
    p = jax.tree.map(jnp.ones, p, is_leaf=lambda x: isinstance(x, tuple))
    ids = jnp.zeros((2, 6), int)
    found = jc.structure(fun)(p, ids, ids)
    open_ = {name for name, g in found.groups.items() if g.at_boundary}
    self.assertEqual(open_, {'head:-1', 'kinds:-2', 'words:-2', 'places:-2'})
    with self.assertRaisesRegex(ValueError, 'words:-2.*an input holds'):
      jc.Plan(found, {'words:-2': [0, 1]})
    plan = jc.Plan(found.opened('words:-2'), {'words:-2': [0, 1]})
    self.assertEqual(plan.shapes['words'], (2, 4))
    self.assertEqual(jc.Plan.from_json(plan.to_json()).shapes, plan.shapes)

  def test_opened_is_refused(self):
    found = jc.structure(lambda p: jnp.cumsum(p['a'] @ p['b']))(
      {'a': jnp.ones((1, 3)), 'b': jnp.ones((3, 4))}
    )
    with self.assertRaisesRegex(ValueError, 'b:-1 has to stay.*cumsum'):
      found.opened('b:-1')

  def test_as_many_as_are_taken_stay(self):
    def fun(p, x):
      return lax.top_k(x @ p['w'], 2)[0].sum()

    found = jc.structure(fun)({'w': jnp.ones((3, 5))}, jnp.ones((2, 3)))
    with self.assertRaisesRegex(ValueError, 'w:-1: 1 are left.*takes 2'):
      jc.Plan(found, {'w:-1': [4]})
    self.assertEqual(jc.Plan(found, {'w:-1': [4, 1]}).shapes['w'], (3, 2))


if __name__ == '__main__':
  absltest.main()
