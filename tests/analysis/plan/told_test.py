"""What a plan that widens prints."""

from absl.testing import absltest
import jax
import jax.numpy as jnp

import jaxopt_compress as jc


def norm(x):
  x = x - x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def fun(p, x):
  return norm(jnp.tanh(x @ p['a']) @ p['b']) @ p['c']


PARAMS = {'a': jnp.ones((3, 4)), 'b': jnp.ones((4, 6)), 'c': jnp.ones((6, 2))}
STRUCTURE = jc.structure(fun)(PARAMS, jnp.ones((5, 3)))


class ToldTest(absltest.TestCase):
  def test_wider(self):
    text = str(jc.Plan(STRUCTURE, {'b:-1': [0, 1, 2, 3, 4, 5, 5]}))
    want = r"""48 -> 54 parameters
     6 ->      7  b:-1
                  not kept: reduce_sum at .*told_test.py:\S+ \(norm\) counts every copy
[^$]*     4            a:-1 stays: it is not asked for"""
    self.assertRegex(text, want)

  def test_even_copies_are_kept(self):
    self.assertNotIn('not', str(jc.widen(STRUCTURE, 2)).split('stays')[0])

  def test_up_to_what_the_function_is_kept(self):
    # A tied table has to take one factor up for the norm, another for the result.
    def tied(p, x):
      x = x @ p
      x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
      return x @ p.T

    structure = jc.structure(tied)(jnp.ones((3, 4)), jnp.ones((5, 3)))
    text = str(jc.Plan(structure, {':-1': [0, 1, 2, 3, 3]}))
    self.assertRegex(text, r'kept up to 1e-06 at .*told_test.py.* is another')

  def test_a_number_of_groups(self):
    """The model has the size of each group itself, and runs with no other number."""

    def grouped(p, x):
      y = norm((x @ p['a']).reshape(5, 2, 4))
      return y.reshape(5, 8) @ p['b']

    p = {'a': jnp.ones((3, 8)), 'b': jnp.ones((8, 2))}
    text = str(jc.widen(jc.structure(grouped)(p, jnp.ones((5, 3))), 2))
    self.assertIn('2 become 4: set that number in your model', text)

  def test_read_from_text(self):
    plan = jc.Plan.from_json(jc.widen(STRUCTURE, 2).to_json())
    self.assertIn('4 ->      8  a:-1', str(plan))

  def test_what_goes_says_what_is_inexact(self):
    text = str(jc.Plan(STRUCTURE, {'b:-1': [0, 1]}))
    self.assertIn('not exact', text)
    self.assertNotIn('stays', text)


if __name__ == '__main__':
  absltest.main()
