from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from networks import made

import jaxopt_compress as jc
from jaxopt_compress.analysis import structure as structure_lib

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

  @parameterized.named_parameters(
    ('mean', lambda h: h.mean(-1)),
    ('softmax', lambda h: jax.nn.softmax(h) @ jnp.ones((h.shape[-1], 2))),
    ('sum of sigmoids', lambda h: jax.nn.sigmoid(h).sum(-1)),
    ('root', lambda h: (h @ h.T) * h.shape[-1] ** -0.5),
    ('root of an array', lambda h: (h @ h.T) / jnp.sqrt(h.shape[-1])),
    ('root behind a sum', lambda h: (h @ h.T + 1) / h.shape[-1] ** 0.5),
    ('divided before', lambda h: (h / h.shape[-1]).sum(-1)),
    ('0 / 0', lambda h: (h / jnp.tanh(h)).sum(-1)),
    ('0 log 0', lambda h: (h * jnp.log(h)).sum(-1)),
    ('1 / root', lambda h: (h * jax.lax.rsqrt(h)).sum(-1)),
    ('branch', lambda h: (h if h.shape[-1] < 7 else jnp.tanh(h)).sum(-1)),
    (
      'dropout',
      lambda h: (h * jax.random.bernoulli(jax.random.key(0), 0.5, h.shape)).sum(
        -1
      ),
    ),
  )
  def test_not_exact(self, rest):
    p, x = {'a': jnp.ones((3, 6))}, jnp.ones((5, 3))
    found = jc.structure(lambda p, x: rest(x @ p['a']))(p, x)
    self.assertNotEmpty(found.groups['a:-1'].inexact)

  @parameterized.named_parameters(
    ('tanh', lambda h: jnp.tanh(h).sum(-1)),
    ('eps', lambda h: (h * jax.lax.rsqrt(h + 1e-5)).sum(-1)),
    ('product', lambda h: jax.nn.softplus(h) * h @ h.T),
  )
  def test_exact(self, rest):
    p, x = {'a': jnp.ones((3, 6))}, jnp.ones((5, 3))
    found = jc.structure(lambda p, x: rest(x @ p['a']))(p, x)
    self.assertEmpty(found.groups['a:-1'].inexact)

  def test_sizes_that_must_agree(self):
    # The features of keys and of values are apart, but this function wants one size.
    def attention(p, x):
      q, k, v = (jnp.einsum('btd,dhk->bthk', x, p[n]) for n in 'qkv')
      y = jax.nn.dot_product_attention(q, k, v)
      return jnp.einsum('bthk,hkd->btd', y, p['o'])

    p = {n: jnp.ones((3, 4, 8)) for n in 'qkv'} | {'o': jnp.ones((4, 8, 3))}
    found = jc.structure(attention)(p, jnp.ones((2, 5, 3)))
    fixed = {n: bool(g.fixed) for n, g in found.free.items()}
    self.assertEqual(fixed, {'k:-2': False, 'k:-1': True, 'o:-2': True})

  @parameterized.named_parameters(
    # one channel more does not fit, or becomes one more for each of the heads
    (
      'refused',
      lambda y: y.reshape(5, 2, 4),
      'cannot reshape.*(5, 2, 4)',
      True,
    ),
    ('another', lambda y: y.reshape(5, 2, -1), 'it has other groups', True),
    ('taken', lambda y: y.reshape(5, -1, 4), 'cannot reshape', False),
  )
  def test_sizes_of_the_program(self, cut, why, both):
    def fun(p, x):
      return jnp.tanh(cut(x @ p['a'])).reshape(5, -1) @ p['b']

    p = {'a': jnp.ones((3, 8)), 'b': jnp.ones((8, 2))}
    found = jc.structure(fun)(p, jnp.ones((5, 3)))
    heads, within = found.free.values()
    self.assertEqual((heads.size, within.size), (2, 4))
    self.assertEqual(bool(heads.fixed), both)
    if both:
      self.assertRegex(heads.fixed, why)
    self.assertIn('build the model again', str(found))

  def test_unknown_operations_lock(self):
    fun = lambda p, x: jnp.linalg.cholesky(p['a'] @ p['a'].T + jnp.eye(3))
    found = jc.structure(fun)({'a': jnp.ones((3, 8))}, jnp.ones(()))
    self.assertIn('cholesky', ' '.join(found.groups['a:-2'].locked))


if __name__ == '__main__':
  absltest.main()
