from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import deep
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress.analysis.layers import cuts


class LayersTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('transformer', deep.transformer, 'params/Block_0', 3),
    ('decoder', deep.gqa, 'blocks/0', 3),
    ('vision', deep.vision, 'blocks/0', 3),
    ('recomputed', lambda: deep.gqa(remat=True), 'blocks/0', 3),
  )
  def test_found(self, made, first, n):
    found = deep.structure(made)
    self.assertEqual(list(found.layers), [f'{first}:layers'])
    group = found.groups[f'{first}:layers']
    self.assertEqual((group.size, group.locked, group.inexact), (n, (), ()))
    self.assertIn('called by name', group.fixed)
    again = type(found).from_json(found.to_json())
    self.assertEqual(again, found)

  def test_stages(self):
    found = deep.structure(deep.resnet)
    self.assertEqual(
      found.layers['params/Residual_3:layers'],
      (
        ('params/Residual_3', 'batch_stats/Residual_3'),
        ('params/Residual_4', 'batch_stats/Residual_4'),
      ),
    )
    self.assertEqual(found.groups['params/Residual_0:layers'].size, 3)
    self.assertEqual(
      {found.groups[name].inexact for name in found.layers}, {()}
    )

  def test_what_zeros_do_not_pass_on(self):
    fun, params, x = deep.transformer(post=True)
    found = jc.structure(fun)(params, x)
    (name,) = found.layers
    self.assertRegex(
      found.groups[name].inexact[0], 'Block_2 with weights of zero does not'
    )

  def test_kernels_and_biases_apart(self):
    found = jc.structure(deep.mlp)(deep.MLP, jnp.ones((2, 6)))
    self.assertEqual(
      found.layers,
      {'w0:layers': tuple((f'w{i}', f'b{i}') for i in range(4))},
    )

  @parameterized.named_parameters(
    # the first is read again at the end; side by side; no two of one shape
    ('skip', lambda p, x: (x @ p['w0']) @ p['w1'] + x @ p['w0']),
    ('beside', lambda p, x: x @ p['w0'] + x @ p['w1']),
    ('other', lambda p, x: jnp.tanh(x @ p['w0']) @ p['w1']),
    ('order', lambda p, x: (x @ p['w1'] @ p['w0']).sum()),
  )
  def test_not_layers(self, fun):
    p = {'w0': jnp.ones((6, 6)), 'w1': jnp.ones((6, 6))}
    found = jc.structure(fun)(p, jnp.ones((2, 6)))
    self.assertEmpty(found.layers)

  def test_layers_that_stay(self):
    sizes = (6, 6, 6, 3, 6, 6)

    def fun(p, x):
      for layer in p['layers']:
        x = jnp.tanh(x @ layer['w'])
      return x

    pairs = zip(sizes, sizes[1:])
    p = {'layers': [{'w': jnp.ones(shape)} for shape in pairs]}
    found = jc.structure(fun)(p, jnp.ones((2, 6)))
    self.assertEqual(
      {name: found.groups[name].locked for name in found.layers},
      {
        'layers/0:layers': (),  # and 1 and 4
        'layers/2:layers': (
          'layers/2 takes float32[2,6] and gives float32[2,3]',
        ),
        'layers/3:layers': (
          'layers/3 takes float32[2,3] and gives float32[2,6]',
        ),
      },
    )
    self.assertEqual(found.groups['layers/0:layers'].size, 3)
    with self.assertRaisesRegex(ValueError, 'layers/2 takes'):
      jc.Plan(found, {'layers/2:layers': []})
    small = jc.Plan(found, {'layers/0:layers': [0, 2]}).apply(p)
    self.assertEqual(
      [layer['w'].shape for layer in small['layers']],
      [(6, 6), (6, 3), (3, 6), (6, 6)],
    )

  def test_siblings_of_other_shapes_are_not_laid_over(self):
    p = {f'w{i}': jnp.ones((3 + i, 4 + i)) for i in range(3)}
    f = lambda p, x: jnp.tanh(jnp.tanh(x @ p['w0']) @ p['w1']) @ p['w2']
    with mock.patch.object(cuts, 'between') as between:
      self.assertEmpty(jc.structure(f)(p, jnp.ones((2, 3))).layers)
    between.assert_not_called()


if __name__ == '__main__':
  absltest.main()
