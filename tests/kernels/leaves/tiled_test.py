"""Weights for GPUs and TPUs: the law where it falls back, and what is lowered."""

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import jax.numpy as jnp
import lowering

import jaxopt_compress as jc

W = jax.random.normal(jax.random.key(0), (96, 40))
X = jax.random.normal(jax.random.key(1), (2, 5, 96))
SCHEMES = {
  'int8': 'int8 channel, tiled',
  'int8 g32': 'int8 g32, tiled',
  'int4 g32 bfloat16': 'int4 g32, tiled',
  'int4 g32 asym': 'int4 g32 asym, tiled',
  'W8A8': 'int8 channel, int8 asym activations, tiled',
  'int8, int8 token': 'int8 channel, int8 activations, tiled',
}
ROUNDED = 'W8A8', 'int8, int8 token'  # the other operand, too


def _matmul(p, x):
  return x @ p['w']


def _distance(y, expected):
  return float(jnp.abs(y - expected).max() / jnp.abs(expected).max())


class TiledTest(parameterized.TestCase):
  @parameterized.product(target=('gpu', 'tpu'), words=list(SCHEMES))
  def test_law(self, target, words):
    q = jc.quantize({'w': W}, [('w', words)], uses=in_out.IN_OUT)
    p = jc.pack(q, target=target, uses=in_out.IN_OUT)
    self.assertEqual(p['w'].describe(), SCHEMES[words])
    for leaf in (p['w'], jc.unpack(p)['w']):
      self.assertLess(_distance(leaf.materialize(), q['w'].materialize()), 1e-6)
    f = jc.lift(_matmul, strict=True)
    run = jax.jit(
      lambda q, x: (f(q, x), jax.grad(lambda x: jnp.sum(f(q, x) ** 2))(x))
    )
    for got, expected in zip(run(p, X), run(q, X), strict=True):
      self.assertLess(_distance(got, expected), 2e-5)
    # The kernel itself, in Pallas's interpreter.
    y = p['w'].multiply(X.reshape(10, 96), interpret=True)
    self.assertLess(_distance(y, f(q, X).reshape(10, 40)), 2e-5)

  @parameterized.product(words=list(SCHEMES), platform=('cuda', 'tpu'))
  def test_is_lowered_to_the_kernel(self, words, platform):
    target = {'cuda': 'gpu', 'tpu': 'tpu'}[platform]
    p = jc.pack(
      jc.quantize({'w': W}, [('w', words)], uses=in_out.IN_OUT),
      target=target,
      uses=in_out.IN_OUT,
    )
    x = X[:, :2].astype(jnp.bfloat16)
    f = jax.jit(jc.lift(_matmul, strict=True))
    with lowering.device(platform):
      text = f.trace(p, x).lower(lowering_platforms=(platform,)).as_text()
    if words in ROUNDED and platform == 'cuda':  # XLA's own, of both along k
      self.assertRegex(text, r'dot_general.*\[1\] x \[1\].*xi8>')
      self.assertNotIn('triton', text)
    else:
      call = {'cuda': 'triton', 'tpu': 'tpu_custom_call'}[platform]
      self.assertIn(call, text)
    self.assertNotIn('custom_call', f.lower(p, x).as_text())

  def test_many_rows_are_for_xla(self):
    p = jc.pack(
      jc.quantize({'w': W}, [('w', 'int4 g32')], uses=in_out.IN_OUT),
      target='gpu',
      uses=in_out.IN_OUT,
    )
    for rows, in_pallas in ((128, True), (129, False)):
      x = jnp.ones((rows, 96), jnp.bfloat16)
      with lowering.device('cuda'):
        traced = jax.jit(jc.lift(_matmul, strict=True)).trace(p, x)
        text = traced.lower(lowering_platforms=('cuda',)).as_text()
      self.assertEqual('triton' in text, in_pallas)

  def test_stacked(self):
    f = lambda p, x: jax.lax.scan(
      lambda x, w: (jnp.tanh(x @ w), None), x, p['w']
    )[0]
    w = jax.random.normal(jax.random.key(2), (3, 96, 96)) / 8
    uses = jc.uses(f)({'w': w}, X)
    q = jc.quantize({'w': w}, [('w', 'int4 g32')], uses)
    p = jc.pack(q, uses, target='tpu')
    g = jax.jit(jc.lift(f, strict=True))
    self.assertLess(_distance(g(p, X), g(q, X)), 2e-5)

  def test_what_has_no_kernel(self):
    for words, why in (
      ('NF4', 'nf4 has no kernel'),
      ('int4, int8', 'int8 x int8 only'),
      ('int8 asym, int8', 'takes no zero points of weights'),
      ('int8, int8 tensor', 'int8 x int8 only'),
    ):
      with self.assertWarnsRegex(UserWarning, why):
        jc.pack(
          jc.quantize({'w': W}, [('w', words)], uses=in_out.IN_OUT),
          target='gpu',
          uses=in_out.IN_OUT,
        )
    with self.assertRaisesRegex(
      ValueError, "choose one of .'cpu', 'gpu', 'tpu'"
    ):
      jc.pack(
        jc.quantize({'w': W}, [('w', 'int8')], uses=in_out.IN_OUT),
        target='cuda',
        uses=in_out.IN_OUT,
      )


if __name__ == '__main__':
  absltest.main()
