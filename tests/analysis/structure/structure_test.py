from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
from networks import made

import jaxopt_compress as jc
from jaxopt_compress.analysis.structure import structure as structure_lib

# The groups that may go, each with its members, and '~' where that is not exact.
FREE = {
  'mlp': ['8: a:-1 b:-1 c:-2'],
  'resnet': [
    '8: conv1:-2 conv2:-1 head:-2 norm/bias:-1 norm/mean:-1 norm/scale:-1'
    ' norm/var:-1 norm2/bias:-1 norm2/mean:-1 norm2/scale:-1 norm2/var:-1 stem:-1',
    '12: conv1:-1 conv2:-2 norm1/bias:-1 norm1/mean:-1 norm1/scale:-1'
    ' norm1/var:-1',
  ],
  'densenet': [
    '4: conv0:-1 conv1:-2 head:-2 norm1/bias:-1 norm1/mean:-1 norm1/scale:-1'
    ' norm1/var:-1',
    '6: conv0:-2 conv1:-2 head:-2 norm0/bias:-1 norm0/mean:-1 norm0/scale:-1'
    ' norm0/var:-1 norm1/bias:-1 norm1/mean:-1 norm1/scale:-1 norm1/var:-1'
    ' stem:-1',
    '4: conv1:-1 head:-2',
  ],
  'mobilenet': [
    '24: depthwise:-1 excite:-1 narrow:-2 norm/bias:-1 norm/mean:-1'
    ' norm/scale:-1 norm/var:-1 squeeze:-2 wide:-1',
    '6: excite:-2 squeeze:-1',
    '8: head:-2 narrow:-1 stem:-1 wide:-2',
  ],
  'unet': [
    '8: down1:-1 down2:-2 mix:-2',
    '12: down2:-1 up:-2',
    '10: mix:-1 out:-2',
    '6: mix:-2 up:-1',
  ],
  # Heads of q, k and v, what is in a head of q and k, and what is in one of v.
  'fused': [
    '40: layers/down:-2 layers/gate:-1 layers/up:-1',
    '4: layers/o:-2 layers/qkv:-1',
    '8: layers/o:-2 layers/qkv:-1',
    '8: layers/qkv:-1',
    '~3: layers/down:-3 layers/gate:-3 layers/o:-3 layers/qkv:-3 layers/up:-3',
  ],
  # Heads of keys, and of the queries of each.
  'grouped_queries': [
    '4: k:-2 o:-3 q:-2 v:-2',
    '6: k:-1 q:-1',
    '6: o:-2 v:-1',
    '2: o:-3 q:-2',
  ],
  'mixer': [
    '24: channel1:-1 channel2:-2',
    '12: channel1:-2 channel2:-1 head:-2 stem:-1',
    '20: token1:-1 token2:-2',
  ],
  'lstm': [
    '12: head:-2 hf:-1 hf:-2 hg:-1 hg:-2 hi:-1 hi:-2 ho:-1 ho:-2 xf:-1 xg:-1'
    ' xi:-1 xo:-1'
  ],
  'experts': [
    '12: down:-1 head:-2 router:-2 stem:-1 up:-2',
    '20: down:-2 up:-1',
    '~4: down:-3 router:-1 up:-3',
  ],
  'shufflenet': [
    '2: depthwise:-1 head:-2 narrow:-1 norm/bias:-1 norm/mean:-1 norm/scale:-1 norm/var:-1 stem:-1 wide:-1 wide:-2',
    '3: depthwise:-1 narrow:-1 norm/bias:-1 norm/mean:-1 norm/scale:-1 norm/var:-1 wide:-2',
    '4: head:-2 narrow:-2 stem:-1 wide:-1',
  ],
  'wavenet': [
    '10: head:-2 layers/0/skip:-1 layers/1/skip:-1',
    '6: layers/0/gated:-2 layers/0/residual:-1 layers/1/gated:-2 layers/1/residual:-1 stem:-1',
    '8: layers/0/gated:-1 layers/0/residual:-2 layers/0/skip:-2',
    '8: layers/1/gated:-1 layers/1/residual:-2 layers/1/skip:-2',
  ],
  'mamba': [
    '12: a:-2 b:-2 c:-2 conv:-1 delta:-1 in:-1 out:-2 rank:-2 skip:-1',
    '6: a:-1 b:-1 c:-1',
    '4: delta:-2 rank:-1',
  ],
}


