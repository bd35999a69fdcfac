"""Caches in codes: what is written, what is read, what is refused."""

from absl.testing import absltest
from absl.testing import parameterized
import caching
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc

WRITES = {
  'a token': (
    lambda c, x: lax.dynamic_update_slice_in_dim(c, x[:, :1], 3, axis=1),
    lambda c, x: c[:, 3:4].__setitem__(slice(None), x[:, :1]),
  ),
  'tokens': (
    lambda c, x: lax.dynamic_update_slice(c, x, (0, jnp.int32(2), 0, 0)),
    lambda c, x: c[:, 2:5].__setitem__(slice(None), x),
  ),
  'past the end': (
    lambda c, x: lax.dynamic_update_slice_in_dim(c, x, 7, axis=1),
    lambda c, x: c[:, 5:8].__setitem__(slice(None), x),
  ),
  'at a place': (
    lambda c, x: c.at[:, 4].set(x[:, 1]),
    lambda c, x: c[:, 4].__setitem__(slice(None), x[:, 1]),
  ),
  'at a traced place': (
    lambda c, x: c.at[:, jnp.int32(4)].set(x[:, 1]),
    lambda c, x: c[:, 4].__setitem__(slice(None), x[:, 1]),
  ),
  'at a stretch': (
    lambda c, x: c.at[:, 2:5].set(x),
    lambda c, x: c[:, 2:5].__setitem__(slice(None), x),
  ),
  'one example': (
    lambda c, x: c.at[1, 4].set(x[1, 1]),
    lambda c, x: c[1, 4].__setitem__(slice(None), x[1, 1]),
  ),
  'a place for each example': (
    lambda c, x: c.at[jnp.arange(2), jnp.array([1, 6])].set(x[:, 0]),
    lambda c, x: [
      c[b, t].__setitem__(slice(None), x[b, 0]) for b, t in enumerate((1, 6))
    ],
  ),
  'by vmap, a place for each example': (
    lambda c, x: jax.vmap(
      lambda c, x, t: lax.dynamic_update_slice_in_dim(c, x, t, axis=0)
    )(c, x[:, :2], jnp.array([1, 6])),
    lambda c, x: [
      c[b, t : t + 2].__setitem__(slice(None), x[b, :2])
      for b, t in enumerate((1, 6))
    ],
  ),
}


class WriteTest(parameterized.TestCase):
  @parameterized.product(write=list(WRITES), name=caching.FORMATS)
  def test_rows_are_rounded_and_the_others_keep_their_codes(self, write, name):
    old, new = caching.random(2, 8, 3, 4), caching.random(2, 3, 3, 4, seed=5)
    cache = caching.cache(old, name)
    jax_write, numpy_write = WRITES[write]
    written = jax.jit(jc.lift(jax_write, keep=True, strict=True))(cache, new)
    self.assertIsInstance(written, jc.quantization.QCache)

    dense = old.copy()
    numpy_write(dense, new)
    touched = (dense != old).any(-1)
    self.assertBetween(touched.sum(), 3, 18)
    meaning = np.asarray(written.materialize())
    error = np.abs(meaning - dense)
    self.assertTrue(
      (error <= 1.001 * caching.bound(dense, name))[touched].all()
    )
    # A nearest rounding of 18 rows comes near to its bound.
    self.assertGreater(
      (error / caching.bound(dense, name))[touched].max(), 0.75
    )
    want = caching.rounded(dense, name)
    np.testing.assert_allclose(
      meaning,
      want,
      rtol=0,
      atol=1.01 * np.abs(caching.bound(dense, name)).max(),
    )
    for before, after in zip(
      caching.parts(cache), caching.parts(written), strict=True
    ):
      np.testing.assert_array_equal(before[~touched], after[~touched])

  def test_a_row_that_is_written_dense_is_the_row_as_it_is_made(self):
    x = caching.random(2, 8, 3, 4)
    f = jc.lift(
      lambda c, x: lax.dynamic_update_slice(c, x, (0,) * 4), keep=True
    )
    written = f(caching.cache(np.zeros_like(x)), x)
    for a, b in zip(
      caching.parts(written), caching.parts(caching.cache(x)), strict=True
    ):
      np.testing.assert_array_equal(a, b)

  def test_a_layer_of_a_stack_keeps_its_codes(self):
    stack, layer = (
      caching.cache(caching.random(3, 2, 8, 3, 4)),
      caching.cache(caching.random(2, 8, 3, 4)),
    )

    def put(stack, layer, i):
      return lax.dynamic_update_slice(
        stack, layer[None], (i, *(jnp.int32(0),) * 4)
      )

    run = jax.jit(jc.lift(put, keep=True, strict=True))
    written = run(stack, layer, jnp.int32(1))
    for whole, part, before in zip(
      caching.parts(written),
      caching.parts(layer),
      caching.parts(stack),
      strict=True,
    ):
      np.testing.assert_array_equal(whole[1], part)
      np.testing.assert_array_equal(whole[[0, 2]], before[[0, 2]])

  def test_grows_by_concatenation(self):
    old, new = caching.random(2, 8, 3, 4), caching.random(2, 1, 3, 4, seed=5)
    join = lambda c, x: jnp.concatenate([c, x], axis=1)
    grown = jc.lift(join, keep=True, strict=True)(caching.cache(old), new)
    self.assertEqual(grown.shape, (2, 9, 3, 4))
    for a, b in zip(
      caching.parts(grown),
      caching.parts(caching.cache(join(old, new))),
      strict=True,
    ):
      np.testing.assert_array_equal(a, b)

  @parameterized.parameters(0, 1, 2)
  def test_layers_are_stacked(self, axis):
    x = [caching.random(2, 8, 3, 4, seed=s) for s in (0, 7)]
    stack = lambda a, b: jnp.stack([a, b], axis)
    got = jc.lift(stack, keep=True, strict=True)(*map(caching.cache, x))
    want = caching.cache(np.stack(x, axis))
    for a, b in zip(caching.parts(got), caching.parts(want), strict=True):
      np.testing.assert_array_equal(a, b)

  @parameterized.named_parameters(
    ('half a row', lambda c: c.at[:, 2, :, :2].set(1.0)),
    (
      'a feature',
      lambda c: lax.dynamic_update_slice_in_dim(
        c, jnp.ones((2, 8, 3, 1)), 2, axis=3
      ),
    ),
    ('along a row', lambda c: jnp.concatenate([c, jnp.ones_like(c)], -1)),
  )
  def test_what_is_no_row_is_dense(self, write):
    cache = caching.cache(caching.random(2, 8, 3, 4))
    np.testing.assert_array_equal(
      jc.lift(write)(cache), write(cache.materialize())
    )
    met = [m for m in jc.explain(write)(cache) if not m.native]
    self.assertRegex(met[-1].reason, 'less than whole rows|along a row')


