"""The ResNet: its shapes, and its norms across replicas."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.sharding import PartitionSpec as P
import network_cases
import numpy as np

from jaxopt_compress import models


class ResNetTest(parameterized.TestCase):
  def test_intermediates(self):
    got = network_cases.shapes('resnet', widths=(3, 5), depths=(2, 1))
    want = dict(
      stem=(8, 8, 3),
      block0=(8, 8, 3),
      block1=(8, 8, 3),
      block2=(4, 4, 5),
      features=(5,),
      y=(10,),
    )
    self.assertEqual(got, want)

  # Weights of the convolutions, two for each norm, and the head.
  @parameterized.parameters(
    (dict(widths=(3,)), 9 * 3 + 18 * 9 + 3 * 6 + 3 * 10 + 10),
    (dict(widths=(64, 64)), 153546),  # The teacher of the digits.
    (dict(widths=(16, 32)), 19706),  # The student of the digits.
  )
  def test_num_params(self, kwargs, want):
    self.assertEqual(network_cases.num_params('resnet', **kwargs), want)

  def test_depths_may_be_one_number(self):
    self.assertEqual(
      network_cases.num_params('resnet', depths=2),
      network_cases.num_params('resnet', depths=(2, 2)),
    )

  def test_depths_must_match_widths(self):
    with self.assertRaisesRegex(ValueError, '3 widths .* 2 depths'):
      network_cases.num_params('resnet', widths=(4, 4, 4), depths=(1, 1))

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

    want, want_stats = run(
      whole.apply, f.params, f.variables, network_cases.IMAGES
    )
    got, stats = jax.block_until_ready(
      jax.jit(replicas)(f.params, f.variables, network_cases.IMAGES)
    )
    np.testing.assert_allclose(got, want, atol=1e-4)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=1e-5),
      stats,
      want_stats,
    )


if __name__ == '__main__':
  absltest.main()