class StructureTest(parameterized.TestCase):
  @parameterized.parameters(*FREE)
  def test_groups(self, name):
    fun, params, x = made(name)
    found = jc.structure(fun)(params, x)
    said = [
      f'{"~" * bool(group.inexact)}{group.size}: '
      + ' '.join(sorted(f'{p}:{a}' for p, a in found.members(name)))
      for name, group in found.free.items()
    ]
    self.assertCountEqual(said, FREE[name])
    again = structure_lib.Structure.from_json(found.to_json())
    self.assertEqual(again, found)

  def test_why_channels_stay(self):
    fun, params, x = made('experts')
    found = jc.structure(fun)(params, x)
    for name, why in (
      ('head:-1', 'the size of a result'),
      ('stem:-2', 'the size of an input'),
    ):
      self.assertRegex('; '.join(found.groups[name].locked), why)
      self.assertRegex(str(found), why)
    why = r'top_k chooses others where they go at .*networks.py:\d+'
    self.assertRegex('; '.join(found.groups['down:-3'].inexact), why)
    self.assertRegex(str(found), why)

  def test_many_alike_are_one_line(self):
    def fun(p, x):
      for layer in p:
        x = x + jax.nn.relu(x @ layer['up']) @ layer['down']
      return x

    p = [{'up': jnp.ones((3, 8)), 'down': jnp.ones((8, 3))}] * 12
    found = jc.structure(fun)(p, jnp.ones((5, 3)))
    lines = str(found).splitlines()
    self.assertLen(lines, 6)
    self.assertIn('     8       2  0/down:-2  and 11 like it', lines)

  def test_lines_of_models(self):
    linear = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(linear)

    def fun(p, x):
      return jnp.cumsum(nnx.merge(graphdef, p)(x), -1)

    found = jc.structure(fun)(state, jnp.ones((5, 3)))
    said = ' '.join(found.groups['kernel:-1'].locked)
    self.assertRegex(said, r'cumsum at .*structure_test.py:\d+')
    conv = nnx.Conv(3, 4, (2,), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(conv)
    fun = lambda p, x: nnx.merge(graphdef, p)(x)
    found = jc.structure(fun)(state, jnp.ones((5, 6, 3)))
    said = ' '.join(found.groups['kernel:-3'].locked)
    self.assertRegex(said, r'linear.py:\d+.*, of .*structure_test.py:\d+')

  def test_constants(self):
    p = {'a': jnp.ones((3, 6)), 'b': jnp.ones((6, 2))}
    for constant, locked in (
      (jnp.ones((1, 6)), False),
      (jnp.arange(6.0)[None], True),
    ):
      fun = lambda p, x: (x @ p['a'] + constant) @ p['b']  # noqa: B023
      group = jc.structure(fun)(p, jnp.ones((5, 3))).groups['a:-1']
      self.assertEqual(bool(group.locked), locked)
      self.assertEqual(bool(group.fixed), not locked)

  def test_what_does_not_fit_has_a_line(self):
    fun = lambda p, x: (x @ p['a']).reshape(5, 2, 6) @ p['b'] @ p['c']
    p = {'a': jnp.ones((3, 12)), 'b': jnp.ones((6, 4)), 'c': jnp.ones((4, 2))}
    torn = lambda p, x: fun(p, x) + (x @ p['a']).reshape(5, 3, 4)[:, :2, :2]
    found = jc.structure(torn)(p, jnp.ones((5, 3)))
    why = r'its parts do not fit each other: reshape at .*structure_test.py:\d+'
    self.assertRegex(str(found), why)

  def test_empty_axes_stay(self):
    p = {'a': jnp.ones((3, 6)), 'empty': jnp.ones((0, 2))}
    found = jc.structure(lambda p, x: x @ p['a'] + p['empty'].sum())(
      p, jnp.ones((5, 3))
    )
    self.assertEqual(found.groups['empty:-2'].locked, ('it is empty',))

  def test_unknown_operations_lock(self):
    fun = lambda p, x: jnp.linalg.cholesky(p['a'] @ p['a'].T + jnp.eye(3))
    found = jc.structure(fun)({'a': jnp.ones((3, 8))}, jnp.ones(()))
    self.assertIn('cholesky', ' '.join(found.groups['a:-2'].locked))


if __name__ == '__main__':
  absltest.main()
