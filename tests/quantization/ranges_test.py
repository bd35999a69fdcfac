"""Ranges of static activations: ends, scales and zero points."""

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.analysis import statistics
from jaxopt_compress.analysis import watch
from jaxopt_compress.quantization import ranges


class RangesTest(parameterized.TestCase):
  @parameterized.parameters(
    # low, high -> the range that is kept
    (True, -1.0, 2.0, (-2.0, 2.0)),
    (True, 1.0, 2.0, (-2.0, 2.0)),
    (False, -1.0, 2.0, (-1.0, 2.0)),
    (False, 1.0, 2.0, (0.0, 2.0)),
    (False, -2.0, -1.0, (-2.0, 0.0)),
  )
  def test_ends_go_there_and_back(self, symmetric, low, high, want):
    act = jc.schemes.Spec('int8', 'tensor', symmetric=symmetric, static=True)
    made = ranges.of_ends(jnp.array([[low]]), jnp.array([[high]]), act)
    got = [float(e[0, 0]) for e in ranges.ends_of(*made, act)]
    # Zero points are integers, so an end may be off by half a step.
    half = 0 if symmetric else 0.5 * float(made[0][0, 0])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 + half)

  def test_placeholders_are_as_what_is_calibrated(self):
    params = {'w': jnp.ones((8, 4)), 'v': jnp.ones((8, 4))}
    rules = [('w', 'int8, int8 tensor static asym'), ('v', 'W8A8')]
    got = ranges.placeholders(params, rules, uses=in_out.IN_OUT)
    self.assertEqual(list(got), ['w'])
    scale, zero = got['w']
    self.assertEqual((scale.shape, zero.shape), ((1, 1), (1, 1)))
    self.assertEqual((scale.dtype, zero.dtype), (jnp.float32, jnp.int8))

  @parameterized.parameters(
    (jnp.nan, jnp.nan), (-3.0, jnp.inf), (-jnp.inf, 5.0)
  )
  def test_what_is_not_finite_leaves_ranges_alone(self, low, high):
    ends = jnp.array([[-1.0]]), jnp.array([[1.0]])
    met = statistics.Range(jnp.float32(low), jnp.float32(high))
    got = ranges.follow(ends, watch.Observed(jnp.int32(4), met), 0.5)
    np.testing.assert_array_equal(got, ends)

  def test_what_met_nothing_keeps_its_range(self):
    ends = (jnp.array([[[-1.0]], [[-1.0]]]), jnp.array([[[1.0]], [[1.0]]]))
    met = statistics.minmax('tensor').init(0)
    low, high = jnp.array([-3.0, jnp.inf]), jnp.array([5.0, -jnp.inf])
    seen = watch.Observed(jnp.array([4, 0]), met._replace(low=low, high=high))
    low, high = ranges.follow(ends, seen, 0.5)
    np.testing.assert_array_equal(low.ravel(), [-2, -1])
    np.testing.assert_array_equal(high.ravel(), [3, 1])


if __name__ == '__main__':
  absltest.main()
