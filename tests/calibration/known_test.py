"""Calibration inside a program that is traced: known data, and traced data."""

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

import jaxopt_compress as jc

W = jnp.arange(1.0, 9.0).reshape(4, 2) * jnp.array([[0.1, 1.0]])
TREE = {'w': W, 'mean': jnp.ones((1, 2)), 'gain': 2 * W[:1], 'v': W.T}
X = jnp.arange(12.0).reshape(3, 4)


def apply(p, x):
  normed = (x @ p['w'] - p['mean']) * p['gain']
  return jax.nn.relu(normed) @ p['v']


def _calibrate(tree, x, method='absmax'):
  rules = [('w', 'FP8'), ('.*', None)]
  batches = (batch for batch in [x])
  return jc.calibrate(apply, tree, rules, batches, in_out.IN_OUT, method)['w'][
    0
  ]


def _fold(tree, x):
  del x
  folded, _ = jc.calibration.fold_norms(
    tree, jc.analysis.rescalings(apply)(TREE, X)
  )
  return folded['w']


def _equalize(tree, x):
  error = jc.calibration.output_error(apply, tree, [x])
  freedoms = jc.analysis.rescalings(apply)(TREE, X)
  even, _ = jc.calibration.equalize(tree, freedoms, lambda p: 1 - error(p))
  return even['w']


def _correct(tree, x):
  _, stats = jc.observe(apply, {'w': jc.statistics.sums()})(TREE, X)
  rounded = {**tree, 'w': jnp.round(tree['w'])}
  error = jc.calibration.output_error(apply, tree, [x])
  uses = jc.uses(apply)(TREE, X)
  fixed, _ = jc.calibration.correct_bias(
    tree, rounded, stats, {'w': 'mean'}, uses, error
  )
  return fixed['mean']


class KnownTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('ranges', _calibrate),
    ('histograms', lambda tree, x: _calibrate(tree, x, 'mse')),
    ('norms', _fold),
    ('equalized', _equalize),
  )
  def test_inside_of_a_traced_program(self, run):
    want = run(TREE, X)
    found = jax.jit(lambda y: y * run(TREE, X))(1.0)
    np.testing.assert_allclose(found, want, rtol=1e-6)

  @parameterized.named_parameters(
    ('ranges', _calibrate, 'calibrate'),
    ('norms', _fold, 'fold_norms'),
    ('errors', _equalize, 'output_error'),
    ('biases', _correct, 'output_error'),
  )
  def test_traced_arrays_are_named(self, run, who):
    says = rf'{who} reads numbers, and was given float32\[\d,\d\]'
    with self.assertRaisesRegex(ValueError, says):
      jax.jit(run)(TREE, X)

  def test_traced_batch_of_a_generator(self):
    with self.assertRaisesRegex(ValueError, 'calibrate reads numbers'):
      jax.jit(lambda x: _calibrate(TREE, x))(X)

  def test_programs_inside_know_their_device(self):
    mesh = jax.sharding.Mesh(jax.devices()[:2], ('d',))

    def on_devices(p, x):
      def part(w, x):
        return x @ w + lax.axis_index('d')

      return jax.shard_map(
        part, mesh=mesh, in_specs=(P(), P('d')), out_specs=P('d')
      )(p['w'], x)

    x = X[:2]
    run = lambda: jc.calibrate(
      on_devices, {'w': W}, [('w', 'FP8')], [x], uses=in_out.IN_OUT
    )
    want, _ = run()['w']
    found = jax.jit(lambda y: y * run()['w'][0])(1.0)
    np.testing.assert_allclose(found, want, rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
