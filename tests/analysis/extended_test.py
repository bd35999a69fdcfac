"""Programs with further results: loops, remat and devices, against layers written out."""

from absl.testing import absltest
from absl.testing import parameterized
import feature_programs as programs
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

import jaxopt_compress as jc


class ExtendedTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('scan', programs.scan), ('scan_remat', programs.scan_remat)
  )
  def test_layers_of_a_scan_come_stacked_or_by_number(self, f):
    end, want = programs.layers(programs.STACKED, programs.X)
    y, found = jax.jit(jc.features(f, [('.*', ...)]))(
      programs.STACKED, programs.X
    )
    np.testing.assert_allclose(y, end, rtol=1e-4, atol=1e-5)
    for name, value in want.items():
      np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)
    for layer in (0, 1, -1):
      rules = [('c/add', layer), ('a/tanh', 0)]
      y, one = jax.jit(jc.features(f, rules))(programs.STACKED, programs.X)
      np.testing.assert_allclose(y, end, rtol=1e-4, atol=1e-5)
      np.testing.assert_allclose(
        one['c/add'], want['c/add'][layer], rtol=1e-4, atol=1e-5
      )
      np.testing.assert_allclose(
        one['a/tanh'], want['a/tanh'][0], rtol=1e-4, atol=1e-5
      )

  def test_a_remat_still_recomputes(self):
    def residuals(f):
      loss = lambda p: jnp.sum(f(p, programs.X)[0])
      kept = jax.tree.leaves(jax.vjp(loss, programs.PARAMS)[1])
      return sum(x.size for x in kept)

    rules = [('c/add', ...)]
    tanh = 8 * 6
    kept = residuals(jc.features(programs.block, rules))
    recomputed = residuals(jc.features(programs.remat, rules))
    self.assertLessEqual(
      recomputed, kept - tanh + programs.PARAMS['a']['b'].size
    )

  @parameterized.named_parameters(
    (
      'layers',
      lambda p, x: programs.block(p, programs.block(p, programs.block(p, x))),
      'c/add/0',
    ),
    ('scan', lambda p, x: programs.scan(programs.STACKED, x), ('add/0', 0)),
  )
  def test_what_no_result_needs_is_not_computed(self, f, rule):
    name, what = rule if isinstance(rule, tuple) else (rule, ...)
    run = jc.features(f, [(name, what)])
    only = (
      jax.jit(lambda p, x: run(p, x)[1])
      .lower(programs.PARAMS, programs.X)
      .compile()
    )
    # One programs.block of three: two products of 4 x 6 for 8 rows, and what is added.
    self.assertLess(only.cost_analysis()['flops'], 2 * 8 * 24 * 2 * 1.5)

  def test_layers_on_devices_lie_behind_them(self):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ('d',))
    f = jax.shard_map(
      programs.scan, mesh=mesh, in_specs=(P(), P('d')), out_specs=P('d')
    )
    given = programs.STACKED, programs.X
    _, found = jax.jit(jc.features(f, [('c/add', ...)]))(*given)
    listed = jc.analysis.feature_names(f)(*given)['c/add']
    n = len(jax.devices())
    self.assertEqual(found['c/add'].shape, (n, 3, 8 // n, 4))
    self.assertEqual((listed.shape, listed.layers), ((n, 3, 8 // n, 4), ()))
    with self.assertRaisesRegex(ValueError, 'is in no scan'):
      jc.features(f, [('c/add', 0)])(*given)

  def test_a_recomputation_within_a_gradient(self):
    def slope(p, x):
      energy = jax.checkpoint(lambda x: jnp.sum(programs.block(p, x) ** 2))
      return jax.grad(energy)(x)

    run = jax.jit(jc.features(slope, [('.*', ...)]))
    y, found = run(programs.PARAMS, programs.X)
    want = slope(programs.PARAMS, programs.X)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)
    # Forward, and again before the backward pass.
    tanh = programs.values(programs.PARAMS, programs.X)['a/tanh']
    for i in range(2):
      np.testing.assert_allclose(
        found[f'a/tanh/{i}'], tanh, rtol=1e-5, atol=1e-5
      )

  def test_reversed_scans_keep_the_order_of_layers(self):
    def backwards(p, x):
      return lax.scan(
        lambda h, q: (programs.block(q, h), None), x, p, reverse=True
      )[0]

    turned = jax.tree.map(lambda w: w[::-1], programs.STACKED)
    _, want = programs.layers(turned, programs.X)
    _, found = jc.features(backwards, [('c/add', 2), ('a/w', ...)])(
      programs.STACKED, programs.X
    )
    np.testing.assert_allclose(
      found['c/add'], want['c/add'][0], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
      found['a/w'], want['a/w'][::-1], rtol=1e-4, atol=1e-5
    )

  def test_scans_in_scans_have_both_axes(self):
    def twice(p, x):
      return lax.scan(lambda h, q: (programs.scan(q, h), None), x, p)[0]

    p = jax.tree.map(lambda w: jnp.stack([w, 0.5 * w]), programs.STACKED)
    _, found = jax.jit(jc.features(twice, [('c/add', ...)]))(p, programs.X)
    one, want = programs.layers(jax.tree.map(lambda w: w[0], p), programs.X)
    _, more = programs.layers(jax.tree.map(lambda w: w[1], p), one)
    stacked = jnp.stack([want['c/add'], more['c/add']])
    np.testing.assert_allclose(found['c/add'], stacked, rtol=1e-4, atol=1e-4)
    _, first = jax.jit(jc.features(twice, [('c/add', 1)]))(p, programs.X)
    np.testing.assert_allclose(first['c/add'], stacked[1], rtol=1e-4, atol=1e-4)

  @parameterized.named_parameters(('checked', True), ('not_checked', False))
  def test_devices_of_a_shard_map_are_an_axis(self, check):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ('d',))
    f = jax.shard_map(
      programs.block,
      mesh=mesh,
      in_specs=(P(), P('d')),
      out_specs=P('d'),
      check_vma=check,
    )
    rules = [('a/w', ...)]
    _, found = jax.jit(jc.features(f, rules))(programs.PARAMS, programs.X)
    want = programs.values(programs.PARAMS, programs.X)['a/w']
    n = len(jax.devices())
    self.assertEqual(found['a/w'].shape, (n, 8 // n, 6))
    np.testing.assert_allclose(
      found['a/w'].reshape(8, 6), want, rtol=1e-5, atol=1e-6
    )
    listed = jc.analysis.feature_names(f)(programs.PARAMS, programs.X)[
      'a/w'
    ].shape
    self.assertEqual(listed, found['a/w'].shape)
    # Around the function there is no such axis: a device has its part.
    inside = jax.shard_map(
      lambda p, x: jc.features(programs.block, rules)(p, x)[1]['a/w'],
      mesh=mesh,
      in_specs=(P(), P('d')),
      out_specs=P('d'),
    )
    np.testing.assert_allclose(
      inside(programs.PARAMS, programs.X), want, rtol=1e-5, atol=1e-6
    )


if __name__ == '__main__':
  absltest.main()
