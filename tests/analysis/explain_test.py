"""How a lifted function would run."""

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress.analysis import explain

X = jnp.ones((2, 8))
Q = jc.quantize({'w': jnp.eye(8)}, [('w', 'W8A16')], uses=in_out.IN_OUT)['w']


class ExplainTest(parameterized.TestCase):
  def test_meetings_in_program_order(self):
    def f(p, x):
      y = x @ p['a']['w']
      return y * jnp.tanh(p['a']['w']).sum() + (p['b'] @ y.T).T

    met = explain.explain(f)({'a': {'w': Q}, 'b': Q}, X)
    self.assertEqual(
      [(m.path, m.primitive, m.native) for m in met],
      [
        ('a/w', 'dot_general', True),
        ('a/w', 'tanh', False),
        ('b', 'dot_general', True),
      ],
    )
    self.assertEqual(met[1].reason, 'QArray has no rule for it')
    for m in met:
      self.assertRegex(m.source, r'explain_test\.py:\d+')

  @parameterized.named_parameters(
    dict(testcase_name='jit', wrap=jax.jit),
    dict(testcase_name='remat', wrap=jax.checkpoint),
    dict(testcase_name='both', wrap=lambda f: jax.jit(jax.checkpoint(f))),
  )
  def test_names_go_through(self, wrap):
    f = wrap(lambda p, x: (x @ p['w']) * p['w'][0, 0])
    met = explain.explain(f)({'w': Q}, X)
    self.assertEqual({m.path for m in met}, {'w'})
    self.assertTrue(met[0].native)

  def test_nothing_is_computed_and_arguments_may_be_abstract(self):
    def never(_):
      raise AssertionError('computed')

    def f(w, x):
      jax.debug.callback(never, x)
      return x @ w

    w, x = jax.eval_shape(lambda: (Q, X))
    self.assertLen(explain.explain(f)(w, x), 1)

  def test_a_leaf_that_gives_way_is_said(self):
    (native, dense) = explain.explain(lambda v, w: v @ w)(Q, Q)
    self.assertEqual((native.path, dense.path), ('0', '1'))


if __name__ == '__main__':
  absltest.main()
