from absl.testing import absltest
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.analysis.layers import streams

P = {'layers': {'w': jnp.stack([jnp.eye(2) * i for i in range(3)])}}
NAMED = {'layers': [{'w': w} for w in P['layers']['w']]}
X = jnp.array([[1.0, 2.0]])


def looped(p, x, reverse=False):
  def layer(carry, p):
    x, n = carry
    return (x + x @ p['w'], n + 1), x.sum()

  (x, _), ys = lax.scan(layer, (x, 0), p['layers'], reverse=reverse)
  return x, ys


def named(p, x):
  for layer in p['layers']:
    x = x + x @ layer['w']
  return x


class StreamsTest(absltest.TestCase):
  def test_measured(self):
    # Layers of 0, 1 and 2 times the identity: x is multiplied by 1, 2 and 3.
    measure = lambda name, x, y: y[0, 0] / x[0, 0]
    for fun, p, name in (
      (looped, P, 'layers/w:-3'),
      (named, NAMED, 'layers/0:layers'),
      (lambda p, x: looped(p, x, reverse=True), P, 'layers/w:-3'),
    ):
      found = jc.structure(fun)(p, X)
      self.assertEqual(streams.groups(found), [name])
      run = jax.jit(streams.at_layers(found, fun, measure))
      outs, got = run(p, X)
      np.testing.assert_array_equal(outs[0], fun(p, X)[0].reshape(1, 2))
      self.assertEqual(got[name].tolist(), [1, 2, 3])

  def test_skipped(self):
    for fun, p, name in (
      (looped, P, 'layers/w:-3'),
      (named, NAMED, 'layers/0:layers'),
    ):
      found = jc.structure(fun)(p, X)
      skip = {name: jnp.array([True, False, True])}
      outs, got = streams.at_layers(found, fun, skip=skip)(p, X)
      self.assertEqual(outs[0].tolist(), [[2, 4]])
      self.assertEmpty(got)

  def test_compressed(self):
    found = jc.structure(named)(NAMED, X)
    q = jc.quantize(NAMED, [('.*', 'int8')], jc.uses(named)(NAMED, X))
    run = streams.at_layers(found, named, lambda name, x, y: y)
    np.testing.assert_allclose(run(q, X)[0][0], named(NAMED, X), rtol=1e-2)

  def test_refused(self):
    found = jc.structure(named)(NAMED, X)
    with self.assertRaisesRegex(ValueError, "no layers.*'layers/0:layers'"):
      streams.at_layers(found, lambda p, x: x @ p['layers'][0]['w'])(NAMED, X)

    def two(p, x):
      def layer(carry, p):
        x, y = carry
        return (x + y @ p['w'], y + x @ p['w']), None

      return lax.scan(layer, (x, x), p['layers'])[0][0]

    found = jc.structure(two)(P, X)
    with self.assertRaisesRegex(ValueError, r'carries \[.*one array'):
      streams.at_layers(found, two)(P, X)


if __name__ == '__main__':
  absltest.main()
