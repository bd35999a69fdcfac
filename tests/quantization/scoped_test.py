"""Activations at named places, in attention of Linen, NNX and the models here."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress import models


def _rand(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape).astype(np.float32))


def _attention(q, k, v):
  with jax.named_scope('attn'):
    scores = jax.nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', q, k))
    return jnp.einsum('bhqk,bkhd->bqhd', scores, v)


def _integer_products(f, *args):
  text = jax.jit(f).lower(*args).as_text()
  return sum(
    'xi8>' in line and 'dot_general' in line for line in text.splitlines()
  )


def _oracle(x, axis):
  """In float32, step by step: the largest magnitude lies half way."""
  absmax = np.abs(x).max(axis, keepdims=True).astype(np.float32)
  scale = absmax * np.float32(1 / 127.5)
  codes = np.rint(x.astype(np.float32) * (np.float32(1) / scale))
  return np.clip(codes, -128, 127) * scale


class ProductsTest(parameterized.TestCase):
  def test_both_operands_are_rounded_per_token(self):
    q, k, v = (_rand(2, 5, 3, 8, seed=i) for i in range(3))
    f = jc.quantization.quantize_activations(
      _attention, [(r'attn/.*dot_general', 'int8')]
    )
    self.assertEqual(_integer_products(f, q, k, v), 2)
    scores = np.einsum(
      'bqhd,bkhd->bhqk', _oracle(np.asarray(q), -1), _oracle(np.asarray(k), -1)
    )
    scores = np.asarray(jax.nn.softmax(scores))
    want = np.einsum(
      'bhqk,bkhd->bqhd', _oracle(scores, -1), _oracle(np.asarray(v), 1)
    )
    # Few codes of the scores differ, which softmax computes in another order.
    error = np.abs(np.asarray(jax.jit(f)(q, k, v)) - want)
    self.assertLess(np.median(error), 1e-5)
    self.assertLess(error.max(), 2e-2)

  @parameterized.parameters(
    'int8 asym', 'e4m3', 'int4', 'e4m3 g4 mx', 'e2m1 g4 nv'
  )
  def test_formats_and_gradients(self, words):
    q, k, v = (_rand(2, 5, 3, 8, seed=i) for i in range(3))
    f = jc.quantization.quantize_activations(
      _attention, [(r'attn/.*dot_general', words)]
    )
    loss = lambda f: lambda q, k, v: jnp.square(f(q, k, v)).sum()
    got = jax.jit(jax.value_and_grad(loss(f), (0, 1, 2)))(q, k, v)
    want = jax.value_and_grad(loss(_attention), (0, 1, 2))(q, k, v)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      cosine = jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b)
      self.assertGreater(float(cosine), 0.9)

  def test_other_operations_are_rounded(self):
    def f(x):
      with jax.named_scope('stream'):
        return jnp.sin(x)

    x = _rand(4, 16)
    got = jc.quantization.quantize_activations(f, [(r'stream/sin', 'int8')])(x)
    np.testing.assert_allclose(
      got, _oracle(np.sin(np.asarray(x)), -1), atol=2e-6
    )

  def test_linen_attention_under_compressed_weights(self):
    model = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)
    x = _rand(2, 6, 8)
    params = model.init(jax.random.key(0), x)
    apply = lambda p, x: model.apply(p, x)
    uses = jc.uses(apply)(params, x)
    q = jc.quantize(params, [(r'.*kernel', 'W8A8'), (r'.*', None)], uses)
    scores = r'.*(query|k)?.*bq.*|.*\.\.\.q.*dot_general'
    rules = [(scores, 'int8')]
    f = jc.lift(jc.quantization.quantize_activations(apply, rules))
    plain = _integer_products(jc.lift(apply), q, x)
    self.assertEqual(_integer_products(f, q, x), plain + 2)
    error = jnp.linalg.norm(f(q, x) - apply(params, x))
    self.assertLess(
      float(error), 0.03 * float(jnp.linalg.norm(apply(params, x)))
    )

  @parameterized.parameters('vit', 'decoder')
  def test_attention_of_the_models_here(self, name):
    options = dict(
      vit=dict(width=16, depth=2, heads=2),
      decoder=dict(
        vocab=16, width=16, depth=2, heads=2, kv_heads=2, max_length=8
      ),
    )[name]
    model = models.functional(models.build(name, **options))
    x = _rand(2, 8, 8, 1) if name == 'vit' else jnp.ones((2, 8), jnp.int32)
    apply = lambda p, x: model.apply(p, model.variables, x)[0]
    f = jc.quantization.quantize_activations(
      apply, [(r'.*attention/.*dot_general', 'int8')]
    )
    self.assertGreaterEqual(_integer_products(f, model.params, x), 2)
    y, want = f(model.params, x), apply(model.params, x)
    self.assertLess(
      float(jnp.linalg.norm(y - want)), 0.03 * float(jnp.linalg.norm(want))
    )

  def test_bad_input(self):
    x = _rand(2, 5, 3, 8)
    with self.assertRaisesRegex(ValueError, 'attn'):
      jc.quantization.quantize_activations(_attention, [(r'attnn/.*', 'int8')])(
        x, x, x
      )
    with self.assertRaisesRegex(ValueError, 'no calibrated range'):
      jc.quantization.quantize_activations(
        _attention, [(r'attn/.*', 'int8 tensor static')]
      )

  def test_in_a_scan_and_under_vmap(self):
    def f(w, x):
      def body(h, w):
        with jax.named_scope('mix'):
          return h @ (h.T @ h) / 8, None

      return lax.scan(jax.checkpoint(body), x, w)[0]

    g = jc.quantization.quantize_activations(f, [(r'mix/dot_general', 'int8')])
    w, xs = jnp.ones((2, 1)), _rand(3, 4, 4) / 2
    got = jax.jit(jax.vmap(g, (None, 0)))(w, xs)
    want = jnp.stack([f(w, x) for x in xs])
    self.assertLess(
      float(jnp.abs(got - want).max()), 0.1 * float(jnp.abs(want).max())
    )


if __name__ == '__main__':
  absltest.main()
