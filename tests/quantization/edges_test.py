"""Where there is little data, none, or no number: nothing is silent."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.calibration import histograms

W = jax.random.normal(jax.random.key(0), (64, 32))
X = jax.random.normal(jax.random.key(1), (4, 64))
DYNAMIC = (
  'W8A8',
  'W4A8',
  'W4A4',
  'FP8_DYNAMIC',
  'MXFP4',
  'MXFP6',
  'MXFP8',
  'MXINT8',
  'NVFP4',
  'int8, int8 tensor',
)


def _apply(p, x):
  return x @ p['w']


def _quantised(scheme, ranges=None):
  return jc.quantize(
    {'w': W}, [('w', scheme)], ranges=ranges, uses=in_out.IN_OUT
  )


class ActivationsTest(parameterized.TestCase):
  @parameterized.product(scheme=DYNAMIC, bad=(np.nan, np.inf))
  def test_a_row_without_numbers_gives_none(self, scheme, bad):
    y = jax.jit(jc.lift(_apply))(_quantised(scheme), X.at[1, 5].set(bad))
    self.assertFalse(bool(jnp.isfinite(y[1]).any()))
    if scheme not in ('NVFP4', 'int8, int8 tensor'):  # one range for all rows
      self.assertTrue(bool(jnp.isfinite(y[jnp.array([0, 2, 3])]).all()))

  @parameterized.parameters('int8, int8 tensor static', 'FP8')
  def test_nor_does_it_in_a_range_that_is_given(self, scheme):
    ranges = jc.calibrate(
      _apply, {'w': W}, [('w', scheme)], [X], uses=in_out.IN_OUT
    )
    run = jax.jit(jc.lift(_apply))
    y = run(_quantised(scheme, ranges), X.at[1, 5].set(jnp.nan))
    self.assertTrue(bool(jnp.isnan(y[1]).all()))
    y = run(_quantised(scheme, ranges), X.at[1, 5].set(jnp.inf))
    self.assertTrue(bool(jnp.isfinite(y).all()))  # clipped

  @parameterized.parameters(*DYNAMIC)
  def test_no_rows(self, scheme):
    y = jax.jit(jc.lift(_apply))(_quantised(scheme), X[:0])
    self.assertEqual(y.shape, (0, 32))


def _conv(p, x):
  numbers = ('NHWC', 'HWIO', 'NHWC')
  x = x.reshape(1, 4, 8, 8)
  w = p['w'].reshape(2, 4, 8, 32)
  return lax.conv_general_dilated(
    x, w, (1, 1), 'SAME', dimension_numbers=numbers
  )


def _ragged(p, x):
  return lax.ragged_dot(x, p['w'][None], jnp.array([4]))


class LargeTest(parameterized.TestCase):
  @parameterized.product(
    f=(_apply, _conv, _ragged),
    scheme=('W8A16', 'int8 asym', 'int4 asym, int8 asym', 'FP8_DYNAMIC'),
  )
  def test_finite_where_the_result_is(self, f, scheme):
    x = X * 1e37
    uses = jc.uses(f)({'w': W}, x)
    q = jc.quantize({'w': W / 8}, [('w', scheme)], uses)
    y = jax.jit(jc.lift(f))(q, x)
    dense = f(jc.materialize(q), x)
    self.assertTrue(bool(jnp.isfinite(dense).all()))
    error = jnp.linalg.norm(y * 1e-37 - dense * 1e-37)
    within = 1e-6 if scheme in ('W8A16', 'int8 asym') else 0.04
    self.assertLess(float(error / jnp.linalg.norm(dense * 1e-37)), within)

  def test_keys_of_a_cache(self):
    cache = jc.quantization.quantize_cache({'k': X[None]}, [('k', 'int8')])
    scores = lambda c, q: jnp.einsum('bqd,bkd->bqk', q, c['k'])
    y = jc.lift(scores)(cache, X[None] * 1e36)
    self.assertTrue(bool(jnp.isfinite(y).all()))

  def test_gradients_on_codes(self):
    comp = jc.fake_quantize([('w', 'int8, int8, int8')], uses=in_out.IN_OUT)

    def loss(w, x):
      leaves = comp.apply({'w': w}, comp.init({'w': w}))
      return jnp.sum(jc.lift(_apply)(leaves, x) * 1e36)

    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(W, X)
    self.assertTrue(all(bool(jnp.isfinite(g).all()) for g in grads))


class LeafTest(absltest.TestCase):
  def test_iteration_ends(self):
    q = _quantised('W8A16')['w']
    rows = list(itertools.islice(iter(q), 100))
    self.assertLen(rows, 64)
    last = rows[63].materialize()
    np.testing.assert_array_equal(last, q.materialize()[63])


class LearnedTest(parameterized.TestCase):
  @parameterized.parameters(
    'int4 lsq',
    'int4 mse lsq',
    'int4 g16 lsq',
    'int4 asym mse lsq',
    'int4 asym lsq',
    'ternary lsq',
    'e2m1 lsq',
  )
  def test_blocks_of_zeros_have_gradients(self, scheme):
    for w in (W.at[:, 3].set(0), W.at[16:32].set(0)):
      comp = jc.fake_quantize([('w', scheme)], uses=in_out.IN_OUT)
      state = comp.init({'w': w})

      def loss(w, comp=comp, state=state):
        leaves = comp.apply({'w': w}, state)
        return jnp.sum(jc.lift(_apply)(leaves, X) ** 2)

      value, grad = jax.value_and_grad(loss)(w)
      self.assertTrue(bool(jnp.isfinite(value)))
      self.assertTrue(bool(jnp.isfinite(grad).all()))
      self.assertGreater(float(jnp.abs(grad).max()), 0)

  def test_a_scale_below_zero_is_as_if_it_were_small(self):
    comp = jc.fake_quantize([('w', 'int4 lsq')], uses=in_out.IN_OUT)
    state = comp.init({'w': W})
    state = jax.tree.map(lambda s: s.at[0, 3].set(-0.1), state)

    def loss(w):
      return jnp.sum(jc.lift(_apply)(comp.apply({'w': w}, state), X) ** 2)

    self.assertTrue(bool(jnp.isfinite(jax.grad(loss)(W)).all()))


class MistakesTest(parameterized.TestCase):
  def test_ranges_and_importance_of_no_leaf(self):
    rules = [('w', 'int4 mse')]
    with self.assertRaisesRegex(ValueError, "ranges has 'ww'.*mean 'w'"):
      jc.quantize(
        {'w': W}, rules, ranges={'ww': (1.0, None)}, uses=in_out.IN_OUT
      )
    with self.assertRaisesRegex(ValueError, "importance has 'ww'"):
      jc.quantize(
        {'w': W}, rules, importance={'ww': jnp.ones(64)}, uses=in_out.IN_OUT
      )
    with self.assertRaisesRegex(ValueError, "ranges has 'ww'"):
      jc.fake_quantize(
        rules, ranges={'ww': (1.0, None)}, uses=in_out.IN_OUT
      ).init({'w': W})

  @parameterized.parameters(
    'int8 tensor', 'int8 g32', 'int8 mse', 'int8 tensor static', 'int8 bfloat16'
  )
  def test_words_that_gradients_have_no_use_for(self, words):
    with self.assertRaisesRegex(ValueError, 'one measured float32 scale'):
      jc.fake_quantize(
        [('w', f'int8, int8, {words}')], uses=in_out.IN_OUT
      ).init({'w': W})

  def test_a_learned_range_that_is_measured(self):
    with self.assertRaisesRegex(ValueError, "'int8 tensor static lsq'"):
      jc.fake_quantize(
        [('w', 'int8, int8 token lsq')], uses=in_out.IN_OUT
      ).init({'w': W})

  def test_donated_twice(self):
    w = W + 0
    q = jc.quantize(
      {'a': w, 'b': w}, [('.*', 'W8A8')], donate=True, uses=in_out.IN_OUT
    )
    np.testing.assert_array_equal(q['a'].weight.qvalue, q['b'].weight.qvalue)
    self.assertTrue(w.is_deleted())
    w = W + 0
    jc.quantize(
      {'a': w, 'b': w},
      [('a', 'W8A8'), ('b', None)],
      donate=True,
      uses=in_out.IN_OUT,
    )
    self.assertFalse(w.is_deleted())


class CountsTest(absltest.TestCase):
  def test_more_than_32_bits_hold(self):
    stats = {'w': histograms.histogram()}
    x = jax.nn.relu(jax.random.normal(jax.random.key(2), (256, 64)))
    s = jc.observe(_apply, stats)({'w': W}, x)[1]
    want = histograms.percentile(s['w'].state, 99.9, False)
    merge = jax.jit(lambda s: jc.analysis.merge_stats(stats, s, s))
    for _ in range(20):
      s = merge(s)
    _, counts = histograms._bins(s['w'].state)
    # Zeros, half of what relu gives, are in no bin.
    self.assertEqual(counts.sum(), int((x != 0).sum()) * 2**20)
    got = histograms.percentile(s['w'].state, 99.9, False)
    self.assertEqual(got, want)


if __name__ == '__main__':
  absltest.main()
