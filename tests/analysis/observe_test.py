"""Statistics of what weights meet, through every structure, against numpy."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import observing

import jaxopt_compress as jc
from jaxopt_compress.analysis import observe
from jaxopt_compress.pruning import masked_array


def _scan_constant(p, x):
  return lax.scan(lambda h, _: (jnp.tanh(h @ p['w']), None), x, None, 3)[0]


def _while(p, x):
  turn = lambda c: (c[0] + 1, jnp.tanh(c[1] @ p['w']))
  return lax.while_loop(lambda c: c[0] < 3, turn, (0, x))[1]


def _custom(p, x):
  @jax.custom_vjp
  def layer(w, x):
    return x @ w

  layer.defvjp(lambda w, x: (x @ w, (w, x)), lambda r, g: (g, g))
  return jax.nn.relu(layer(p['w'], x))


class StructureTest(observing.Case):
  @parameterized.named_parameters(
    ('scan', observing.scan),
    ('remat', lambda p, x: observing.scan(p, x, jax.checkpoint)),
    ('jit', lambda p, x: observing.scan(p, x, jax.jit)),
  )
  def test_layers_of_a_scan_stay_apart(self, f):
    seen = observing.observed(
      f, jc.statistics.gram(), observing.LAYERS, observing.X
    )
    np.testing.assert_array_equal(seen.count, [8, 8, 8])
    observing.close(
      seen.state, [h.T @ h for h in observing.hidden(observing.LAYERS)]
    )

  @parameterized.named_parameters(('scan', _scan_constant), ('while', _while))
  def test_turns_of_a_loop_are_merged(self, f):
    met = np.concatenate(observing.hidden([observing.LAYERS[0]] * 3))
    seen = observing.observed(
      f, jc.statistics.gram(), observing.LAYERS[0], observing.X
    )
    self.assertEqual(seen.count, 24)
    observing.close(seen.state, met.T @ met)
    observing.close(
      observing.observed(
        f, jc.statistics.minmax(), observing.LAYERS[0], observing.X
      ).state,
      (met.min(0), met.max(0)),
    )

  def test_custom_derivatives_are_entered(self):
    observing.close(
      observing.observed(
        _custom, jc.statistics.sums(), observing.LAYERS[0], observing.X
      ).state,
      observing.X.sum(0),
    )

  def test_a_branch_not_taken_saw_nothing(self):
    def f(p, x, i):
      return lax.cond(i, lambda: x @ p['w'], lambda: x @ p['v'])

    params = {'w': observing.LAYERS[0], 'v': observing.LAYERS[1]}
    out, stats = jc.observe(f, [('w|v', jc.statistics.absmax())])(
      params, observing.X, True
    )
    observing.close(out, observing.X @ observing.LAYERS[0])
    observing.close(stats['w'].state, np.abs(observing.X).max(0))
    self.assertEqual((stats['w'].count, stats['v'].count), (8, 0))
    with self.assertRaisesRegex(ValueError, '^v saw no data'):
      jc.analysis.check_seen(stats)
    jax.eval_shape(
      jc.analysis.check_seen, stats
    )  # what is traced is not known yet

  @parameterized.product(
    checked=(True, False),
    statistic=(
      jc.statistics.gram,
      jc.statistics.absmax,
      jc.statistics.minmax,
      jc.statistics.sum_squares,
    ),
  )
  def test_four_devices_see_what_one_sees(self, checked, statistic):
    def f(p, x):
      return jax.shard_map(
        lambda w, x: x @ w,
        mesh=observing.mesh(),
        in_specs=(P(), P('d')),
        out_specs=P('d'),
        check_vma=checked,
      )(p['w'], x)

    got = observing.observed(f, statistic(), observing.LAYERS[0], observing.X)
    want = observing.observed(
      lambda p, x: x @ p['w'], statistic(), observing.LAYERS[0], observing.X
    )
    jax.tree.map(observing.close, got, want)

  def test_vmap(self):
    xs = observing.rand(3, 8, 6)
    one = lambda x: observing.observed(
      lambda p, x: x @ p['w'], jc.statistics.absmax(), observing.LAYERS[0], x
    )
    observing.close(jax.vmap(one)(xs).state, np.abs(xs).max(1))

  def test_a_loop_of_no_turns_met_nothing(self):
    f = lambda p, x: lax.fori_loop(0, 0, lambda _, h: h @ p['w'], x)
    for statistic in (jc.statistics.gram(), jc.statistics.minmax('tensor')):
      _, stats = jc.observe(f, {'w': statistic})({'w': jnp.eye(6)}, observing.X)
      jax.tree.map(observing.close, stats['w'].state, statistic.init(6))
      with self.assertRaisesRegex(ValueError, 'w saw no data'):
        jc.analysis.check_seen(stats)

  def test_two_uses_and_two_batches_are_merged(self):
    f = lambda p, x: (x @ p['w']) @ p['w']
    chosen = {'w': jc.statistics.gram()}
    stats = {}
    for x in (observing.X[:3], observing.X[3:]):
      stats = jc.analysis.merge_stats(
        chosen, stats, jc.observe(f, chosen)({'w': observing.LAYERS[0]}, x)[1]
      )
    met = np.concatenate([observing.X, observing.X @ observing.LAYERS[0]])
    self.assertEqual(stats['w'].count, 16)
    observing.close(stats['w'].state, met.T @ met)


class RefusalTest(observing.Case):
  def test_nothing_to_observe(self):
    f = lambda p, i: p['table'][i]
    with self.assertRaisesRegex(
      ValueError, 'table reaches no product, only gather at .*observe_test'
    ):
      jc.observe(f, {'table': jc.statistics.absmax()})(
        {'table': observing.LAYERS[0]}, jnp.array([1])
      )

  def test_a_leaf_that_is_never_read(self):
    with self.assertRaisesRegex(ValueError, 'w meets nothing: .* never reads'):
      observing.observed(
        lambda p, x: x, jc.statistics.gram(), observing.LAYERS[0], observing.X
      )

  def test_other_calls_are_not_merged(self):
    f = lambda p, x: x @ p['w']
    a = jc.observe(f, {'w': jc.statistics.gram()})(
      {'w': observing.LAYERS[0]}, observing.X
    )[1]
    b = jc.observe(f, {'w': jc.statistics.gram()})(
      {'w': observing.LAYERS[0][:4]}, observing.X[:, :4]
    )[1]
    with self.assertRaisesRegex(ValueError, 'cannot be merged'):
      jc.analysis.merge_stats({'w': jc.statistics.gram()}, a, b)
    with self.assertRaisesRegex(ValueError, 'different leaves'):
      jc.analysis.merge_stats({'w': jc.statistics.gram()}, a, {'v': b['w']})

  def test_rules_are_checked(self):
    f = lambda p, x: x @ p['w']
    with self.assertRaisesRegex(ValueError, "'v'"):
      jc.observe(f, {'v': jc.statistics.absmax()})(
        {'w': observing.LAYERS[0]}, observing.X
      )
    with self.assertRaisesRegex(ValueError, 'b'):
      jc.observe(f, [('w', jc.statistics.absmax())])(
        {'w': observing.LAYERS[0], 'b': observing.X}, observing.X
      )


class CompressedTest(observing.Case):
  """Observed leaves compute as under lift, and the result is differentiable."""

  @parameterized.product(
    scheme=('int4 g3', 'int8, int8 token', 'fake', 'mask'),
    f=(observing.scan, 'remat', 'moved', 'gathered', 'convolved'),
  )
  def test_is_what_lift_computes(self, scheme, f):
    f, w, x = {
      'remat': (
        lambda p, x: observing.scan(p, x, jax.checkpoint),
        observing.LAYERS,
        observing.X,
      ),
      'moved': (
        lambda p, x: x @ p['w'].transpose(0, 2, 1).reshape(3, 6, 2, 3)[1, :, 0],
        observing.LAYERS,
        observing.X,
      ),
      'gathered': (
        lambda p, x: p['w'][jnp.array([2, 0])] @ p['w'].T,
        observing.LAYERS[0],
        observing.X,
      ),
      'convolved': (
        lambda p, x: lax.conv(x.reshape(2, 4, 3, 2), p['w'], (1, 1), 'SAME'),
        observing.rand(5, 4, 3, 3),
        observing.X,
      ),
    }.get(f, (f, observing.LAYERS, observing.X))
    params = {'w': jnp.asarray(w)}
    uses = jc.uses(f)(params, x)

    def leaf(p):
      if scheme == 'mask':
        return {'w': masked_array.Masked(p['w'], p['w'] > 0)}
      if scheme != 'fake':
        return jc.quantize(p, [('w', scheme)], uses)
      return jc.fake_quantize([('w', 'W8A8')], uses).apply(p, ())

    def loss(run):
      def total(p, x):
        y, stats = run(leaf(p), x)
        return jnp.square(y).sum(), (y, stats)

      grad = (0, 1) if scheme in ('fake', 'mask') else 1
      return jax.jit(jax.value_and_grad(total, grad, has_aux=True))

    observed = loss(jc.observe(f, {'w': jc.statistics.minmax('tensor')}))(
      params, x
    )
    lifted = loss(lambda q, x: (jc.lift(f)(q, x), {}))(params, x)
    (value, (y, stats)), grads = observed
    (value_lift, (y_lift, _)), grads_lift = lifted
    observing.close(value, value_lift)
    observing.close(y, y_lift)
    jax.tree.map(observing.close, grads, grads_lift)
    dense = jc.observe(f, {'w': jc.statistics.minmax('tensor')})
    want = dense({'w': leaf(params)['w'].materialize()}, x)[1]['w']
    np.testing.assert_array_equal(stats['w'].count, want.count)
    # Later layers meet what was rounded before.
    np.testing.assert_allclose(stats['w'].state, want.state, atol=0.1)

  def test_over_devices(self):
    wanted = {'w': jc.statistics.minmax('tensor')}
    f = lambda p, x: observing.scan(p, x)
    whole = jc.observe(f, wanted)({'w': observing.LAYERS}, observing.X)[1]

    @jax.shard_map(
      mesh=observing.mesh(),
      in_specs=(P(), P('d')),
      out_specs=P(),
      check_vma=False,
    )
    def run(p, x):
      stats = jc.observe(f, wanted)(p, x)[1]
      return observe.reduce_stats(wanted, stats, 'd')

    jax.tree.map(
      observing.close, run({'w': observing.LAYERS}, observing.X), whole
    )


if __name__ == '__main__':
  absltest.main()
