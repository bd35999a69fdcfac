"""The law for weights without their zeros, and which weights these are."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress.kernels.leaves import streams

# On machines without the library, too: the portable path computes the same.
pack = functools.partial(jc.pack, target='cpu', sparse=True)

_KEYS = [jax.random.key(i) for i in range(8)]
X = jax.random.normal(_KEYS[0], (2, 5, 64))
W = jax.random.normal(_KEYS[1], (64, 40))


def _distance(y, expected):
  return float(jnp.abs(y - expected).max() / jnp.abs(expected).max())


def _both(f, params, x, words):
  """(quantised, packed) parameters of f."""
  uses = jc.uses(f)(params, x)
  path = next(p for p, leaf in jc.rules.named_leaves(params) if leaf.ndim > 1)
  q = jc.quantize(params, [(path, words), (r'.*', None)][: len(params)], uses)
  return q, pack(q, uses)


def _matmul(p, x):
  return x @ p['w']


class WithoutZerosTest(parameterized.TestCase):
  @parameterized.parameters(
    ('int8', 0.5, 'int8 channel, packed without zeros'),
    ('int8 g32, int8', 0.5, 'int8 g32, int8 activations, packed without zeros'),
    (
      'int8, int8 token asym',
      0.95,
      'int8 channel, int8 asym activations, packed without zeros',
    ),
    ('int4 g32', 0.5, 'int4 g32, packed'),
    (None, 0.5, 'float32, packed without zeros'),
  )
  def test_law(self, words, zeros, described):
    w = jax.random.normal(_KEYS[1], (256, 96))
    w = jnp.where(jax.random.uniform(_KEYS[2], w.shape) < zeros, 0, w)
    x = jax.random.normal(_KEYS[0], (2, 5, 256))
    uses = jc.uses(_matmul)({'w': w}, x)
    q = jc.quantize({'w': w}, [('w', words)], uses)
    p = pack(q, uses)
    self.assertEqual(p['w'].describe(), described)
    self.assertLess(
      jc.nbytes(p), jc.nbytes(q) * (0.8 if 'zeros' in described else 1.01)
    )
    f = jc.lift(_matmul, strict=True)
    loss = lambda x, q: jnp.mean(f(q, x) ** 2)
    run = jax.jit(lambda q, x: (f(q, x), jax.grad(loss)(x, q)))
    for got, expected in zip(run(p, x), run(q, x), strict=True):
      self.assertLess(_distance(got, expected), 2e-5)
    dense = jc.materialize(q)['w']
    for leaf in (p, jc.unpack(p)):
      self.assertLess(_distance(jc.materialize(leaf)['w'], dense), 1e-6)

  def test_masked_and_scanned(self):
    def f(p, x):
      return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p['w'])[0]

    w = jax.random.normal(_KEYS[2], (3, 64, 64)) / 8
    masked = jc.pruning.Masked(w, jax.random.uniform(_KEYS[3], w.shape) < 0.4)
    uses = jc.uses(f)({'w': w}, X)
    p = pack({'w': masked}, uses)
    y = jax.jit(jc.lift(f, strict=True))(p, X)
    expected = jax.jit(jc.lift(f))({'w': masked}, X)
    self.assertLess(_distance(y, expected), 2e-5)

  def test_arrays_that_no_product_is_known_to_read_stay(self):
    w = jnp.where(jax.random.uniform(_KEYS[2], W.shape) < 0.9, 0, W)
    q = jc.quantize(
      {'a': W, 'w': w}, [('a', 'int8'), ('w', None)], uses=in_out.IN_OUT
    )
    uses = {'a': in_out.IN_OUT['a'], 'w': ()}
    self.assertIsInstance(pack(q, uses=uses)['w'], jax.Array)

  def test_switched_off(self):
    w = jnp.where(jax.random.uniform(_KEYS[2], W.shape) < 0.5, 0, W)
    q = jc.quantize({'w': w}, [('w', 'int8')], uses=in_out.IN_OUT)
    p = pack(q, sparse=False, uses=in_out.IN_OUT)
    self.assertEqual(p['w'].describe(), 'int8 channel, packed')

  @parameterized.parameters(
    # rows, zeros, int8: of weights in caches, and of others
    ((1,), 0.5, True, False, True),
    ((1,), 0.9, True, False, True),
    ((32,), 0.9, True, False, False),
    ((260,), 0.9, True, False, False),
    ((1, 260), 0.9, True, False, False),
    ((1, 16, 128), 0.9, True, False, False),
    # float32
    ((1,), 0.5, False, True, True),
    ((8,), 0.5, False, True, True),
    ((32,), 0.5, False, False, False),
    ((260,), 0.9, False, False, False),
    ((1, 16, 128), 0.9, False, False, False),
  )
  def test_left_out_where_that_is_faster(self, rows, zeros, codes, *expected):
    w = jax.random.normal(_KEYS[1], (256, 96))
    w = jnp.where(jax.random.uniform(_KEYS[2], w.shape) < zeros, 0, w)
    uses = jc.uses(_matmul)({'w': w}, w.T)
    q = jc.quantize({'w': w}, [('w', 'int8' if codes else None)], uses)
    for caches, thin in zip((1 << 30, 1 << 10), expected, strict=True):
      # Where nothing is packed there is a warning, which is not asked for here.
      other = {
        'b': jc.quantize({'b': W}, [('b', 'int8')], uses=in_out.IN_OUT)['b']
      }
      more = uses | {'b': uses['w']}
      with mock.patch.object(streams, '_cache_bytes', return_value=caches):
        p = pack(q | other, more, rows=rows, sparse=None)
      self.assertEqual('zeros' in str(p['w']), thin)


if __name__ == '__main__':
  absltest.main()
