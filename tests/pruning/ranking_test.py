"""What is ranked against what."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.pruning import masks as masks_lib
from jaxopt_compress.pruning import ranking
from jaxopt_compress.pruning import spec as spec_lib

Sparsity = spec_lib.Sparsity

MATRIX = uses_lib.Axes((-2,), (), (-1,))


class RankingTest(parameterized.TestCase):
  @parameterized.parameters(
    # where the stacked axis is, and the axes of the whole leaf
    (0, uses_lib.Axes((-2,), (-3,), (-1,))),
    (1, uses_lib.Axes((-3,), (-2,), (-1,))),
    (2, uses_lib.Axes((-3,), (-1,), (-2,))),
  )
  def test_each_layer_of_a_stack_by_itself(self, position, axes):
    layers = jax.random.normal(jax.random.key(0), (3, 8, 4))
    scores = jnp.abs(layers) * jnp.array([1.0, 10.0, 100.0])[:, None, None]
    stack = jnp.moveaxis(scores, 0, position)
    for kind, oracle in {
      'unstructured': lambda s: masks_lib.unstructured(s, 0.5),
      'n_m': lambda s: masks_lib.n_m(s, 2, 4, -2),
      'neurons': lambda s: masks_lib.neurons(s, 0.5, -1),
    }.items():
      groups = dict(n=2, m=4) if kind == 'n_m' else {}
      spec = Sparsity(0.5, kind=kind, **groups)
      got = ranking.masks(spec, {'w': stack}, {'w': axes})['w']
      want = jnp.stack([oracle(s) for s in scores])
      np.testing.assert_array_equal(jnp.moveaxis(got, position, 0), want)

  def test_two_stacked_axes(self):
    scores = jax.random.uniform(jax.random.key(0), (2, 3, 4, 8))
    axes = uses_lib.Axes((-2,), (-4, -3), (-1,))
    spec = Sparsity(0.25, kind='neurons')
    mask = ranking.masks(spec, {'w': scores}, {'w': axes})['w']
    np.testing.assert_array_equal(mask.sum((-2, -1)), 6 * 4)

  def test_global_is_one_threshold(self):
    scores = {'a': jnp.array([[1.0, 5.0], [6.0, 2.0]]), 'b': jnp.array([[3.0]])}
    axes = dict.fromkeys(scores, MATRIX)
    got = ranking.masks(
      Sparsity(0.4, 'unstructured', scope='global'), scores, axes
    )
    self.assertEqual(got['a'].tolist(), [[False, True], [True, False]])
    self.assertEqual(got['b'].tolist(), [[True]])

  def test_global_neurons_of_all_leaves_and_layers(self):
    scores = {
      'stack': jnp.array([[[1.0, 4.0]], [[9.0, 2.0]]]),  # two layers [1, 2]
      'w': jnp.array([[3.0, 8.0], [0.0, 8.0]]),
    }
    axes = {'stack': uses_lib.Axes((-2,), (-3,), (-1,)), 'w': MATRIX}
    # Means 1, 4, 9, 2 and 1.5, 8: half of six go.
    got = ranking.masks(Sparsity(0.5, 'neurons', scope='global'), scores, axes)
    self.assertEqual(got['stack'].tolist(), [[[False, True]], [[True, False]]])
    self.assertEqual(got['w'].tolist(), [[False, True], [False, True]])

  def test_global_of_two_dtypes(self):
    scores = {
      'a': jnp.array([[2.0, 4.0]], jnp.bfloat16),
      'b': jnp.array([[1.0, 3.0]]),
    }
    axes = dict.fromkeys(scores, MATRIX)
    got = ranking.masks(
      Sparsity(0.5, 'unstructured', scope='global'), scores, axes
    )
    self.assertEqual(got['a'].tolist(), [[False, True]])
    self.assertEqual(got['b'].tolist(), [[False, True]])
    got = ranking.masks(
      Sparsity(0.25, 'unstructured', scope='global'), scores, axes
    )
    self.assertEqual(got['a'].tolist(), [[True, True]])
    self.assertEqual(got['b'].tolist(), [[False, True]])

  @parameterized.parameters('unstructured', 'neurons')
  def test_no_layer_is_emptied(self, kind):
    # A stack of two layers and a matrix, the second layer a thousandth of the others.
    keys = jax.random.split(jax.random.key(0))
    scores = {
      'stack': jax.random.uniform(keys[0], (2, 4, 20)),
      'w': jax.random.uniform(keys[1], (4, 20)) + 1,
    }
    scores['stack'] *= jnp.array([1.0, 1e-3])[:, None, None]
    axes = {'stack': uses_lib.Axes((-2,), (-3,), (-1,)), 'w': MATRIX}
    unit = 1 if kind == 'unstructured' else 4
    for floor in (0.0, 0.1, 0.5):
      got = ranking.masks(
        Sparsity(0.5, kind, scope='global', floor=floor), scores, axes
      )
      kept = [int(m.sum()) // unit for m in (*got['stack'], got['w'])]
      self.assertEqual(sum(kept), 120 // unit)
      self.assertEqual(kept[1], max(int(floor * 40 / unit), 1))
      # The floor is of the largest.
      layer, mask = scores['stack'][1], got['stack'][1]
      if kind == 'unstructured':
        self.assertGreater(layer[mask].min(), layer[~mask].max())

  def test_a_leaf_in_no_product_may_be_a_stack(self):
    scores = {'s': jnp.array([[1.0, 2.0], [30.0, 40.0]])}
    axes = {'s': uses_lib.Axes((), (-2,), (-1,))}
    got = ranking.masks(
      Sparsity(0.5, 'unstructured', scope='leaf'), scores, axes
    )
    self.assertEqual(got['s'].tolist(), [[False, True], [False, True]])
    axes = {'s': uses_lib.Axes((), (), (-2, -1))}
    got = ranking.masks(
      Sparsity(0.5, 'unstructured', scope='leaf'), scores, axes
    )
    self.assertEqual(got['s'].tolist(), [[False, False], [True, True]])

  @parameterized.parameters(
    ('unstructured', 'leaf', 0.8, '^w: target=0.8 leaves none of 2 weights'),
    ('neurons', 'leaf', 0.8, '^w: target=0.8 leaves none of 1 neurons'),
    ('unstructured', 'global', 0.9, '^target=0.9 leaves none of 4'),
    ('unstructured', 'global', 0.7, 'leaves 1 in 2 layers'),
  )
  def test_something_is_left(self, kind, scope, target, message):
    scores = {'v': jnp.ones((1, 2)), 'w': jnp.ones((2, 1))}
    if scope == 'leaf':
      del scores['v']
    with self.assertRaisesRegex(ValueError, message):
      axes = dict.fromkeys(scores, MATRIX)
      ranking.masks(Sparsity(target, kind, scope=scope), scores, axes)

  def test_an_error_names_the_leaf(self):
    scores = {'fine': jnp.ones((8, 2)), 'ragged': jnp.ones((6, 2))}
    with self.assertRaisesRegex(ValueError, '^ragged: 2:4 needs whole groups'):
      axes = dict.fromkeys(scores, MATRIX)
      ranking.masks(Sparsity(kind='n_m', n=2, m=4), scores, axes)

  def test_rows_are_ranked_each_by_itself(self):
    scores = {'w': jax.random.uniform(jax.random.key(0), (2, 8, 5))}
    axes = {'w': uses_lib.Axes((-2,), (-3,), (-1,))}
    for options, left in ((dict(), 4), (dict(kind='block', block=(2, 1)), 4)):
      spec = Sparsity(0.5, scope='row', **options)
      got = ranking.masks(spec, scores, axes)['w']
      np.testing.assert_array_equal(got.sum(-2), left)
    with self.assertRaisesRegex(ValueError, 'one unit in each row'):
      ranking.masks(Sparsity(0.5, 'neurons', scope='row'), scores, axes)

  def test_groups_of_a_regex_share_a_threshold(self):
    scores = {
      'a/q': jnp.array([[1.0, 5.0]]),
      'a/v': jnp.array([[6.0, 8.0]]),
      'b/q': jnp.array([[0.5, 0.1]]),
    }
    axes = dict.fromkeys(scores, MATRIX)
    spec = Sparsity(0.5, scope=r'(\w)/.*', floor=0.0)
    got = ranking.masks(spec, scores, axes)
    self.assertEqual(
      {p: m.ravel().astype(int).tolist() for p, m in got.items()},
      {'a/q': [0, 1], 'a/v': [0, 1], 'b/q': [1, 0]},
    )
    with self.assertRaisesRegex(ValueError, 'does not match a/q, whole'):
      ranking.masks(Sparsity(0.5, scope='(b)/.*'), scores, axes)

  @parameterized.parameters(0.25, 0.5, 1.0)
  def test_caps(self, ramp):
    scores = {
      'loud': jax.random.uniform(jax.random.key(0), (10, 10)) + 9,
      'soft': jax.random.uniform(jax.random.key(1), (10, 10)),
    }
    axes = dict.fromkeys(scores, MATRIX)
    spec = Sparsity(0.8, scope='global', cap=1.5)
    kept = {
      p: int(m.sum())
      for p, m in ranking.masks(spec, scores, axes, ramp).items()
    }
    self.assertEqual(sum(kept.values()), 200 - round(160 * ramp))
    # At the end loud keeps at most 1.5 times its 20, before it one more for rounding.
    self.assertLessEqual(kept['loud'], 100 - 69 * ramp + 1.5)
    if ramp == 1:
      self.assertEqual(kept['loud'], 30)
      spec = dataclasses.replace(spec, cap=1.0)
      for now in (1.0, jnp.float32(1)):
        for mask in ranking.masks(spec, scores, axes, now).values():
          self.assertEqual(int(mask.sum()), 20)

  def test_empty_leaves(self):
    scores = {'none': jnp.zeros((0, 4)), 'w': jnp.arange(16.0).reshape(4, 4)}
    axes = dict.fromkeys(scores, MATRIX)
    for options in (
      dict(),
      dict(kind='block', block=(2, 2)),
      dict(scope='global'),
      dict(allocation='erk'),
      dict(allocation='lamp'),
      dict(allocation='owl'),
    ):
      got = ranking.masks(Sparsity(0.5, **options), scores, axes)
      self.assertEqual(got['none'].shape, (0, 4))
      self.assertEqual(int(got['w'].sum()), 8)
    self.assertEqual(ranking.masks(Sparsity(0.5, scope='global'), {}, {}), {})

  def test_nothing_is_gathered_or_sorted(self):
    mesh = jax.make_mesh((4,), ('m',))
    shapes = {'a/s': (4, 8, 16), 'b/w': (8, 16)}
    specs = {'a/s': ('m',), 'b/w': (None, 'm')}
    stack = uses_lib.Axes((-2,), (-3,), (-1,))
    axes = {p: stack if len(s) == 3 else MATRIX for p, s in shapes.items()}
    block, heads = dict(kind='block', block=(4, 4)), dict(kind='heads', size=4)
    cases = [
      dict(kind='n_m', n=2, m=4),
      dict(kind='neurons'),
      dict(heads, scope=r'(\w)/.*'),
      dict(block, scope='row'),
      dict(block, scope='global', cap=1.5),
      dict(allocation='erk'),
      dict(allocation='owl'),
      dict(allocation='lamp'),
      dict(allocation='owl'),
      dict(scope='row'),
    ]
    # Each granularity, each scope and each allocation once, in one program.
    rules = [Sparsity(0.5, **case) for case in cases]
    keys = jax.random.split(jax.random.key(0))
    scores = {
      p: jax.random.uniform(key, s)
      for key, (p, s) in zip(keys, shapes.items(), strict=True)
    }
    placed = {
      p: jax.device_put(
        s, jax.NamedSharding(mesh, jax.sharding.PartitionSpec(*specs[p]))
      )
      for p, s in scores.items()
    }

    @jax.jit
    def every(scores, ramp):
      return [ranking.masks(rule, scores, axes, ramp) for rule in rules]

    program = every.lower(placed, jnp.float32(1)).compile()
    text = program.as_text()
    for word in ('all-gather', 'all-to-all', 'collective-permute', ' sort('):
      self.assertNotIn(word, text)
    for case, got in zip(cases, program(placed, jnp.float32(1)), strict=True):
      want = ranking.masks(Sparsity(0.5, **case), scores, axes)
      for p, mask in got.items():
        np.testing.assert_array_equal(mask, want[p], f'{case} {p}')
        self.assertTrue(
          mask.sharding.is_equivalent_to(placed[p].sharding, mask.ndim)
        )


if __name__ == '__main__':
  absltest.main()
