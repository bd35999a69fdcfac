from absl.testing import absltest
from absl.testing import parameterized
import deep
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.analysis.layers import passing


def _made(fun, leaves=('w',), depth=3, n=4):
  """A chain of layers fun(layer, x), and its parameters."""
  p = {
    f'layer_{i}': {k: jnp.ones((n, n) if k != 'b' else (1, n)) for k in leaves}
    for i in range(depth)
  }

  def run(p, x):
    for i in range(depth):
      x = fun(p[f'layer_{i}'], x)
    return x

  return jc.structure(run)(p, jnp.ones((2, n)))


def _said(structure):
  """{end of a path: word} of the first group."""
  (found,) = structure.passing.values() or ({},)
  return {path.partition('/')[2]: word for path, word in found.items()}


class PassingTest(parameterized.TestCase):
  @parameterized.named_parameters(
    # Of a branch the last weight, with its bias.
    (
      'branch',
      lambda p, x: x + jnp.tanh(x @ p['v']) @ p['w'] + p['b'],
      'vwb',
      {'w': 'zeros', 'b': 'zeros'},
    ),
    # Of several branches one of each.
    (
      'two',
      lambda p, x: x + jnp.tanh(x @ p['v']) + x @ p['w'],
      'vw',
      {'v': 'zeros', 'w': 'zeros'},
    ),
    # A gain behind the product comes last.
    (
      'gain',
      lambda p, x: x + (x @ p['w']) * p['b'],
      'wb',
      {'b': 'zeros'},
    ),
    # What is subtracted may be zero as well.
    ('minus', lambda p, x: x - x @ p['w'], 'w', {'w': 'zeros'}),
    # A linear layer is the identity if its matrix is.
    (
      'linear',
      lambda p, x: x @ p['w'] + p['b'],
      'wb',
      {'w': 'identity', 'b': 'zeros'},
    ),
    # Behind a curve it is not, and a sum of two is none.
    ('curve', lambda p, x: jax.nn.gelu(x @ p['w']), 'w', {}),
    ('doubled', lambda p, x: x + x + x @ p['w'], 'w', {}),
    # Scaled down, the stream is another one.
    ('scaled', lambda p, x: (x + x @ p['w']) * 0.5, 'w', {}),
  )
  def test_of_names(self, fun, leaves, expected):
    self.assertEqual(_said(_made(fun, leaves)), expected)

  def test_of_all_layers(self):
    found = _made(lambda p, x: x + x @ p['w'])
    self.assertEqual(
      found.passing,
      {'layer_0:layers': {f'layer_{i}/w': 'zeros' for i in range(3)}},
    )
    self.assertEqual(type(found).from_json(found.to_json()), found)

  @parameterized.named_parameters(
    ('transformer', deep.transformer, {'out', 'Dense_1'}),
    ('decoder', deep.gqa, {'o', 'down'}),
    ('vision', deep.vision, {'out', 'down'}),
    ('statistics', deep.resnet, {'BatchNorm_1'}),
  )
  def test_of_models(self, made, last):
    found = deep.structure(made)
    (words, *_) = found.passing.values()
    self.assertEqual({path.split('/')[-2] for path in words}, last)
    self.assertEqual({*words.values()}, {'zeros'})

  def test_post_norm_has_none(self):
    fun, params, x = deep.transformer(post=True)
    self.assertEmpty(jc.structure(fun)(params, x).passing)

  @parameterized.named_parameters(('plain', False), ('remat', True))
  def test_of_loops(self, remat):
    def body(x, layer):
      return x + jnp.tanh(x @ layer['v']) @ layer['w'], None

    body = jax.checkpoint(body) if remat else body
    p = {k: jnp.ones((3, 4, 4)) for k in 'vw'}
    found = jc.structure(lambda p, x: jax.lax.scan(body, x, p)[0])(
      p, jnp.ones((2, 4))
    )
    self.assertEqual(list(found.passing.values()), [{'w': 'zeros'}])

  def test_positive_already(self):
    # Behind another rectified layer, as copies are, and not behind a curve.
    fun, p, x = deep.mlp, deep.MLP, np.ones((2, 6), np.float32)
    self.assertEqual(
      jc.structure(fun)(p, x).passing['w0:layers'],
      {f'w{i}': 'identity' for i in range(4)}
      | {f'b{i}': 'zeros' for i in range(4)},
    )
    p = {k: v for k, v in p.items() if k[0] == 'w'}

    def shifted(p, x):
      for w in p.values():
        x = jax.nn.relu(x @ w) - 1
      return x

    self.assertEmpty(jc.structure(shifted)(p, x).passing)

  @parameterized.named_parameters(
    ('same', (1, 1), 'SAME', True),
    ('strided', (2, 2), 'SAME', False),
    ('valid', (1, 1), 'VALID', False),
  )
  def test_convolutions(self, strides, padding, expected):
    def conv(x, w):
      return jax.lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      )

    p = [jnp.ones((3, 3, 4, 4)) for _ in range(2)]
    found = jc.structure(lambda p, x: conv(conv(x, p[0]), p[1]))(
      p, jnp.ones((1, 8, 8, 4))
    )
    words = {w for of in found.passing.values() for w in of.values()}
    self.assertEqual(words == {passing.IDENTITY}, expected)


if __name__ == '__main__':
  absltest.main()
