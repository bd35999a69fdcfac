"""Selection against sorting, ties and all."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from jaxopt_compress.pruning import counts
from jaxopt_compress.pruning import select


def oracle(scores, k):
  """The first k of a stable sort, largest first."""
  flat = np.asarray(scores, np.float64).ravel()
  order = np.argsort(-flat, kind='stable')
  mask = np.zeros(flat.shape, bool)
  mask[order[:k]] = True
  return mask.reshape(scores.shape)


FLOATS = st.one_of(
  st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, np.inf, -np.inf, 1e-45, -1e-45]),
  st.floats(allow_nan=False, width=32),
)


class SelectTest(parameterized.TestCase):
  @hypothesis.settings(deadline=None, max_examples=100, database=None)
  @hypothesis.given(st.lists(FLOATS, min_size=12, max_size=12), st.data())
  def test_agrees_with_a_stable_sort(self, values, data):
    k = data.draw(st.integers(0, 12))
    scores = np.array(values, np.float32)
    # One shape, so that it compiles once.
    mask = np.asarray(select.top_k_mask(scores.reshape(3, 4), k))
    np.testing.assert_array_equal(mask, oracle(scores.reshape(3, 4), k))

  @parameterized.product(
    dtype=['float32', 'bfloat16', 'float16'],
    values=['normal', 'few', 'one'],
    k=[0, 1, 500, 999, 1000],
  )
  def test_counts_exactly(self, dtype, values, k):
    rng = np.random.default_rng(0)
    scores = {
      'normal': rng.normal(size=(10, 100)),
      'few': rng.integers(-2, 2, size=(10, 100)),
      'one': np.ones((10, 100)),
    }[values]
    scores = jnp.asarray(scores, dtype)
    mask = np.asarray(select.top_k_mask(scores, k))
    self.assertEqual(mask.sum(), k)
    np.testing.assert_array_equal(mask, oracle(scores, k))

  @parameterized.parameters(
    # scores, k, what is kept
    ('2 2 2 2', 2, 'xx..'),
    ('1 2 1 2', 3, 'xx.x'),
    ('0 -0 0 -0', 2, 'xx..'),
    ('-0 0 -1 1', 2, 'x..x'),
    ('-inf inf 0 -3', 3, '.xxx'),
  )
  def test_ties_go_to_the_lowest_index(self, scores, k, drawn):
    scores = jnp.array([float(s) for s in scores.split()])
    mask = select.top_k_mask(scores, k)
    self.assertEqual(''.join('.x'[int(m)] for m in mask), drawn)

  def test_float64(self):
    with jax.enable_x64(True):
      scores = jnp.array([1.0, 1.0 + 1e-15, 1.0 - 1e-15])
      mask = select.top_k_mask(scores, 1)
      self.assertEqual(mask.tolist(), [False, True, False])

  def test_k_is_traced(self):
    scores = jax.random.normal(jax.random.key(0), (7, 5))
    f = jax.jit(select.top_k_mask)
    for k in range(0, 36, 5):
      np.testing.assert_array_equal(f(scores, k), oracle(scores, k))
    self.assertEqual(f._cache_size(), 1)

  def test_vmap_selects_in_each(self):
    scores = jnp.round(jax.random.normal(jax.random.key(0), (3, 20)))
    k = jnp.array([0, 7, 20])
    masks = jax.vmap(select.top_k_mask)(scores, k)
    for mask, s, n in zip(masks, scores, k, strict=True):
      np.testing.assert_array_equal(mask, oracle(s, int(n)))

  def test_several_arrays_are_one(self):
    a = jnp.array([[1.0, 3.0], [3.0, 0.0]])
    b = jnp.array([3.0, 2.0, 3.0])
    both = np.concatenate([np.ravel(a), b])
    for k in range(8):
      masks = select.top_k_masks([a, b], k)
      got = np.concatenate([np.ravel(m) for m in masks])
      np.testing.assert_array_equal(got, oracle(both, k))

  def test_nan_is_an_error_and_never_wins(self):
    scores = jnp.array([jnp.nan, -jnp.inf, 1.0, -jnp.nan])
    with self.assertRaisesRegex(ValueError, '2 scores are NaN'):
      select.top_k_mask(scores, 1)
    kept = [jax.jit(select.top_k_mask)(scores, k).tolist() for k in (1, 2, 3)]
    self.assertEqual(kept[0], [False, False, True, False])
    self.assertEqual(kept[1], [False, True, True, False])
    self.assertEqual(kept[2], [True, True, True, False])

  def test_ordinal_orders_as_floats_do(self):
    x = np.array([-np.inf, -2, -1e-45, 0, 1e-45, 1, np.inf], np.float32)
    keys = np.asarray(select.ordinal(jnp.asarray(x))).astype(np.int64)
    self.assertTrue((np.diff(keys) > 0).all())
    self.assertGreater(keys[0], 0)
    self.assertEqual(int(select.ordinal(jnp.float32(jnp.nan))), 0)

  def test_sharded_scores_are_not_gathered(self):
    mesh = jax.make_mesh((4,), ('data',))
    sharding = NamedSharding(mesh, PartitionSpec('data'))
    scores = jnp.round(10 * jax.random.normal(jax.random.key(0), (64, 8)))
    sharded = jax.device_put(scores, sharding)
    f = jax.jit(select.top_k_mask)
    mask = jax.block_until_ready(f(sharded, 100))
    np.testing.assert_array_equal(mask, oracle(scores, 100))
    self.assertTrue(mask.sharding.is_equivalent_to(sharding, 2))
    program = f.lower(sharded, 100).compile().as_text()
    self.assertNotIn('all-gather', program)
    for line in program.splitlines():
      if ' all-reduce(' in line:
        self.assertIn('s32[]', line)

  @parameterized.parameters(
    (dict(scores=np.arange(3), k=1), 'int32; give floating'),
    (dict(scores=np.ones(3, np.float32), k=4), 'k=4 of 3'),
    (dict(scores=np.ones(3, np.float32), k=-1), 'k=-1 of 3'),
  )
  def test_errors(self, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      select.top_k_mask(**kwargs)

  def test_dtypes_are_not_mixed(self):
    with self.assertRaisesRegex(ValueError, 'one dtype'):
      select.top_k_masks([jnp.ones(2), jnp.ones(2, jnp.bfloat16)], 1)

  @parameterized.parameters((0,), (1,), (0, 2), (-1, -2))
  def test_slices_are_ranked_each_by_itself(self, *axes):
    scores = jnp.round(4 * jax.random.normal(jax.random.key(0), (3, 4, 5)))
    got = np.asarray(select.top_k_mask(scores, 2, axes))
    # Slices one after the other, the ranked axes last and in their order.
    back = [a % 3 for a in sorted(a % 3 for a in axes)]
    rest = [a for a in range(3) if a not in back]
    n = int(np.prod([scores.shape[a] for a in back]))
    rows = lambda x: np.transpose(x, (*rest, *back)).reshape(-1, n)
    for mask, row in zip(rows(got), rows(np.asarray(scores)), strict=True):
      np.testing.assert_array_equal(mask, oracle(row, 2))

  @parameterized.parameters(range(5, 16))
  def test_bounds_hold_and_the_rest_is_one_ranking(self, k):
    stack = jnp.array([[9.0, 9, 8, 7, 9, 6], [0, 1, 2, 3, 4, 4]])
    b = jnp.array([5.0, 9, 5, 2])
    slices = [
      select.Slices(stack, (1,), counts.of(jnp.array([[0], [2]])), 4),
      select.Slices(b, (0,), 1, 4),
    ]
    if k > 12:
      slices[0] = slices[0]._replace(most=6)
    got = select.together(slices, k)
    kept = [int(m.sum()) for m in (*got[0], got[1])]
    self.assertEqual(sum(kept), k)
    self.assertGreaterEqual(kept[1], 2)
    self.assertGreaterEqual(kept[2], 1)
    self.assertLessEqual(max(kept[:2]), 4 if k <= 12 else 6)
    for row, mask, n in zip((*stack, b), (*got[0], got[1]), kept, strict=True):
      np.testing.assert_array_equal(mask, oracle(row, n))
    if k == 7:  # 9 9 9 8 of the first, its most, 4 4 of the second, its least
      self.assertEqual(kept, [4, 2, 1])

  def test_ties_in_more_rows_than_an_index_counts(self):
    tied = jnp.asarray(np.random.default_rng(0).random((4, 3, 5)) < 0.5)
    n = int(tied.sum())
    split = counts.split
    small = lambda shape, axes, most=0: split(shape, axes, 16)
    with mock.patch.object(counts, 'split', small):
      for k in range(n + 1):
        got = select._first(tied, counts.of(k), (0, 1, 2))
        want = np.cumsum(np.ravel(tied)) <= k
        np.testing.assert_array_equal(np.ravel(got), np.ravel(tied) & want)

  def test_more_weights_than_an_int32_counts(self):
    stack = jax.ShapeDtypeStruct((80, 8192, 8192), jnp.bfloat16)  # 5.4e9
    one = jax.ShapeDtypeStruct((2**18, 2**14), jnp.bfloat16)  # 2^32
    for f, k in (
      (select.top_k_mask, 2**32 + 5),
      (lambda x, k: select.top_k_masks([x, x], k), 2**33 + 5),
    ):
      for x in (stack, one):
        text = jax.jit(f, static_argnums=1).lower(x, min(k, x.size)).as_text()
        self.assertNotIn('i64>', text)
        self.assertNotIn('sort', text)


if __name__ == '__main__':
  absltest.main()
