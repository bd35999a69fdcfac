"""Masks, drawn: x is kept, . is pruned."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.pruning import masks


def draw(mask):
  return ' '.join(''.join('.x'[int(m)] for m in row) for row in mask)


def n_m_oracle(scores, n, m):
  """Along the last axis."""
  groups = np.asarray(scores, np.float64).reshape(-1, m)
  mask = np.zeros(groups.shape, bool)
  for row, out in zip(groups, mask, strict=True):
    out[np.argsort(-row, kind='stable')[:n]] = True
  return mask.reshape(scores.shape)


class MasksTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.0, 1.0, 'xxxx xxxx'),
    (0.25, 1.0, 'xx.x xxx.'),
    (0.5, 1.0, 'x..x x.x.'),
    (0.5, 0.5, 'xx.x xxx.'),
    (0.5, 0.0, 'xxxx xxxx'),
    (1.0, 1.0, '.... ....'),
  )
  def test_unstructured(self, sparsity, ramp, expected):
    scores = jnp.array([[9.0, 2.0, 1.0, 8.0], [7.0, 2.0, 6.0, 0.0]])
    mask = masks.unstructured(scores, sparsity, ramp=ramp)
    self.assertEqual(draw(mask), expected)
    traced = jax.jit(lambda r: masks.unstructured(scores, sparsity, ramp=r))
    self.assertEqual(draw(traced(ramp)), expected)

  @parameterized.parameters(
    (2, 4, -1, 'x..xx..x .xx..xx.'),
    (1, 4, -1, 'x...x... .x....x.'),
    (3, 4, -1, 'x.xxxx.x .xxx.xxx'),
    (1, 2, -2, 'x..xx..x .xx..xx.'),
    (2, 8, -1, 'x..x.... .x....x.'),
  )
  def test_n_m(self, n, m, axis, expected):
    scores = jnp.array([[3, 0, 1, 3, 3, 2, 0, 2.5], [0, 4, 3, 1, 0, 3, 4, 1]])
    mask = masks.n_m(scores, n, m, axis)
    self.assertEqual(draw(mask), expected)

  @parameterized.product(
    n_m=[(2, 4), (1, 4), (7, 8)],
    axis=[-1, -2, 0],
    dtype=['float32', 'bfloat16'],
  )
  def test_n_m_keeps_n_of_each(self, n_m, axis, dtype):
    n, m = n_m
    scores = jax.random.normal(jax.random.key(0), (8, 8, 16)).astype(dtype)
    scores = jnp.round(scores * 2)  # many ties
    mask = np.moveaxis(np.asarray(masks.n_m(scores, n, m, axis)), axis, -1)
    np.testing.assert_array_equal(mask.reshape(-1, m).sum(-1), n)
    last = np.moveaxis(np.asarray(scores), axis, -1)
    np.testing.assert_array_equal(mask, n_m_oracle(last, n, m))

  @parameterized.parameters(
    # groups lose 1, 3, 0 and 2
    (0.0, 'xxxx xxxx xxxx xxxx'),
    (0.25, 'xxxx xxxx ..xx xxxx'),
    (0.5, 'x..x xxxx ..xx xxxx'),
    (0.75, 'x..x xxxx ..xx xx..'),
    (1.0, 'x..x x.x. ..xx xx..'),
  )
  def test_n_m_ramps_group_by_group(self, ramp, expected):
    groups = [[9, 0, 1, 9], [9, 1, 9, 2], [0, 0, 9, 9], [9, 9, 1, 1]]
    scores = jnp.array(groups, jnp.float32).reshape(2, 8)
    traced = jax.jit(lambda r: masks.n_m(scores, 2, 4, -1, ramp=r))
    self.assertEqual(draw(traced(ramp).reshape(4, 4)), expected)

  @parameterized.named_parameters(
    ('ragged', (4, 10), 2, 4, -1, r'groups of 4.*\b10\b.*\[5, 10\]'),
    ('all kept', (4, 8), 4, 4, -1, 'keeps 4 of 4'),
    ('none kept', (4, 8), 0, 4, -1, 'keeps 0 of 4'),
    ('no axis', (4, 8), 2, 4, -3, 'Axis -3'),
  )
  def test_n_m_refuses(self, shape, n, m, axis, message):
    with self.assertRaisesRegex(ValueError, message):
      masks.n_m(jnp.ones(shape), n, m, axis)

  @parameterized.parameters(
    (0.5, -1, 1.0, '.x.x .x.x'),
    (0.5, -1, 0.5, '.xxx .xxx'),
    (0.5, -2, 1.0, '.... xxxx'),
    (0.25, (-2, -1), 1.0, '.x.x xxxx'),
    (0.0, -1, 1.0, 'xxxx xxxx'),
  )
  def test_neurons(self, sparsity, axis, ramp, expected):
    scores = jnp.array([[0.0, 5.0, 1.0, 3.0], [2.0, 3.0, 2.0, 6.0]])
    mask = masks.neurons(scores, sparsity, axis, ramp=ramp)
    self.assertEqual(draw(mask), expected)

  def test_neurons_of_bfloat16_are_ranked_in_float32(self):
    scores = jnp.ones((512, 2), jnp.bfloat16).at[0, 0].set(1.0078125)
    mask = masks.neurons(scores, 0.5, -1)
    self.assertEqual(mask[0].tolist(), [True, False])

  @parameterized.parameters(-0.1, 1.5, 80, float('nan'))
  def test_fractions(self, sparsity):
    for f in (
      lambda: masks.unstructured(jnp.ones(4), sparsity),
      lambda: masks.neurons(jnp.ones((4, 4)), sparsity, -1),
    ):
      with self.assertRaisesRegex(ValueError, 'fraction of zeros'):
        f()

  def test_nan_is_an_error(self):
    scores = jnp.ones((4, 4)).at[1, 1].set(jnp.nan)
    for f in (
      lambda: masks.unstructured(scores, 0.5),
      lambda: masks.n_m(scores, 2, 4, -1),
      lambda: masks.neurons(scores, 0.5, -1),
    ):
      with self.assertRaisesRegex(ValueError, 'NaN'):
        f()


if __name__ == '__main__':
  absltest.main()
