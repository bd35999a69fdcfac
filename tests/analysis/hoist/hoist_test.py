"""Programs that make their weights: what becomes a leaf, and that results stay."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import made_weights
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.analysis.hoist import hoist as hoist_lib

X, PROGRAMS = made_weights.X, made_weights.PROGRAMS


def shapes(weights):
  return {p: x.shape for p, x in jc.rules.named_leaves(weights)}


# A scan that stays whole runs compiled, also where JAX would run it turn by turn.
WHOLE_SCANS = 'through_scan', 'shared_over_layers'
# What is built again around its body.
BUILT = 'cell', 'rematted', 'twice_scanned', 'branches', 'looped', 'noisy'


class HoistTest(parameterized.TestCase):
  @parameterized.parameters(*PROGRAMS)
  def test_to_the_bit_operation_by_operation(self, name):
    fun, params, want = PROGRAMS[name]
    with jax.disable_jit(name not in WHOLE_SCANS):
      on_weights, weights = jc.hoist(fun)(params, X)
      expected, got = fun(params, X), on_weights(weights, X)
    self.assertEqual(shapes(weights), want)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    self.assertLessEqual(jc.nbytes(weights), jc.nbytes(params) * 17 / 16)
    # What is described without computing is what was made.
    like = jax.eval_shape(lambda p: p, params)
    described = hoist_lib.hoisted(fun)(like, X)
    self.assertEqual({n: d.shape for n, d in described.items()}, want)

  @parameterized.parameters(*BUILT)
  def test_compiled_and_for_another_batch(self, name):
    fun, params, _ = PROGRAMS[name]
    on_weights, weights = jc.hoist(fun)(params, X)
    x = jnp.concatenate([X, -X, X[:1]])
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
      jax.jit(on_weights)(weights, x),
      jax.jit(fun)(params, x),
    )