READS = {
  'scores, head by head': ('bkrd,bksd->bkrs', (2, 8, 5, 4)),
  'sums, head by head': ('bkrs,bksd->bkrd', (2, 8, 5, 3)),
  'scores': ('bkrd,bskd->bkrs', (2, 3, 5, 4)),
  'scores, keys first': ('bskd,bkrd->bksr', (2, 3, 5, 4)),
  'sums': ('bkrs,bskd->bkrd', (2, 3, 5, 8)),
  'sums, values first': ('bskd,bkrs->bkdr', (2, 3, 5, 8)),
  'over heads too': ('bks,bskd->bd', (2, 3, 8)),
  'over rows and features': ('bskd,bskd->bk', (2, 8, 3, 4)),
}


class ReadTest(parameterized.TestCase):
  @parameterized.product(read=list(READS), name=caching.FORMATS)
  def test_attention_reads_the_codes(self, read, name):
    equation, shape = READS[read]
    x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    cache = caching.cache(caching.random(2, 8, 3, 4), name)
    first = equation.startswith('bskd')
    order = lambda c, x: (c, x) if first else (x, c)
    f = lambda c, x: jnp.einsum(equation, *order(c, x))
    got = jc.lift(f, strict=True)(cache, x)
    wide = [np.asarray(a, np.float64) for a in order(cache.materialize(), x)]
    want = np.einsum(equation, *wide)
    size = np.einsum(equation, *map(np.abs, wide))
    self.assertLess((np.abs(got - want) / size).max(), 1e-6)

  def test_no_dense_cache_is_made(self):
    shape, heads = (1, 256, 2, 64), 2

    def f(c, q):
      scores = jnp.einsum('bkd,bskd->bks', q, c)
      return jnp.einsum('bks,bskd->bkd', jax.nn.softmax(scores), c)

    q = jnp.ones((1, heads, 64))
    jaxpr = jax.make_jaxpr(jc.lift(f))(caching.cache(np.zeros(shape)), q)
    scaled = [
      e.primitive.name
      for e in jaxpr.eqns
      for v in e.outvars
      if v.aval.shape == shape
    ]
    # The codes are converted, where the product does not do so itself.
    self.assertEqual(set(scaled), {'convert_element_type'})

  def test_pages_are_gathered(self):
    cache = caching.cache(caching.random(6, 8, 3, 4))
    f = lambda c, i: c[i]
    index = np.array([[4, 0], [1, 1]])
    np.testing.assert_array_equal(
      jc.lift(f, strict=True)(cache, index), cache.materialize()[index]
    )

  @parameterized.parameters(
    lambda c: c.transpose(0, 2, 1, 3),
    lambda c: c.reshape(2, 2, 4, 3, 4),
    lambda c: c[:, 2:5],
    lambda c: c.astype(jnp.bfloat16),
  )
  def test_moves(self, move):
    cache = caching.cache(caching.random(2, 8, 3, 4))
    moved = jc.lift(move, keep=True)(cache)
    self.assertIsInstance(moved, jc.quantization.QCache)
    np.testing.assert_array_equal(
      np.asarray(moved.materialize(), np.float32),
      np.asarray(move(cache.materialize()), np.float32),
    )

  def test_writes_to_a_moved_cache(self):
    x, row = caching.random(2, 8, 3, 4), caching.random(2, 3, 4, seed=9)

    def f(c, row):
      return c.transpose(0, 2, 3, 1).at[..., 5].set(row).transpose(0, 3, 1, 2)

    got = jc.lift(f, keep=True, strict=True)(caching.cache(x), row)
    x[:, 5] = row
    for a, b in zip(
      caching.parts(got), caching.parts(caching.cache(x)), strict=True
    ):
      np.testing.assert_array_equal(a, b)


class MistakesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('zero points', [('k', 'int8 asym')], 'symmetric scales for each row'),
    ('two levels', [('k', 'int8 dq')], 'with int8 scales'),
    ('one scale', [('k', 'int8 tensor')], 'symmetric scales for each row'),
    ('a typo', [('k', 'int9')], "'int8'"),
    ('not covered', [('v', 'int8')], 'No rule covers k'),
  )
  def test_rules(self, rules, message):
    with self.assertRaisesRegex(ValueError, message):
      jc.quantization.quantize_cache({'k': jnp.zeros((2, 4, 3, 8))}, rules)

  def test_integers(self):
    with self.assertRaisesRegex(ValueError, r'length is int32\[\]; a cache of'):
      jc.quantization.quantize_cache({'length': jnp.int32(3)}, [('.*', 'int8')])


if __name__ == '__main__':
  absltest.main()
