"""Of each layer, the one above it."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress.distillation.growth import layers_above


def layer(x, w):
  return x + jnp.tanh(x @ w), None


def values(tree):
  return [float(x.ravel()[0]) for x in jax.tree.leaves(tree)]


class LayersAboveTest(parameterized.TestCase):
  def test_named_layers(self):
    def fun(p, x):
      for name in ('layer_0', 'layer_1', 'layer_2'):
        x, _ = layer(x, p[name]['w'])
      return x @ p['head']

    p = {f'layer_{i}': {'w': jnp.full((2, 2), i)} for i in range(3)}
    p['head'] = jnp.full((2, 2), 9.0)
    p = jax.tree.map(jnp.float32, p)
    structure = jc.structure(fun)(p, jnp.ones((1, 2)))
    got = layers_above.of(structure, {'mu': p, 'count': jnp.int32(5)})
    self.assertEqual(values(got), [5.0, 9.0, 1.0, 2.0, 2.0])

  def test_stacked_layers(self):
    fun = lambda p, x: jax.lax.scan(layer, x, p['w'])[0]
    p = jnp.arange(3.0)[:, None, None] * jnp.ones((3, 2, 2))
    p = {'w': p}
    got = layers_above.of(jc.structure(fun)(p, jnp.ones((1, 2))), [p, p])
    self.assertEqual(got[1]['w'][:, 0, 0].tolist(), [1.0, 2.0, 2.0])


if __name__ == '__main__':
  absltest.main()
