"""Bias correction brings the mean output back, for dense, conv and scanned layers."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress import models


def _rand(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape).astype(np.float32))


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
    x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=1)(x))
    return nn.Dense(5)(x.reshape(x.shape[0], -1))


class BiasTest(parameterized.TestCase):
  def test_first_layer_exactly_and_the_output_nearly(self):
    x = jnp.abs(_rand(16, 8, 8, 3))
    params = Net().init(jax.random.key(0), x)['params']
    apply = lambda p, x: Net().apply({'params': p}, x)
    uses = jc.uses(apply)(params, x)
    rules = [(r'.*kernel', 'int3 tensor'), (r'.*', None)]
    q = jc.quantize(params, rules, uses)
    _, stats = jc.observe(apply, {r'.*kernel': jc.statistics.sums()})(params, x)
    biases = {p: p.replace('kernel', 'bias') for p in stats}
    fixed, _ = jc.calibration.correct_bias(
      params,
      q,
      stats,
      biases,
      uses,
      jc.calibration.output_error(apply, params, [x]),
    )
    run = jax.jit(jc.lift(apply))
    want = apply(params, x)
    shift = lambda p: float(jnp.abs((run(p, x) - want).mean(0)).max())
    self.assertLess(shift(fixed), 0.5 * shift(q))

    one = lambda p, x: nn.Conv(8, (3, 3), strides=2).apply(
      {'params': p['Conv_0']}, x
    )
    mean = lambda p: np.asarray(jc.lift(one)(p, x)).mean((0, 1, 2))
    np.testing.assert_allclose(mean(fixed), mean(params), atol=1e-5)
    self.assertGreater(np.abs(mean(q) - mean(params)).max(), 1e-3)

  def test_layers_of_a_scan_and_heads(self):
    params = {'w': _rand(3, 8, 2, 4), 'b': _rand(3, 2, 4, seed=1)}

    def apply(p, x):
      def body(h, layer):
        y = jnp.einsum('bi,ihd->bhd', h, layer['w']) + layer['b'][None]
        return jnp.tanh(y.reshape(-1, 8)), y

      return lax.scan(body, x, p)[1]

    x = _rand(32, 8, seed=2) + 0.5
    uses = jc.uses(apply)(params, x)
    _, stats = jc.observe(apply, {'w': jc.statistics.sums()})(params, x)
    q = jc.quantize(params, [('w', 'int2'), ('b', None)], uses)
    wrong = jnp.array([[1.0], [-30.0], [1.0]])
    stats['w'] = stats['w']._replace(state=stats['w'].state * wrong)
    fixed, trials = jc.calibration.correct_bias(
      params,
      q,
      stats,
      {'w': 'b'},
      uses,
      jc.calibration.output_error(apply, params, [x]),
    )
    applied = {name: t.applied for name, t in trials.items()}
    self.assertEqual(
      applied, {'w at [0]': True, 'w at [1]': False, 'w at [2]': True}
    )
    error = np.asarray(q['w'].materialize() - params['w'])
    met = np.concatenate(
      [x[None], jnp.tanh(apply(params, x).reshape(3, 32, 8))[:2]]
    )
    want = np.einsum('lihd,li->lhd', error, np.asarray(met).mean(1))
    want[1] = 0  # what one layer met is wrong, and the others stay
    np.testing.assert_allclose(q['b'] - fixed['b'], want, atol=1e-5)

  def test_encoder_of_four_bits_does_not_get_worse(self):
    model = models.functional(models.build('vit', width=16, depth=1, heads=2))
    apply = lambda p, x: model.apply(p, model.variables, x)[0]
    seen, held_out, others = (
      jnp.abs(_rand(16, 8, 8, 1, seed=i)) for i in range(3)
    )
    params, uses = model.params, jc.uses(apply)(model.params, seen)
    q = jc.quantize(params, [(r'.*kernel', 'int4'), (r'.*', None)], uses)
    _, stats = jax.jit(jc.observe(apply, {r'.*kernel': jc.statistics.sums()}))(
      params, seen
    )
    bad = 'blocks/0/down/kernel'
    stats[bad] = stats[bad]._replace(state=-20 * stats[bad].state)
    biases = {p: p.replace('kernel', 'bias') for p in stats}
    error = jc.calibration.output_error(apply, params, [held_out])
    fixed, trials = jc.calibration.correct_bias(
      params, q, stats, biases, uses, error
    )
    self.assertFalse(trials[bad].applied)
    self.assertGreater(sum(t.applied for t in trials.values()), 4)
    run = jax.jit(jc.lift(apply))
    apart = {}
    want = run(params, others)
    for name, tree in dict(q=q, fixed=fixed).items():
      y = run(tree, others)
      apart[name] = 1 - jnp.vdot(y, want) / jnp.linalg.norm(
        y
      ) / jnp.linalg.norm(want)
    self.assertLess(apart['fixed'], 0.5 * apart['q'])

  def test_bad_input(self):
    f = lambda p, x: x @ p['w'] + p['b'][None]
    params, x = {'w': _rand(4, 3), 'b': jnp.zeros(3)}, _rand(5, 4)
    uses = jc.uses(f)(params, x)
    _, stats = jc.observe(f, {'w': jc.statistics.sums()})(params, x)
    fix = lambda biases, stats=stats: jc.calibration.correct_bias(
      params, params, stats, biases, uses, float
    )
    with self.assertRaisesRegex(ValueError, 'c is not in params'):
      fix({'w': 'c'})
    with self.assertRaisesRegex(ValueError, 'w is not in stats'):
      fix({'w': 'b'}, {})
    with self.assertRaisesRegex(ValueError, 'it is not its bias'):
      jc.calibration.correct_bias(
        {**params, 'b': jnp.zeros(2)},
        {**params, 'b': jnp.zeros(2)},
        stats,
        {'w': 'b'},
        uses,
        float,
      )
    empty = {'w': stats['w']._replace(count=jnp.zeros(()))}
    with self.assertRaisesRegex(ValueError, 'w saw no data'):
      fix({'w': 'b'}, empty)


if __name__ == '__main__':
  absltest.main()
