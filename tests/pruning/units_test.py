"""What goes as one, drawn."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.pruning import masks
from jaxopt_compress.pruning import ranking
from jaxopt_compress.pruning import spec as spec_lib
from jaxopt_compress.pruning import units

Axes = uses_lib.Axes
MATRIX = Axes((-2,), (), (-1,))


def draw(mask):
  return [''.join('.x'[int(m)] for m in row) for row in np.asarray(mask)]


class UnitsTest(parameterized.TestCase):
  @parameterized.parameters(
    # pool, fraction that goes, what stays
    ('mean', 0.5, ['..xx.', '..xx.', 'xx..x']),
    ('max', 0.5, ['xx...', 'xx...', 'xx..x']),
    ('mean', 1 / 3, ['..xxx', '..xxx', 'xx..x']),
  )
  def test_blocks_with_ragged_edges(self, pool, fraction, drawn):
    scores = jnp.array([[9.0, 0, 4, 4, 3], [0, 0, 4, 4, 3], [7, 7, 1, 1, 8]])
    # Tiles of 2 x 2: means 2.25, 4, 3 and, at the edge, 7, 1, 8.
    tiles = units.block(scores, MATRIX, block=(2, 2), pool=pool)
    self.assertEqual(draw(masks.cut(tiles, fraction)), drawn)

  @parameterized.parameters(
    (MATRIX, (6, 9), (2, 3)),
    (MATRIX, (7, 10), (4, 4)),
    (MATRIX, (3, 3), (8, 8)),
    (Axes((-4, -3, -2), (), (-1,)), (3, 3, 5, 6), (2, 4)),
    (Axes((-2,), (-3,), (-1,)), (2, 5, 6), (4, 2)),
  )
  def test_blocks_against_numpy(self, axes, shape, block):
    scores = jax.random.uniform(jax.random.key(0), shape)
    got = units.block(scores, axes, block=block)
    s = np.asarray(scores).reshape(-1, *shape[-2:])
    rows, columns = (
      range(0, n, b) for n, b in zip(shape[-2:], block, strict=True)
    )
    want = [
      [
        [x[i : i + block[0], j : j + block[1]].mean() for j in columns]
        for i in rows
      ]
      for x in s
    ]
    np.testing.assert_allclose(
      got.scores.reshape(np.shape(want)), want, rtol=1e-6
    )
    self.assertTrue(got.expand(jnp.ones_like(got.scores, bool)).all())
    kept = got.expand(
      jnp.arange(got.scores.size).reshape(got.scores.shape) == 0
    )
    self.assertEqual(kept.shape, shape)
    corner = np.zeros(shape, bool).reshape(-1, *shape[-2:])
    corner[0, : block[0], : block[1]] = True
    np.testing.assert_array_equal(kept.reshape(corner.shape), corner)

  @parameterized.parameters(
    # shape, axes, options, units
    (
      (6, 4, 3),
      Axes((-3,), (), (-2, -1)),
      {},
      (1, 4, 1),
    ),  # [d, heads, head_dim]
    (
      (4, 3, 6),
      Axes((-3, -2), (), (-1,)),
      {},
      (4, 1, 1),
    ),  # [heads, head_dim, d]
    ((6, 12), MATRIX, dict(size=3), (1, 4)),
    ((12, 6), MATRIX, dict(size=3, axis=-2), (4, 1)),
    ((2, 6, 12), Axes((-2,), (-3,), (-1,)), dict(size=3), (2, 1, 4)),
    ((2, 6, 4, 3), Axes((-3,), (-4,), (-2, -1)), {}, (2, 1, 4, 1)),
  )
  def test_heads(self, shape, axes, options, number):
    scores = jax.random.uniform(jax.random.key(0), shape)
    got = units.heads(scores, axes, **options)
    self.assertEqual(got.scores.shape, number)
    mask = masks.cut(got, 0.5)
    self.assertEqual(int(mask.sum()), scores.size // 2)
    # A head is whole or gone.
    size = scores.size // got.scores.size
    runs = got.expand(got.scores == got.scores.max())
    self.assertEqual(int(runs.sum()), size)
    np.testing.assert_allclose(scores[runs].mean(), got.scores.max(), rtol=1e-6)

  def test_neurons_of_an_axis(self):
    scores = jnp.array([[9.0, 1, 2], [0, 1, 2]])
    inputs = masks.cut(units.neurons(scores, MATRIX, axis=-2), 0.5)
    self.assertEqual(draw(inputs), ['xxx', '...'])
    outputs = masks.cut(units.neurons(scores, MATRIX), 1 / 3)
    self.assertEqual(draw(outputs), ['x.x', 'x.x'])

  @parameterized.parameters('unstructured', 'n_m', 'block', 'neurons', 'heads')
  def test_each_ramps_and_ends_with_what_was_asked(self, kind):
    scores = {'w': jax.random.uniform(jax.random.key(0), (3, 8, 8))}
    axes = {'w': Axes((-2,), (-3,), (-1,))}
    options = dict(
      n_m=dict(n=2, m=4), block=dict(block=(4, 2)), heads=dict(size=2)
    )
    spec = spec_lib.Sparsity(0.5, kind, **options.get(kind, {}))
    for ramp, left in ((0.0, 64), (0.5, 48), (1.0, 32)):
      got = ranking.masks(spec, scores, axes, ramp)['w']
      self.assertEqual(got.sum((-2, -1)).tolist(), [left] * 3)

  @parameterized.parameters(
    ('block', (4, 4), Axes((), (), (-2, -1)), dict(block=(2, 2)), 'no blocks'),
    ('block', (4, 4), MATRIX, dict(block=(0, 2)), r'block=\(0, 2\)'),
    ('block', (4, 4), MATRIX, dict(block=(2, 2), pool='sum'), "pool='sum'"),
    ('block', (4, 4), MATRIX, dict(block=(2,)), 'a height and a width'),
    ('neurons', (4, 4), MATRIX, dict(axis=1), r'axis=1.*one of \[-2, -1\]'),
    ('neurons', (2, 4, 4), Axes((-2,), (-3,), (-1,)), dict(axis=-3), 'axis=-3'),
    ('neurons', (4, 4), Axes((-2, -1), (), ()), {}, 'has no neurons'),
    ('heads', (4, 4), MATRIX, {}, 'Where are the heads'),
    ('heads', (4, 4), MATRIX, dict(size=3), 'Heads of 3 channels'),
  )
  def test_errors(self, kind, shape, axes, options, message):
    with self.assertRaisesRegex(ValueError, message):
      getattr(units, kind)(jnp.ones(shape), axes, **options)


if __name__ == '__main__':
  absltest.main()
