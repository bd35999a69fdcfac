"""Attention as a call, against JAX's own, in every form it has."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress import kernels
from jaxopt_compress.kernels import scores
from jaxopt_compress.kernels.cpu import attention as cpu
from jaxopt_compress.kernels.cpu import native


def _normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def _qkv(heads=4, t=5, s=7, d=8):
  return (
    _normal(0, 3, t, 4, d),
    _normal(1, 3, s, heads, d),
    _normal(2, 3, s, heads, d),
  )


def _lengths(*n):
  return jnp.array(n, jnp.int32)


FORMS = {
  'plain': {},
  'scale': dict(scale=0.3),
  'causal': dict(is_causal=True),
  'window': dict(local_window_size=(1, 2)),
  'one number for a window': dict(local_window_size=2, is_causal=True),
  # The first sequence has no key to see.
  'lengths': dict(
    query_seq_lengths=_lengths(1, 5, 3),
    key_value_seq_lengths=_lengths(0, 5, 7),
  ),
  'bias of all': dict(bias=_normal(5, 5, 7)),
  'bias of heads': dict(bias=_normal(5, 4, 5, 7)),
  'mask of heads': dict(mask=_normal(6, 3, 4, 5, 7) > 0),
  'mask of queries and lengths': dict(
    mask=_normal(6, 1, 1, 5, 7) > 0, key_value_seq_lengths=_lengths(3, 1, 7)
  ),
  'mask of keys, and a bias': dict(
    mask=_normal(6, 3, 1, 1, 7) > 0, bias=_normal(5, 1, 1, 1, 7)
  ),
}


def _both(q, k, v, **how):
  """Ours and JAX's."""
  for name in ('bias', 'mask'):
    if name in how:
      how[name] = how[name].reshape(
        (1,) * (4 - how[name].ndim) + how[name].shape
      )
  expected = jax.nn.dot_product_attention(q, k, v, **how)
  return kernels.attention(q, k, v, **how), expected


class AttentionTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (f'{name}, {heads} key heads', how, heads)
    for name, how in FORMS.items()
    for heads in (1, 2, 4)
  )
  def test_is_that_of_jax(self, how, heads):
    y, expected = _both(*_qkv(heads), **how)
    np.testing.assert_allclose(y, expected, atol=2e-6)

  def test_types(self):
    for dtype, bound in ((jnp.bfloat16, 2e-2), (jnp.float16, 2e-3)):
      q, k, v = (x.astype(dtype) for x in _qkv(2))
      y, expected = _both(q, k, v, is_causal=True)
      self.assertEqual(y.dtype, dtype)
      np.testing.assert_allclose(
        np.float32(y), np.float32(expected), atol=bound
      )

  def test_without_a_batch(self):
    q, k, v = (x[0] for x in _qkv())
    y = kernels.attention(q, k, v)
    np.testing.assert_allclose(
      y, jax.nn.dot_product_attention(q, k, v), atol=2e-6
    )

  @parameterized.named_parameters(
    (
      'shapes',
      lambda q, k, v: (q, k[..., :4], v),
      'heads a multiple of key heads',
    ),
    ('types', lambda q, k, v: (q, k.astype('bfloat16'), v), 'one dtype'),
    ('integers', lambda *p: [x.astype('int32') for x in p], 'floating'),
    ('bias', lambda *p: (*p, jnp.ones((5, 6))), 'does not broadcast'),
    ('mask', lambda *p: (*p, None, jnp.ones((5, 7))), 'must be of bool'),
  )
  def test_mistakes(self, change, message):
    with self.assertRaisesRegex(ValueError, message):
      kernels.attention(*change(*_qkv()))

  def test_lengths_are_of_sequences(self):
    with self.assertRaisesRegex(ValueError, 'each of 3 sequences'):
      kernels.attention(*_qkv(), key_value_seq_lengths=_lengths(1, 2))

  def test_orders(self):
    with self.assertRaisesRegex(ValueError, 'orders? of axes'):
      cpu.Form(query='bhdt')


