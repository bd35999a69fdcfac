"""Rows picked from quantised tables against the dense array."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import making
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.quantization import qarray

INDICES = dict(
  one=jnp.int32(3),
  row=jnp.array([0, 5, 5]),
  matrix=jnp.array([[1, 2], [3, 11]]),
  negative=jnp.array([-1, -12, 4]),
  outside=jnp.array([0, 12, 99, -13]),
)


def _rows_of_one(w, i):
  numbers = lax.GatherDimensionNumbers((1, 2), (), (0,))
  return lax.gather(w, i[:, None], numbers, (1, 7))


class GatherTest(parameterized.TestCase):
  @parameterized.parameters(
    *((i, None, 'int8') for i in INDICES),
    *(('outside', mode, 'int4') for mode in (None, 'fill', 'clip', 'wrap')),
    *(('matrix', None, table) for table in ('groups', 'tensor')),
    ('negative', 'clip', 'tensor'),
  )
  def test_take(self, indices, mode, table):
    q, w = making.quantized(
      making.normal(12, 7),
      'int4' if table in ('int4', 'groups') else 'int8',
      (-2, -1) if table == 'tensor' else (-1,),
      -1,
      3 if table == 'groups' else 0,
    )
    f = lambda w, i: jnp.take(w, i, axis=0, mode=mode)
    i = INDICES[indices]
    got = jax.jit(jc.lift(f))(q, i)
    np.testing.assert_array_equal(got, f(w, i))
    if mode is None and indices == 'outside':
      self.assertTrue(bool(jnp.isnan(got[1]).all()))  # as jnp.take has it
    self.assertTrue(jc.explain(f)(q, i)[-1].native)

  @parameterized.named_parameters(
    dict(testcase_name='index', f=lambda w, i: w[i], native=True),
    dict(testcase_name='columns', f=lambda w, i: w[:, i % 7], native=False),
    dict(testcase_name='entries', f=lambda w, i: w[i, i % 7], native=False),
    dict(testcase_name='transposed', f=lambda w, i: w.T[:, i], native=True),
    dict(
      testcase_name='cast',
      f=lambda w, i: w.astype(jnp.bfloat16)[i],
      native=True,
    ),
    dict(
      testcase_name='fill',
      f=lambda w, i: jnp.take(w, i, axis=0, mode='fill', fill_value=2.0),
      native=False,
    ),
    dict(
      testcase_name='vmapped',
      f=lambda w, i: jax.vmap(lambda i: w[i])(i),
      native=True,
    ),
    dict(testcase_name='kept axis', f=_rows_of_one, native=True),
    dict(
      testcase_name='vmapped tables',
      f=lambda w, i: jax.vmap(lambda r, i: r[i])(w[:3], i % 7),
      native=False,
    ),
  )
  def test_indexing(self, f, native):
    q = making.leaf(making.normal(12, 7), 'int4', (-1,), axis=-1)
    i = jnp.array([2, 8, 0])
    for leaf in (q, qarray.QDotArray(q)):
      got = jax.jit(jc.lift(f))(leaf, i)
      np.testing.assert_array_equal(got, f(q.materialize(), i))
      gathers = [m for m in jc.explain(f)(leaf, i) if m.primitive == 'gather']
      self.assertEqual([m.native for m in gathers], [native])

  def test_two_leading_axes(self):
    q = making.leaf(making.normal(3, 4, 6), 'int8', (-1,), axis=-1)
    f = lambda w, i: w[i, i + 1]
    i = jnp.array([0, 2, 1])
    np.testing.assert_array_equal(jc.lift(f)(q, i), f(q.materialize(), i))

  def test_tied_embedding_is_not_made_dense(self):
    q = making.leaf(making.normal(12, 8), 'int4', (-1,), axis=-1)
    f = lambda w, i: jnp.tanh(w[i]) @ w.T
    i = jnp.array([3, 1])
    want = f(q.materialize(), i)
    got = jax.jit(jc.lift(f, strict=True))(q, i)
    np.testing.assert_allclose(got, want, atol=1e-5)

  def test_only_the_rows_are_decoded(self):
    q = making.leaf(making.normal(1000, 8), 'int8', (-1,), axis=-1)
    text = str(jax.make_jaxpr(jc.lift(lambda w, i: w[i]))(q, jnp.array([3])))
    self.assertNotIn('f32[1000,8]', text)


if __name__ == '__main__':
  absltest.main()
