from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc

P = {
  'a': jnp.array([[3.0, -1.0, 0.5], [1.0, 2.0, 0.0]]),
  'b': jnp.array([[1.0], [2.0], [0.5]], jnp.bfloat16),
  'step': jnp.array(3),
  'key': jax.random.key(0),
}
# The last batch is smaller.
BATCHES = [
  (jax.random.normal(jax.random.key(i), (n, 2)), jnp.arange(n) * 1.0)
  for i, n in enumerate((4, 4, 3))
]


def loss(p, x, y):
  out = jnp.tanh(x @ p['a']) @ p['b'].astype(jnp.float32)
  return jnp.mean((out[:, 0] - y) ** 2)


def by_hand(batches):
  """The gradients of the two weights in each batch, in float64."""
  split = lambda w, b: loss({'a': w[0], 'b': w[1]}, *b)
  g = [jax.grad(split)((P['a'], P['b']), b) for b in batches]
  return {
    'a': np.stack([x[0] for x in g]).astype(float),
    'b': np.stack([x[1] for x in g]).astype(float),
  }


class GradientsTest(parameterized.TestCase):
  def test_over_batches(self):
    g = by_hand(BATCHES)
    mean = jc.pruning.gradients(loss, P, BATCHES)
    squares = jc.pruning.fisher(loss, P, iter(BATCHES))
    for path in ('a', 'b'):
      np.testing.assert_allclose(mean[path], g[path].mean(0), rtol=1e-2)
      np.testing.assert_allclose(
        squares[path], (g[path] ** 2).mean(0), rtol=1e-2
      )
      self.assertEqual(mean[path].dtype, jnp.float32)
    self.assertEqual(squares['step'], 0)
    self.assertEqual(squares['key'].shape, ())

  def test_over_examples(self):
    examples = [
      (x[i : i + 1], y[i : i + 1]) for x, y in BATCHES for i in range(len(y))
    ]
    g = by_hand(examples)
    found = jc.pruning.fisher(loss, P, BATCHES, per='example')
    for path in ('a', 'b'):
      np.testing.assert_allclose(found[path], (g[path] ** 2).mean(0), rtol=1e-2)

  def test_batches_as_words(self):
    named = [{'y': y, 'x': x} for x, y in BATCHES]
    a, b = (
      jc.pruning.gradients(loss, P, batches) for batches in (named, BATCHES)
    )
    self.assertEqual(a['a'].tolist(), b['a'].tolist())

  def test_compiled_once(self):
    """Of one function, whatever its weights; others are other programs."""
    traced = []

    def counted(p, x, y):
      traced.append(x.shape)
      return loss(p, x, y)

    double = jax.tree.map(lambda x: x * 2 if x.dtype == 'f' else x, P)
    first, _, again = (
      jc.pruning.gradients(counted, p, BATCHES[:1]) for p in (P, double, P)
    )
    self.assertLen(traced, 1)
    self.assertEqual(first['a'].tolist(), again['a'].tolist())
    fun = lambda p, _: p['b'].reshape(p['n'], -1)[0].sum()
    for n in (1, 3):  # no array: part of the program
      params = {'n': n, 'b': jnp.ones(6)}
      found = jc.pruning.gradients(fun, params, [1.0])
      self.assertEqual(found['b'].sum(), 6 // n)

  @parameterized.named_parameters(
    ('nothing', jc.pruning.gradients, P, [], 'no batch'),
    (
      'nan',
      jc.pruning.fisher,
      dict(P, a=P['a'] * jnp.nan),
      BATCHES,
      'of a are not finite at 6',
    ),
  )
  def test_refused(self, f, params, batches, message):
    with self.assertRaisesRegex(ValueError, message):
      f(loss, params, batches)

  def test_per(self):
    with self.assertRaisesRegex(ValueError, "mean 'example'"):
      jc.pruning.fisher(loss, P, BATCHES, per='examples')


if __name__ == '__main__':
  absltest.main()
