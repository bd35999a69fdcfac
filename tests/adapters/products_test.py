"""Adapted weights in products and moves against numpy."""

import re

from absl.testing import absltest
from absl.testing import parameterized
import adapting
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.adapters import lora
from jaxopt_compress.core import lift
from jaxopt_compress.quantization import qarray


class ProductTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('matrix', (8, 6), (-2,), (), 'ti,io->to'),
    ('weight first', (8, 6), (-2,), (), 'ti,io->ot'),
    ('out, in', (6, 8), (-1,), (), 'ti,oi->to'),
    ('two batch axes of x', (8, 6), (-2,), (), 'bti,io->bto'),
    ('heads', (8, 2, 6), (-3,), (), 'bti,ihd->bthd'),
    ('out of heads', (2, 4, 6), (-3, -2), (), 'bthd,hdo->bto'),
    ('experts', (3, 8, 6), (-2,), (-3,), 'eti,eio->eto'),
    ('experts last', (8, 6, 3), (-3,), (-1,), 'tei,ioe->eto'),
    ('the other way round', (8, 6), (-2,), (), 'to,io->ti'),
    ('part of what is in', (4, 2, 6), (-3, -2), (), 'ti,iho->tho'),
    ('axes of one', (8, 1, 6), (-3,), (), 'ti,iho->tho'),
    ('contracted over one', (1, 8, 6), (-3, -2), (), 'tai,aio->to'),
  )
  def test_dot(self, shape, contracted, stacked, equation):
    leaf, dense = adapting.leaf(shape, contracted, stacked)
    x_axes, w_axes = re.split(',|->', equation)[:2]
    sizes = dict(zip(w_axes, shape, strict=True)) | {'t': 5, 'b': 2}
    x_shape = [sizes[a] for a in x_axes]
    x = jax.random.normal(jax.random.key(1), x_shape)
    f = lambda w, x: jnp.einsum(equation, x, w)
    if equation == 'ti,io->ot':
      f = lambda w, x: lax.dot_general(w, x, (((0,), (1,)), ((), ())))
    adapting.close(
      jc.lift(f, strict=True)(leaf, x), np.einsum(equation, x, dense)
    )

  def test_a_product_over_axes_of_both_factors_is_dense(self):
    leaf, dense = adapting.leaf((8, 6), (-2,))
    f = lambda w, x: jnp.einsum('io,io->', w, x)
    x = jax.random.normal(jax.random.key(1), (8, 6))
    adapting.close(jc.lift(f)(leaf, x), np.sum(np.asarray(x) * dense))
    [met] = [m for m in jc.explain(f)(leaf, x) if not m.native]
    self.assertIn('both of its factors', met.reason)

  @parameterized.named_parameters(
    ('float', None, 1e-5),
    ('int8', jc.W8A16, 1e-5),
    # |x| <= 3.5 is rounded to 127 steps; 8 products of |w| <= 3.
    ('int8 x int8', jc.W8A8, 0.05),
    ('bfloat16 in', adapting.NF4, 2e-2),
  )
  def test_bases(self, base, tolerance):
    leaf, dense = adapting.leaf((8, 6), (-2,), base=base)
    x = jax.random.normal(jax.random.key(1), (5, 8))
    x = x.astype(jnp.bfloat16) if tolerance == 2e-2 else x
    y = jc.lift(lambda w, x: jnp.matmul(x, w.astype(x.dtype)), strict=True)(
      leaf, x
    )
    self.assertEqual(y.dtype, x.dtype)
    x = np.asarray(x, np.float32)
    adapting.close(np.asarray(y, np.float32), x @ dense, tolerance)

  @parameterized.parameters(
    dict(strides=(1, 1), padding='SAME'),
    dict(strides=(2, 1), padding='VALID'),
  )
  def test_convolution(self, **options):
    leaf, dense = adapting.leaf((3, 3, 4, 6), (-4, -3, -2))
    x = jax.random.normal(jax.random.key(1), (2, 7, 8, 4))
    f = lambda w: lax.conv_general_dilated(
      x,
      w,
      window_strides=options['strides'],
      padding=options['padding'],
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    adapting.close(jc.lift(f, strict=True)(leaf), f(dense))

  def test_convolution_of_another_layout(self):
    leaf, dense = adapting.leaf((6, 4, 3), (-2, -1))
    x = jax.random.normal(jax.random.key(1), (2, 4, 9))
    f = lambda w: lax.conv_general_dilated(
      x, w, (1,), 'SAME', dimension_numbers=('NCH', 'OIH', 'NCH')
    )
    adapting.close(jc.lift(f, strict=True)(leaf), f(dense))

  def test_a_convolution_in_groups_is_dense(self):
    leaf, dense = adapting.leaf((3, 2, 4), (-3, -2))
    x = jax.random.normal(jax.random.key(1), (2, 9, 4))
    f = lambda w: lax.conv_general_dilated(
      x,
      w,
      (1,),
      'SAME',
      dimension_numbers=('NHC', 'HIO', 'NHC'),
      feature_group_count=2,
    )
    adapting.close(jc.lift(f)(leaf), f(dense))
    [met] = jc.explain(f)(leaf)
    self.assertIn('in groups', met.reason)

  def test_experts_of_a_ragged_dot(self):
    leaf, dense = adapting.leaf((3, 8, 6), (-2,), (-3,))
    x = jax.random.normal(jax.random.key(1), (7, 8))
    sizes = np.array([2, 4, 1], np.int32)
    y = jc.lift(lax.ragged_dot, strict=True)(x, leaf, sizes)
    expert = np.repeat(np.arange(3), sizes)
    adapting.close(y, np.einsum('ti,tio->to', x, dense[expert]))

  @parameterized.named_parameters(
    ('width', (12, 8), (-1,), lambda w, i: w[i]),
    ('rows are in', (12, 8), (-2,), lambda w, i: w[i]),
    ('second axis', (8, 12), (-2,), lambda w, i: jnp.take(w, i, axis=1)),
    ('layers', (12, 4, 8), (-2,), lambda w, i: w[i]),
  )
  def test_rows(self, shape, contracted, f):
    leaf, dense = adapting.leaf(shape, contracted)
    index = np.array([[3, 0], [11, 3], [7, 1]])
    got = jc.lift(f, strict=True)(leaf, index)
    np.testing.assert_allclose(got, f(dense, index), rtol=0, atol=1e-5)

  def test_rows_out_of_bounds_are_as_of_the_dense_table(self):
    leaf, dense = adapting.leaf((12, 8), (-1,))
    f = lambda w, i: w.at[i].get(mode='fill')
    index = np.array([3, 12])
    np.testing.assert_allclose(
      jc.lift(f)(leaf, index), f(jnp.asarray(dense), index), rtol=0, atol=1e-5
    )


class MoveTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('transpose', lambda w: w.transpose(2, 0, 1), True),
    ('split in', lambda w: w.reshape(3, 2, 4, 8), True),
    ('split out', lambda w: w.reshape(3, 8, 4, 2), True),
    ('permuting', lambda w: lax.reshape(w, (8, 2, 4, 3), (2, 1, 0)), True),
    ('merge in and out', lambda w: w.reshape(3, 64), False),
    ('a layer', lambda w: w[1], True),
    ('layers', lambda w: w[::2], True),
    ('part of out', lambda w: w[..., 2:6], True),
    ('part of in', lambda w: w[:, 4:], True),
    ('cut groups', lambda w: w[:, 1:], False),
    ('pieces', lambda w: jnp.split(w, 2, axis=-1)[1], True),
    ('pieces of in', lambda w: jnp.split(w, 2, axis=-2)[1], True),
    ('a traced layer', lambda w: w[jnp.int32(2)], True),
    ('squeeze', lambda w: jnp.squeeze(w[:1], 0), True),
    ('new axis', lambda w: w[:, None], True),
    ('backwards', lambda w: w[::-1, :, ::-1], True),
    ('bfloat16', lambda w: w.astype(jnp.bfloat16), True),
    ('integers', lambda w: w.astype(jnp.int32), False),
    ('broadcast', lambda w: jnp.broadcast_to(w, (2, 3, 8, 8)), False),
  )
  def test_keeps_its_meaning(self, move, stays):
    leaf, dense = adapting.leaf((3, 8, 8), (-2,), (-3,))
    moved = jc.lift(move, keep=True)(leaf)
    self.assertEqual(isinstance(moved, jc.adapters.LoRA), stays)
    want = move(jnp.asarray(dense))
    self.assertEqual((moved.shape, moved.dtype), (want.shape, want.dtype))
    tolerance = 1e-2 if want.dtype == jnp.bfloat16 else 1e-5
    adapting.close(
      np.asarray(jc.materialize(moved), np.float32),
      np.asarray(want, np.float32),
      tolerance,
    )

  def test_integers_of_a_dense_base_are_not_a_leaf(self):
    leaf, dense = adapting.leaf((8, 6), (-2,), base=None)
    got = jc.lift(lambda w: w.astype(jnp.int32), keep=True)(leaf)
    np.testing.assert_array_equal(got, dense.astype(np.int32))


class RegisteredTest(absltest.TestCase):
  def test_every_rule_of_a_weight_is_one_of_an_adapted_weight(self):
    names = {name for name, t in lift._RULES if t is qarray.QArray}
    mine = {name for name, t in lift._RULES if t is lora.LoRA}
    self.assertEqual(names - mine, set())


if __name__ == '__main__':
  absltest.main()
