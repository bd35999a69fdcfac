"""The encoder: what it computes, in numpy, and that padding has no part."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress import models

SMALL = dict(vocab=13, width=16, depth=2, heads=4, mlp_width=24)
TOKENS = np.random.default_rng(0).integers(0, 13, (2, 7)).astype(np.int32)
MASK = np.array([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]], bool)


@functools.cache
def small(**kwargs):
  # One program: an eager init compiles one for each shape. The same for apply.
  abstract = models.abstract('encoder', **SMALL, **kwargs)

  def params_of():
    return models.functional(models.build('encoder', **SMALL, **kwargs)).params

  params = jax.jit(params_of)()
  apply = jax.jit(abstract.apply, static_argnames='train')
  return models.Functional(apply, params, {})


def run(x=TOKENS, f=None, params=None, **kwargs):
  f = f or small()
  return f.apply(params or f.params, f.variables, x, **kwargs)[:2]


def rms_norm(x, scale):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def turn(x):
  """Rotary positions of x [time, d], by complex products."""
  half = x.shape[-1] // 2
  speed = 10000.0 ** (-2 * np.arange(half) / x.shape[-1])
  angle = np.arange(len(x))[:, None] * speed
  z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
  return np.concatenate([z.real, z.imag], -1)


def oracle(params, tokens, heads):
  """Logits [time, vocab] and what the last attention met, of one sequence."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  table = params['embed']['embedding']
  x = table[tokens] * table.shape[-1] ** 0.5
  for i in range(len(params['blocks'])):
    p = params['blocks'][str(i)]
    n = rms_norm(x, p['attn_norm']['scale'])
    q, k, v = (n @ p['attn'][name]['kernel'] for name in 'qkv')
    cut = lambda y: np.split(y, heads, -1)
    q, k = (np.concatenate([turn(h) for h in cut(y)], -1) for y in (q, k))
    parts = []
    for qh, kh, vh in zip(cut(q), cut(k), cut(v), strict=True):
      e = np.exp(qh @ kh.T / np.sqrt(qh.shape[-1]))
      parts.append(e / e.sum(-1, keepdims=True) @ vh)
    x = x + np.concatenate(parts, -1) @ p['attn']['o']['kernel']
    n = rms_norm(x, p['mlp_norm']['scale'])
    gate, up, down = (
      p['mlp'][name]['kernel'] for name in ('gate', 'up', 'down')
    )
    g = n @ gate
    x = x + (g / (1 + np.exp(-g)) * (n @ up)) @ down
  return rms_norm(x, params['norm']['scale']) @ table.T, (q, k, v)


class EncoderTest(parameterized.TestCase):
  def test_the_equations(self):
    logits, out = run()
    for b, tokens in enumerate(TOKENS):
      want, met = oracle(small().params, tokens, 4)
      np.testing.assert_allclose(logits[b], want, rtol=1e-4, atol=1e-5)
      for name, x in zip(('query1', 'key1', 'value1'), met, strict=True):
        np.testing.assert_allclose(out[name][b], x, rtol=1e-4, atol=1e-5)

  @parameterized.parameters(0, 7, -1)
  def test_padding_has_no_part(self, padding):
    tokens = np.where(MASK, TOKENS, padding)
    logits, out = run((tokens, MASK))
    want, _ = oracle(small().params, TOKENS[0, :5], 4)
    np.testing.assert_allclose(logits[0, :5], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits[1], run()[0][1], rtol=1e-5, atol=1e-6)
    self.assertTrue(np.isfinite(logits).all())

  def test_nothing_but_padding_is_finite(self):
    grads = jax.jit(
      jax.grad(lambda p: run((TOKENS, np.zeros_like(MASK)), params=p)[0].sum())
    )(small().params)
    for x in jax.tree.leaves(grads):
      self.assertTrue(np.isfinite(x).all())

  def test_each_position_sees_all_others(self):
    # In sequence i + 1 token i is another one.
    other = np.where(np.eye(7, dtype=bool), (TOKENS[0] + 1) % 13, TOKENS[0])
    logits, _ = run(np.concatenate([TOKENS[:1], other]))
    self.assertTrue((logits[1:] != logits[:1]).any(-1).all())

  def test_quantised(self):
    f, rules = small(), [(r'blocks/.*/kernel', jc.W8A8), (r'.*', None)]
    params = jc.quantize(f.params, rules, uses=in_out.IN_OUT)
    logits = jax.jit(jc.lift(f.apply))(params, {}, TOKENS)[0]
    self.assertLess(np.abs(logits - run()[0]).mean(), 0.05)

  def test_dropout_draws_from_its_key(self):
    f = small(dropout=0.5)
    one, other, again = (
      run(f=f, train=True, rngs=jax.random.key(i))[0] for i in (1, 2, 1)
    )
    np.testing.assert_array_equal(one, again)
    self.assertGreater(np.abs(one - other).max(), 1e-3)

  @parameterized.parameters(
    (TOKENS[0], r'\[batch, time\] integers, not int32\[7\]'),
    (TOKENS.astype('f'), 'integers, not float32'),
    ((TOKENS, MASK[:, 1:]), r'mask is \[2, 6\]; as tokens, \[2, 7\]'),
  )
  def test_errors(self, x, message):
    with self.assertRaisesRegex(ValueError, message):
      run(x)

  def test_sizes_that_do_not_divide(self):
    with self.assertRaisesRegex(ValueError, 'no even head size'):
      models.abstract('encoder', **SMALL | dict(heads=5))


if __name__ == '__main__':
  absltest.main()