class TransformsTest(parameterized.TestCase):
  """The same under every transform, and derivatives of JAX's own program."""

  @parameterized.named_parameters(
    ('jit', lambda f: jax.jit(f)),
    ('remat', lambda f: jax.jit(jax.checkpoint(f))),
    (
      'vmap',
      lambda f: (
        lambda q, k, v: jax.vmap(f)(q[:, None], k[:, None], v[:, None])[:, 0]
      ),
    ),
    (
      'vmap of keys alone',
      lambda f: (
        lambda q, k, v: jnp.stack(
          [
            jax.vmap(f, (None, 0, 0))(q[i : i + 1], k[:, None], v[:, None])[
              i, 0
            ]
            for i in range(len(q))
          ]
        )
      ),
    ),
    (
      'scan',
      lambda f: (
        lambda q, k, v: jax.lax.map(
          lambda p: f(*(x[None] for x in p))[0], (q, k, v)
        )
      ),
    ),
  )
  def test_transforms(self, transform):
    q, k, v = _qkv(2, t=12, s=9)

    def run(f):
      def loss(*p):
        y = transform(functools.partial(f, is_causal=True))(*p)
        return (y * y).sum(), y

      return jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)

    got, expected = run(kernels.attention), run(jax.nn.dot_product_attention)
    for y, want in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
      np.testing.assert_allclose(y, want, atol=1e-5)

  @parameterized.parameters(True, False)
  def test_shard_map(self, check_vma):
    mesh = jax.make_mesh(
      (2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
    )
    q, k, v = (
      _normal(0, 4, 5, 4, 8),
      _normal(1, 1, 7, 4, 8),
      _normal(2, 1, 7, 4, 8),
    )
    batch, whole = jax.P('data'), jax.P()

    def shards(f):
      def each(q, k, v):
        wide = (len(q), *k.shape[1:])
        return f(q, jnp.broadcast_to(k, wide), jnp.broadcast_to(v, wide))

      return jax.shard_map(
        each,
        mesh=mesh,
        in_specs=(batch, whole, whole),
        out_specs=batch,
        check_vma=check_vma,
      )

    np.testing.assert_allclose(
      shards(kernels.attention)(q, k, v),
      shards(jax.nn.dot_product_attention)(q, k, v),
      atol=2e-6,
    )

  def test_without_the_library(self):
    q, k, v = _qkv()
    with mock.patch.object(native, 'available', lambda: False):
      y, expected = _both(q, k, v)
    np.testing.assert_allclose(y, expected, atol=2e-6)


class AttendTest(parameterized.TestCase):
  def test_orders_of_axes(self):
    q, k, v = _qkv()
    expected = jax.nn.dot_product_attention(q, k, v, scale=1.0)
    laid = {
      'bthd': lambda x: x,
      'bhtd': lambda x: x.transpose(0, 2, 1, 3),
      'bhdt': lambda x: x.transpose(0, 2, 3, 1),
    }
    for key in cpu.ORDERS:
      for query, value, out in (
        ('bthd', 'bhtd', 'bthd'),
        ('bhtd', 'bthd', 'bhtd'),
      ):
        operands = cpu.Operands(laid[query](q), laid[key](k), laid[value](v))
        y = scores.attend(operands, cpu.Form(query, key, value, out))
        np.testing.assert_allclose(y, laid[out](expected), atol=2e-6)

  @parameterized.parameters(1, 4)
  def test_a_layer_of_codes(self, heads_of_scales):
    q, k, v = _qkv(t=1)
    codes = jnp.round(_normal(3, 2, *k.shape) * 40).astype(jnp.int8)
    scale = jnp.abs(_normal(4, 2, 3, 7, heads_of_scales, 1)) / 40
    y = scores.attend(
      cpu.Operands(
        q,
        codes,
        codes,
        key_scale=scale,
        value_scale=scale,
        layer=jnp.int32(1),
      ),
      cpu.Form(),
    )
    dense = codes[1] * scale[1]
    expected = jax.nn.dot_product_attention(q, dense, dense, scale=1.0)
    np.testing.assert_allclose(y, expected, atol=2e-6)

  def test_who_sees_nothing(self):
    q, k, v = _qkv()
    mask = jnp.zeros((1, 1, 1, 7), bool)
    y = scores.attend(cpu.Operands(q, k, v, mask=mask), cpu.Form())
    mean = v.mean(1, keepdims=True)
    np.testing.assert_allclose(y, jnp.broadcast_to(mean, y.shape), atol=2e-6)
    y = scores.attend(
      cpu.Operands(q, k, v, mask=mask), cpu.Form(masked=-np.inf)
    )
    self.assertTrue(np.isnan(y).all())


if __name__ == '__main__':
  absltest.main()
