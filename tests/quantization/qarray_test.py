"""What a QArray stands for, and what it weighs."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
from jax import lax
import jax.numpy as jnp
import making
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.analysis import storage
from jaxopt_compress.quantization import qarray

BITS = {'int8': 8, 'int4': 4}


def oracle(x, format, shared, axis, group, scale_dtype=np.float32):
  """Codes and the scale of each entry, group after group, in numpy."""
  bits = BITS[format]
  x = np.asarray(x).astype(np.float32)
  moved = np.moveaxis(x, axis, -1)
  order = [i for i in range(x.ndim) if i != axis % x.ndim]
  others = tuple(order.index(a % x.ndim) for a in shared if a != axis)
  n = moved.shape[-1]
  step = group or n
  full = np.zeros_like(moved)
  for start in range(0, n, step):
    part = moved[..., start : start + step]
    absmax = np.abs(part).max((*others, moved.ndim - 1), keepdims=True)
    scale = np.maximum(
      absmax * np.float32(2 / (2**bits - 1)), np.finfo(np.float32).tiny
    )
    full[..., start : start + step] = scale.astype(scale_dtype)
  full = np.moveaxis(full, -1, axis)
  codes = np.rint(x * (np.float32(1) / full))
  codes = np.clip(codes, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
  return codes, full


CASES = [
  dict(
    testcase_name=f'{format} {shape} {axis} g{group}',
    format=format,
    shape=shape,
    axis=axis,
    group=group,
  )
  for format in BITS
  for shape, axis, group in (
    ((8, 6), -2, 0),
    ((7, 6), -2, 0),
    ((6, 7), -1, 0),
    ((8, 6), -2, 4),
    ((7, 6), -2, 4),
    ((6, 9), -1, 2),
    ((7, 6), -2, 128),
    ((3, 8, 6), -2, 4),
    ((2, 3, 10), -3, 2),
    ((5, 6), -2, 1),
    ((1, 6), -2, 0),
  )
]


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _quantized(w, format, shared, axis, group):
  q = making.leaf(w, format, shared, axis=axis, group=group)
  return q, q.numbers, q.materialize()


class QuantizeArrayTest(parameterized.TestCase):
  @parameterized.named_parameters(*CASES)
  def test_equals_numpy_to_the_bit(self, format, shape, axis, group):
    dtype = jnp.bfloat16 if group else jnp.float32
    w = jax.random.normal(jax.random.key(1), shape).astype(dtype)
    q, q_codes, value = _quantized(w, format, (axis,), axis, group)
    codes, full = oracle(w, format, (axis,), axis, group)
    self.assertEqual((q.shape, q.dtype), (shape, dtype))
    np.testing.assert_array_equal(q_codes, codes)
    meaning = (codes.astype(np.float32) * full).astype(dtype)
    np.testing.assert_array_equal(value, meaning)
    self.assertLen({len(p.shape) for p in jax.tree.leaves(q)}, 1)

  @parameterized.parameters(
    ((-1,), 0),
    ((-2,), 0),
    ((-2, -1), 0),
    ((-3, -2), 0),
    ((-3, -2, -1), 0),
    ((-2, -1), 4),
    ((-3, -2), 3),
  )
  def test_shared_axes(self, shared, group):
    w = jax.random.normal(jax.random.key(1), (4, 8, 6))
    axis = -2 if -2 in shared else shared[0]
    q, q_codes, value = _quantized(w, 'int8', shared, axis, group)
    want = [1 if i - 3 in shared else n for i, n in enumerate(w.shape)]
    if group:
      want[axis] = -(-w.shape[axis] // group)
    self.assertEqual(q.scale.shape, tuple(want))
    codes, full = oracle(w, 'int8', shared, axis, group)
    np.testing.assert_array_equal(q_codes, codes)
    np.testing.assert_array_equal(value, codes.astype('f') * full)

  def test_a_bfloat16_scale_is_the_one_that_the_codes_saw(self):
    w = jax.random.normal(jax.random.key(1), (64, 6))
    make = lambda w: making.leaf(
      w, 'int4', (-2,), axis=-2, group=16, scale_dtype=jnp.bfloat16
    )
    codes, full = oracle(w, 'int4', (-2,), -2, 16, jnp.bfloat16)
    for q in (make(w), jax.jit(make)(w)):
      self.assertEqual(q.scale.dtype, jnp.bfloat16)
      np.testing.assert_array_equal(q.numbers, codes)
      np.testing.assert_array_equal(q.materialize(), codes.astype('f') * full)

  @parameterized.parameters(('int8', 1.01 / 255), ('int4', 1.01 / 15))
  def test_error_is_half_a_step(self, format, bound):
    w = jax.random.normal(jax.random.key(1), (64, 6))
    q = making.leaf(w, format, (-2,), axis=-2)
    error = jnp.abs(q.materialize() - w).max(0) / jnp.abs(w).max(0)
    self.assertLessEqual(float(error.max()), bound)

  def test_channels_of_zeros(self):
    w = jnp.zeros((4, 3)).at[0, 0].set(2.0)
    q = making.leaf(w, 'int8', (-2,), axis=-2)
    np.testing.assert_array_equal(q.materialize()[:, 1:], np.zeros((4, 2)))
    self.assertTrue(bool((q.scale > 0).all()))


class BytesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    # 0.5 + 2 / 128 bytes for each weight
    dict(
      testcase_name='int4 g128 bf16',
      format='int4',
      group=128,
      scale_dtype=jnp.bfloat16,
      want=256 * 64 * (0.5 + 2 / 128),
    ),
    dict(
      testcase_name='int4 g32 f32',
      format='int4',
      group=32,
      scale_dtype=jnp.float32,
      want=256 * 64 * (0.5 + 4 / 32),
    ),
    dict(
      testcase_name='int8 channel',
      format='int8',
      group=0,
      scale_dtype=jnp.float32,
      want=256 * 64 + 4 * 64,
    ),
  )
  def test_nbytes(self, format, group, scale_dtype, want):
    make = lambda w: making.leaf(
      w, format, (-2,), axis=-2, group=group, scale_dtype=scale_dtype
    )
    q = jax.eval_shape(make, jnp.ones((256, 64)))
    self.assertEqual(storage.nbytes(q), want)
    # What the device holds is what is counted.
    real = make(jnp.ones((256, 64)))
    self.assertEqual(sum(p.nbytes for p in jax.tree.leaves(real)), want)

  def test_odd_rows_cost_half_a_byte_more(self):
    q = making.leaf(jnp.ones((7, 4)), 'int4', (-2,), axis=-2)
    self.assertEqual(storage.nbytes(q), 4 * 4 + 4 * 4)


class LeafTest(parameterized.TestCase):
  @parameterized.parameters(
    ('int8', 0, (-2,), 'int8 channel'),
    ('int4', 4, (-2,), 'int4 g4'),
    ('int8', 0, (-2, -1), 'int8 tensor'),
  )
  def test_describe(self, format, group, shared, want):
    q = making.leaf(jnp.ones((8, 4)), format, shared, axis=-2, group=group)
    self.assertEqual(q.describe(), want)
    self.assertEqual(
      qarray.QDotArray(q).describe(), f'{want}, int8 activations'
    )

  @parameterized.product(format=('int8', 'int4'), group=(0, 4))
  def test_stacks_and_slices_like_an_array(self, format, group):
    make = lambda w: making.leaf(w, format, (-2,), axis=-2, group=group)
    w = jax.random.normal(jax.random.key(0), (3, 8, 6))
    stacked, mapped = make(w), jax.vmap(make)(w)
    self.assertEqual(jax.tree.structure(stacked), jax.tree.structure(mapped))
    np.testing.assert_array_equal(stacked.materialize(), mapped.materialize())
    row = jax.tree.map(lambda p: p[1], stacked)
    np.testing.assert_array_equal(row.materialize(), make(w[1]).materialize())

  @parameterized.named_parameters(
    dict(
      testcase_name='free axis', args=('int4', 4), axis=-1, size=1, want=True
    ),
    dict(
      testcase_name='half a byte', args=('int4', 0), axis=-2, size=3, want=False
    ),
    dict(testcase_name='bytes', args=('int4', 0), axis=-2, size=2, want=True),
    dict(testcase_name='groups', args=('int8', 4), axis=-2, size=4, want=True),
    dict(
      testcase_name='half a group',
      args=('int8', 4),
      axis=-2,
      size=2,
      want=False,
    ),
    dict(testcase_name='plain', args=('int8', 0), axis=-2, size=1, want=True),
    dict(
      testcase_name='one group', args=('int8', 128), axis=-2, size=1, want=True
    ),
  )
  def test_can_cut(self, args, axis, size, want):
    format, group = args
    q = making.leaf(jnp.ones((12, 6)), format, (-2,), axis=-2, group=group)
    for leaf in (q, qarray.QDotArray(q)):
      self.assertEqual(leaf.can_cut(axis, size), want)


@jax.custom_vjp
def _clipped(x, w):
  return x @ w


_clipped.defvjp(
  lambda x, w: (x @ w, w),
  lambda w, g: (jnp.clip(g, -1, 1) @ w.T, jnp.zeros_like(w)),
)

PRODUCTS = {
  'dot': lambda w, x: x @ w,
  'custom_vjp': lambda w, x: _clipped(x, w),
  'scan': lambda w, x: lax.scan(lambda x, _: (x @ w, None), x, length=2)[0],
  'cond': lambda w, x: lax.cond(x[0, 0] > 0, jnp.dot, lambda x, w: x, x, w),
}


class GradientTest(parameterized.TestCase):
  """Of float8 JAX would compute one, which moves codes by what they round away."""

  def setUp(self):
    super().setUp()
    w = jax.random.normal(jax.random.key(0), (4, 4))
    self.w = jc.quantize({'w': w}, [('w', 'e4m3')], uses=in_out.IN_OUT)['w']
    self.x = jnp.ones((2, 4))

  def test_codes_have_none(self):
    loss = lambda w, x: jc.lift(jnp.dot)(x, w).sum()
    dense = lambda w, x: (x @ jc.materialize([w])[0]).sum()
    for f in (loss, jax.jit(loss), jax.checkpoint(loss), dense):
      with self.assertRaisesRegex(
        ValueError, 'float8_e4m3fn. have no gradient'
      ):
        jax.grad(f)(self.w, self.x)

  @parameterized.named_parameters(*PRODUCTS.items())
  def test_what_they_meet_has_one(self, f):
    lifted = lambda x: jc.lift(f)(self.w, x).sum()
    want = jax.grad(lambda x: f(self.w.materialize(), x).sum())(self.x)
    got = jax.jit(jax.grad(lifted))(self.x)
    np.testing.assert_allclose(got, want, rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
