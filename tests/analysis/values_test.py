"""The names of values, in Flax Linen, Flax NNX and plain functions."""

from absl.testing import absltest
from absl.testing import parameterized
import feature_programs as programs
from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress import models


class Block(nn.Module):
  """The same network in Flax Linen."""

  @nn.compact
  def __call__(self, x):
    y = nn.tanh(nn.Dense(6, name='up')(x))
    return x + nn.Dense(4, name='down')(y)


class Linen(nn.Module):
  @nn.compact
  def __call__(self, x):
    for i in range(2):
      x = Block(name=f'block_{i}')(x)
    return nn.LayerNorm(name='norm')(x).sum(-1)


class Turn(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return Block(name='block')(x), None


class Scanned(nn.Module):
  """Three blocks of Flax Linen in a scan, rematerialised."""

  @nn.compact
  def __call__(self, x):
    blocks = nn.scan(
      nn.remat(Turn),
      variable_axes={'params': 0},
      split_rngs={'params': True},
      length=3,
    )
    return blocks(name='blocks')(x, None)[0]


class ValuesTest(parameterized.TestCase):
  def test_linen_in_a_scan_has_its_layers_stacked(self):
    x, model = programs.X, Scanned()
    variables = model.init(jax.random.key(0), x)
    rules = [('.*block/add', ...), ('params/blocks/block/up/kernel', -1)]
    run = jax.jit(jc.features(model.apply, rules))
    _, found = run(variables, x)
    stream = found.pop('Scanned/blocks/block/add')
    [last] = found.values()
    for i in range(3):
      p = jax.tree.map(lambda w, i=i: w[i], variables['params']['blocks'])
      up = p['block']['up']
      before, x = x, Turn().apply({'params': p}, x, None)[0]
      np.testing.assert_allclose(stream[i], x, rtol=1e-5, atol=1e-5)
    want = before @ up['kernel'] + up['bias'][None]
    np.testing.assert_allclose(last, want, rtol=1e-4, atol=1e-5)

  def test_linen_names_are_scopes_and_weights(self):
    variables = Linen().init(jax.random.key(0), programs.X)
    rules = [
      (r'Linen/block_\d/add', ...),
      ('params/block_0/down/kernel', ...),
      ('params/norm/(scale|bias)', ...),
    ]
    y, found = jax.jit(jc.features(Linen().apply, rules))(variables, programs.X)
    _, want = Linen().apply(variables, programs.X, capture_intermediates=True)
    want = want['intermediates']
    called = lambda *at: _at(want, at)['__call__'][0]
    for name, value in {
      'Linen/block_0/add': called('block_0'),
      'Linen/block_1/add': called('block_1'),
      'params/block_0/down/kernel': called('block_0', 'down'),
      'params/norm/scale': called('norm'),
      'params/norm/bias': called('norm'),
    }.items():
      np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)

  @parameterized.named_parameters(('unrolled', False), ('scanned', True))
  def test_nnx_names_are_those_of_weights(self, scan):
    model = models.functional(
      models.build(
        'decoder',
        seed=0,
        vocab=11,
        width=8,
        depth=2,
        heads=2,
        kv_heads=1,
        scan=scan,
        remat=True,
      )
    )
    tokens = jnp.arange(10).reshape(2, 5)
    f = lambda p, x: model.apply(p, model.variables, x)[0]
    rules = [(r'(blocks/.*)?mlp/down/add', ...), ('norm/scale', ...)]
    _, found = jax.jit(jc.features(f, rules))(model.params, tokens)
    _, out, _ = model.apply(model.params, model.variables, tokens)
    *blocks, norm = found.values()
    got = blocks[0] if scan else jnp.stack(blocks)
    want = jnp.stack([out[f'block{i}'] for i in range(2)])
    np.testing.assert_allclose(
      got.reshape(want.shape), want, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
      norm.reshape(2, 5, 8), out['features'], rtol=1e-5, atol=1e-5
    )

  def test_checkpoint_names_are_names(self):
    def f(p, x):
      return jnp.sum(checkpoint_name(programs.block(p, x), 'stream') ** 2)

    _, found = jc.features(f, [('.*/stream', ...)])(programs.PARAMS, programs.X)
    np.testing.assert_allclose(
      found['c/stream'],
      programs.block(programs.PARAMS, programs.X),
      rtol=1e-6,
      atol=1e-6,
    )

  def test_tied_weights_are_numbered(self):
    f = lambda p, x: (x @ p['w']) @ p['w'].T
    p = {'w': programs.PARAMS['a']['w']}
    y, found = jc.features(f, [('w/.*', ...)])(p, programs.X)
    self.assertEqual(list(found), ['w/0', 'w/1'])
    np.testing.assert_allclose(found['w/1'], y, rtol=1e-6)

  def test_names_are_listed_with_types_and_nothing_runs(self):
    shapes = jax.eval_shape(lambda: (programs.STACKED, programs.X))
    listed = jc.analysis.feature_names(programs.scan)(*shapes)
    self.assertEqual(listed['a/w'].shape, (3, 8, 6))
    _, found = jc.features(programs.scan, [('.*', ...)])(
      programs.STACKED, programs.X
    )
    self.assertEqual(list(found), list(listed))


def _at(tree, keys):
  for key in keys:
    tree = tree[key]
  return tree


if __name__ == '__main__':
  absltest.main()
