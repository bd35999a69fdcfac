"""What is added to the product of a weight, in programs of many forms."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress.analysis import added

W, B, X = jnp.ones((4, 4)), jnp.ones((1, 4)), jnp.ones((2, 4))


def _scanned(p, x):
  return lax.scan(lambda x, p: (x @ p['w'] + p['b'], None), x, p)[0]


# {name: (fun, {weight: (bias, sign)})}
CASES = {
  'added': (lambda p, x: x @ p['w'] + p['b'], {'w': ('b', 1)}),
  'added to': (lambda p, x: p['b'] + (x @ p['w']), {'w': ('b', 1)}),
  'taken off': (lambda p, x: x @ p['w'] - p['b'], {'w': ('b', -1)}),
  'taken off from': (lambda p, x: p['b'] - x @ p['w'], {}),
  'vector': (lambda p, x: x @ p['w'] + p['b'][0][None], {'w': ('b', 1)}),
  'transposed': (lambda p, x: (p['w'] @ x.T).T + p['b'], {'w': ('b', 1)}),
  'not at once': (lambda p, x: jnp.tanh(x @ p['w']) + p['b'], {}),
  'of two': (lambda p, x: x @ p['w'] + x @ p['v'] + p['b'], {}),
  'used twice': (lambda p, x: (x @ p['w'] + p['b']) @ p['w'], {}),
  'used twice alike': (
    lambda p, x: (x @ p['w'] + p['b']) @ p['w'] + p['b'],
    {'w': ('b', 1)},
  ),
  'in jit and remat': (
    lambda p, x: jax.jit(jax.checkpoint(lambda x: x @ p['w'] + p['b']))(x),
    {'w': ('b', 1)},
  ),
}


class BiasesTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_found(self, name):
    fun, want = CASES[name]
    found = jc.analysis.biases(fun)({'w': W, 'v': W, 'b': B}, X)
    self.assertEqual(found, {w: added.Bias(*b) for w, b in want.items()})

  def test_scanned_layers(self):
    params = {'w': jnp.stack([W, W]), 'b': jnp.stack([B, B])}
    found = jc.analysis.biases(_scanned)(params, X)
    self.assertEqual(found, {'w': ('b', 1)})

  def test_modules(self):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
      nnx.Conv(1, 4, (3, 3), use_bias=False, rngs=rngs),
      nnx.BatchNorm(4, use_running_average=True, rngs=rngs),
      nnx.relu,
      nnx.Linear(4, 2, rngs=rngs),
    )
    graphdef, state = nnx.split(model)
    fun = lambda state, x: nnx.merge(graphdef, state)(x)
    found = jc.analysis.biases(fun)(state, jnp.ones((1, 4, 4, 1)))
    self.assertEqual(
      found,
      {
        'layers/0/kernel': ('layers/1/mean', -1),
        'layers/3/kernel': ('layers/3/bias', 1),
      },
    )


if __name__ == '__main__':
  absltest.main()
