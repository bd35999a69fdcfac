"""Which values become leaves, and their names."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress.analysis.hoist import leaves

X = jnp.ones((2, 4))
W = jnp.ones((4, 4))


class LeavesTest(parameterized.TestCase):
  @parameterized.parameters(
    (['a/k'], 'a/k'),
    (['a/k', 'b/k'], 'a&b/k'),
    (['m/a/k', 'm/b/k'], 'm/a&b/k'),
    (['m/k', 'm/mask'], 'm/k&mask'),
    (['a', 'a/b'], 'a&a.b'),
    (['p/x/y', 'q/z/y'], 'p.x&q.z/y'),
    ([f'c/{i}/k' for i in range(6)], 'c/0&1&2&3_more/k'),
  )
  def test_joined(self, paths, want):
    self.assertEqual(leaves.joined(paths), want)

  def test_two_leaves_of_one_parameter_have_names_of_their_own(self):
    def apply(p, x):
      # Two of the first axis, each half as large as the parameter.
      low, high = jnp.exp(p['w'][:, :2]), jnp.tanh(p['w'][:, 2:])
      return x @ low + x @ high

    found = jc.analysis.hoisted(apply)({'w': W}, X)
    self.assertEqual(
      {n: d.shape for n, d in found.items()}, {'w': (4, 2), 'w_tanh': (4, 2)}
    )

  def test_a_parameter_keeps_its_name(self):
    def apply(p, x):
      return x @ (p['w'] * p['b']) + (x @ p['w2'])[:, :1] * p['b'].sum()

    params = {'b': jnp.ones((4, 4)), 'w': W, 'w2': W}
    found = jc.analysis.hoisted(apply)(params, X)
    self.assertEqual(list(found), ['w2', 'b&w', 'b'])
    self.assertEqual(found['b'].primitives, ('reduce_sum',))

  @parameterized.parameters(1, 2, 3)
  def test_bytes_are_spent_once(self, times):
    """Of a small and a large parameter as many leaves come as there are bytes for."""

    def apply(p, x):
      for i in range(times):
        x = x @ (p['w'] * jnp.exp(p['g'] + i))
      return x

    params = {'g': jnp.ones((4, 4)), 'w': W}
    found = jc.analysis.hoisted(apply)(params, X)
    sizes = [
      jc.nbytes(jax.ShapeDtypeStruct(d.shape, d.dtype)) for d in found.values()
    ]
    self.assertLessEqual(sum(sizes), jc.nbytes(params) * 17 / 16)
    self.assertEqual(
      'mul' in {p for d in found.values() for p in d.primitives}, times < 3
    )
