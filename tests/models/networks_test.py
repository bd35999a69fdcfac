"""What is particular to the MLP, the CNN, the ResNet and the ViT."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.sharding import PartitionSpec as P
import numpy as np

from jaxopt_compress import models
from jaxopt_compress.models import vit

IMAGES = np.random.default_rng(0).uniform(size=(8, 8, 8, 1)).astype('f')


def num_params(name, **kwargs):
  params = models.abstract(name, **kwargs).params
  return sum(x.size for x in jax.tree.leaves(params))


def shapes(name, **kwargs):
  f = models.abstract(name, **kwargs)
  y, out, _ = jax.eval_shape(f.apply, f.params, f.variables, IMAGES)
  return {k: x.shape[1:] for k, x in out.items()} | {'y': y.shape[1:]}


class ShapesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (
      'mlp',
      'mlp',
      dict(widths=(7, 5)),
      dict(block0=(7,), block1=(5,), features=(5,), y=(10,)),
    ),
    (
      'cnn',
      'cnn',
      dict(widths=(3, 5), classes=4),
      dict(block0=(4, 4, 3), block1=(2, 2, 5), features=(5,), y=(4,)),
    ),
    (
      'resnet',
      'resnet',
      dict(widths=(3, 5), depths=(2, 1)),
      dict(
        stem=(8, 8, 3),
        block0=(8, 8, 3),
        block1=(8, 8, 3),
        block2=(4, 4, 5),
        features=(5,),
        y=(10,),
      ),
    ),
    (
      'vit',
      'vit',
      dict(width=8, depth=1, heads=2),
      dict(
        stem=(16, 8),
        attention0=(2, 16, 16),
        block0=(16, 8),
        features=(8,),
        y=(10,),
      ),
    ),
  )
  def test_intermediates(self, name, kwargs, want):
    self.assertEqual(shapes(name, **kwargs), want)

  @parameterized.parameters(
    # Weights of the convolutions, two for each norm, and the head.
    ('mlp', dict(widths=(3,)), 64 * 3 + 3 + 3 * 10 + 10),
    ('cnn', dict(widths=(3,)), 9 * 3 + 2 * 3 + 3 * 10 + 10),
    ('resnet', dict(widths=(3,)), 9 * 3 + 18 * 9 + 3 * 6 + 3 * 10 + 10),
    ('resnet', dict(widths=(64, 64)), 153546),  # The teacher of the digits.
    ('resnet', dict(widths=(16, 32)), 19706),  # The student of the digits.
    ('vit', dict(width=8, depth=0), 4 * 8 + 8 + 16 + 8 * 10 + 10),
  )
  def test_num_params(self, name, kwargs, want):
    self.assertEqual(num_params(name, **kwargs), want)


class MlpTest(absltest.TestCase):
  def test_equation(self):
    f = models.functional(models.build('mlp', widths=(5,), activation='tanh'))
    layer, head = f.params['layers']['0'], f.params['head']
    h = np.tanh(IMAGES.reshape(8, 64) @ layer['kernel'] + layer['bias'][None])
    want = h @ head['kernel'] + head['bias'][None]
    got, _, _ = f.apply(f.params, f.variables, IMAGES)
    np.testing.assert_allclose(got, want, atol=1e-5)


class ResNetTest(absltest.TestCase):
  def test_depths_may_be_one_number(self):
    self.assertEqual(
      num_params('resnet', depths=2), num_params('resnet', depths=(2, 2))
    )

  def test_depths_must_match_widths(self):
    with self.assertRaisesRegex(ValueError, '3 widths .* 2 depths'):
      num_params('resnet', widths=(4, 4, 4), depths=(1, 1))

  def test_norms_see_the_whole_batch_across_replicas(self):
    mesh = jax.make_mesh(
      (4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
    )
    kwargs = dict(widths=(4,))
    whole = models.abstract('resnet', **kwargs)
    parts = models.abstract('resnet', axis_name='data', **kwargs)
    f = models.functional(models.build('resnet', **kwargs))

    @functools.partial(jax.jit, static_argnums=0)
    def run(apply, params, variables, x):
      y, _, variables = apply(params, variables, x, train=True)
      return y, variables

    @functools.partial(
      jax.shard_map,
      mesh=mesh,
      in_specs=(P(), P(), P('data')),
      out_specs=(P('data'), P()),
    )
    def replicas(params, variables, x):
      return run(parts.apply, params, variables, x)

    want, want_stats = run(whole.apply, f.params, f.variables, IMAGES)
    got, stats = jax.block_until_ready(
      jax.jit(replicas)(f.params, f.variables, IMAGES)
    )
    np.testing.assert_allclose(got, want, atol=1e-4)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=1e-5),
      stats,
      want_stats,
    )


class VitTest(parameterized.TestCase):
  def test_attention_is_a_distribution(self):
    f = models.functional(models.build('vit', width=8, depth=1, heads=2))
    _, out, _ = jax.jit(f.apply)(f.params, f.variables, IMAGES)
    np.testing.assert_allclose(out['attention0'].sum(-1), 1.0, atol=1e-6)

  def test_positions_differ(self):
    table = vit.positions(4, 4, 16)
    self.assertEqual(table.shape, (16, 16))
    self.assertLen(np.unique(np.round(table, 4), axis=0), 16)

  @parameterized.parameters(
    (dict(width=6, heads=1), 'width is 6; it must be a multiple of 4'),
    (dict(width=8, heads=3), 'of heads, which is 3'),
    (dict(patch=3), '8x8 do not divide into patches of 3x3'),
  )
  def test_errors(self, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      shapes('vit', **kwargs)


if __name__ == '__main__':
  absltest.main()
