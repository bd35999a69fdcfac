"""Norms in programs: what is found, what it computes, and what is none."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
from flax import nnx
import haiku as hk
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import structural
from jaxopt_compress.kernels import flow as flow_lib
from jaxopt_compress.kernels import moments

K = 8
X = 1 + jax.random.normal(jax.random.key(0), (2, 3, K))
A = 1 + jax.random.normal(jax.random.key(1), (K,)) / 4
B = jax.random.normal(jax.random.key(2), (K,))
W = jnp.ones((K, 4))


def _nnx(module, **kwargs):
  return lambda x, a, b: module(K, rngs=nnx.Rngs(0), **kwargs)(x)


def _linen(module):
  def f(x, a, b):
    names = {'scale': a, 'bias': b}
    given = names if isinstance(module, nn.LayerNorm) else {'scale': a}
    return module.apply({'params': given}, x)

  return f


def _haiku(norm):
  def f(x, a, b):
    run = hk.transform(lambda x: norm()(x))
    of = jax.eval_shape(run.init, jax.random.key(0), X)
    given = {'scale': a, 'offset': b}
    params = {m: {n: given[n] for n in names} for m, names in of.items()}
    return run.apply(params, None, x)

  return f


def _mean(x):
  return x.mean(-1, keepdims=True)


def by_hand(x, a, b):
  x = x - _mean(x)
  return x * lax.rsqrt(_mean(x**2) + 1e-5) * a[None, None] + b[None, None]


def as_in_torch(x, a, b):
  var = x.var(-1, keepdims=True)
  return (x - _mean(x)) / jnp.sqrt(var + 1e-5) * a[None, None] + b[None, None]


def of_squares(x, a, b):
  mean = _mean(x)
  var = _mean(x * x) - mean * mean
  return (x - mean) * ((var + 1e-5) ** -0.5 * a[None, None])


def with_sums(x, a, b):
  mean = x.sum(-1, keepdims=True) * (1 / K)
  centered = x - mean
  var = (centered * centered).sum(-1, keepdims=True) / K
  return centered * (1 / jnp.sqrt(var + 1e-5))


def rms(x, a, b):
  return a[None, None] * (x * lax.rsqrt(_mean(jnp.square(x)) + 1e-6))


def gemma(x, a, b):
  y = x.astype(jnp.float32)
  y = y * lax.rsqrt(_mean(jnp.square(y)) + 1e-6)
  return (y * (1 + a)[None, None]).astype(x.dtype)


def llama(x, a, b):
  y = x.astype(jnp.float32)
  y = y * lax.rsqrt(_mean(jnp.square(y)) + 1e-6)
  return a.astype(x.dtype)[None, None] * y.astype(x.dtype)


def rows(x, a, b):
  return by_hand(x, a, b).reshape(-1, K)


FOUND = {  # function, whether it is centred, whether it has (a scale, a shift)
  'nnx': (_nnx(nnx.LayerNorm), True, (True, True)),
  'nnx of differences': (
    _nnx(nnx.LayerNorm, use_fast_variance=False),
    True,
    (True, True),
  ),
  'nnx without parameters': (
    _nnx(nnx.LayerNorm, use_bias=False, use_scale=False),
    True,
    (False, False),
  ),
  'nnx rms': (_nnx(nnx.RMSNorm), False, (True, False)),
  'linen': (_linen(nn.LayerNorm()), True, (True, True)),
  'linen rms': (_linen(nn.RMSNorm()), False, (True, False)),
  'haiku': (
    _haiku(lambda: hk.LayerNorm(-1, True, True)),
    True,
    (True, True),
  ),
  'haiku rms': (_haiku(lambda: hk.RMSNorm(-1)), False, (True, False)),
  'standardize': (
    lambda x, a, b: jax.nn.standardize(x),
    True,
    (False, False),
  ),
  'by hand': (by_hand, True, (True, True)),
  'as in torch': (as_in_torch, True, (True, True)),
  'of squares': (of_squares, True, (True, False)),
  'with sums': (with_sums, True, (False, False)),
  'rms by hand': (rms, False, (True, False)),
  'gemma': (gemma, False, (True, False)),
  'llama': (llama, False, (True, False)),
  'as rows': (rows, True, (True, True)),
}


def over_rows(x, a, b):
  x = x - x.mean(-2, keepdims=True)
  return x * lax.rsqrt((x**2).mean(-2, keepdims=True) + 1e-5)


def twice_centered(x, a, b):
  return (x - _mean(x)) * lax.rsqrt(_mean(x**2) + 1e-5)


def not_centered(x, a, b):
  return x * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)


def unbiased(x, a, b):
  return (x - _mean(x)) * lax.rsqrt(x.var(-1, keepdims=True, ddof=1) + 1e-5)


def of_length_one(x, a, b):
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def added_outside(x, a, b):
  return (x - _mean(x)) / (jnp.sqrt(x.var(-1, keepdims=True)) + 1e-5)


def of_each_row(x, a, b):
  return by_hand(x, a, b) * jnp.arange(3.0)[None, :, None]


def known_moments(x, a, b):
  return (x - b[None, None]) * lax.rsqrt(a[None, None] ** 2 + 1e-5)


def of_another(x, a, b):
  return x * lax.rsqrt(_mean(jnp.square(jnp.sin(x))) + 1e-6)


def of_groups(x, a, b):
  y = x.reshape(2, 3, 2, K // 2)
  y = (y - _mean(y)) * lax.rsqrt(y.var(-1, keepdims=True) + 1e-5)
  return y.reshape(x.shape)


def _rounded(x, dtype=jnp.float8_e4m3fn):
  return x.astype(dtype).astype(x.dtype)


def with_the_mean_of_rounded(x, a, b):
  x = x - _mean(_rounded(x))
  return x * lax.rsqrt(_mean(x**2) + 1e-5)


def with_squares_of_rounded(x, a, b):
  return x * lax.rsqrt(_mean(_rounded(x) ** 2) + 1e-6)


def with_the_mean_rounded(x, a, b):
  x = x - _rounded(_mean(x), jnp.bfloat16)
  return x * lax.rsqrt(_mean(x**2) + 1e-5)


def rounded_after(x, a, b):
  return _rounded(rms(x, a, b))


def rounded_to_bfloat16_after(x, a, b):
  return _rounded(rms(x, a, b), jnp.bfloat16)


def not_rows(x, a, b):
  return jnp.swapaxes(by_hand(x, a, b), 0, 1)


NOT_FOUND = (
  over_rows,
  twice_centered,
  not_centered,
  unbiased,
  of_length_one,
  added_outside,
  of_each_row,
  known_moments,
  of_another,
  of_groups,
  with_squares_of_rounded,
  rounded_after,
  rounded_to_bfloat16_after,
  not_rows,
)


def _find(f, x, more=lambda x, y: ()):
  """(the norm that a product reads, the body, its constants)."""

  def run(x, a, b):
    y = f(x, a, b)
    return y @ W.astype(y.dtype), more(x, y)

  closed = jax.make_jaxpr(run)(x, A, B)
  jaxpr = jaxprs.flattened(closed.jaxpr, structural.plain_body)
  (dot,) = (e for e in jaxpr.eqns if e.primitive.name == 'dot_general')
  found = moments.find(flow_lib.Flow(jaxpr), [dot.invars[0]])
  return found, jaxpr, closed.consts


class MomentsTest(parameterized.TestCase):
  @parameterized.product(name=list(FOUND), dtype=['float32', 'bfloat16'])
  def test_found(self, name, dtype):
    f, centered, vectors = FOUND[name]
    x = X.astype(dtype)
    if dtype == 'bfloat16':
      plain, f = f, lambda x, a, b: plain(x, a, b).astype(x.dtype)
    found, jaxpr, consts = _find(f, x)
    self.assertIsNotNone(found, jaxpr)
    self.assertEqual(found.word.centered, centered)
    got = bool(found.word.scales), found.word.shift is not None
    self.assertEqual(got, vectors)
    self.assertEqual(found.x.aval.dtype, x.dtype)
    at = next(
      i for i, e in enumerate(jaxpr.eqns) if e.primitive.name == 'dot_general'
    )
    self.assertIn(jaxpr.eqns[at].invars[0], found.equals)

    values = dict(zip(jaxpr.invars, (x, A, B), strict=True))
    values |= dict(zip(jaxpr.constvars, consts, strict=True))
    vectors = [v for v in found.reads if jaxprs.is_var(v)]
    wanted = [v for v in (found.x, *vectors) if v not in values]
    made = jaxprs.run_together(jaxpr.eqns[:at], values, wanted)
    values |= dict(zip(wanted, made, strict=True))

    def read(v):
      return values[v] if jaxprs.is_var(v) else v.val

    norm = found.norm(read)
    want = np.asarray(f(X, A, B), np.float32).reshape(-1, K)
    got = np.asarray(norm(read(found.x)), np.float32).reshape(-1, K)
    error = 2e-6 if dtype == 'float32' else 0.05
    np.testing.assert_allclose(got, want, rtol=error, atol=error)

  @parameterized.named_parameters((f.__name__, f) for f in NOT_FOUND)
  def test_not_found(self, f):
    self.assertIsNone(_find(f, X)[0])

  @parameterized.parameters(
    (jnp.float8_e4m3fn, rms),
    (jnp.bfloat16, rms),
    (jnp.float8_e4m3fn, by_hand),
    (jnp.bfloat16, by_hand),
  )
  def test_of_what_was_rounded_before(self, dtype, norm):
    found, jaxpr, _ = _find(lambda x, a, b: norm(_rounded(x, dtype), a, b), X)
    made = flow_lib.Flow(jaxpr).maker(found.x)
    self.assertEqual(made.primitive.name, 'convert_element_type')
    self.assertEqual(made.invars[0].aval.dtype, dtype)

  @parameterized.parameters(with_the_mean_rounded, with_the_mean_of_rounded)
  def test_with_a_mean_that_is_rounded(self, f):
    # Of x less that mean it is an RMS norm, of x it is none.
    self.assertFalse(_find(f, X)[0].word.centered)

  def test_an_rms_norm_of_what_is_centered_before(self):
    # The norm of x - mean(x) would be of float32, and something reads x - mean(x).
    found, *_ = _find(by_hand, X, lambda x, y: (x - _mean(x)).sum())
    self.assertTrue(found.word.centered)

  @parameterized.named_parameters(
    ('the norm', lambda x, y: y + 1, True),
    ('what is normed', lambda x, y: x + 1, True),
  )
  def test_read_by_others(self, more, found):
    self.assertEqual(_find(by_hand, X, more)[0] is not None, found)

  def test_what_is_inside_is_not_read_by_others(self):
    def f(x, a, b):
      mean = _mean(x)
      inverse = lax.rsqrt(_mean((x - mean) ** 2) + 1e-5)
      return (x - mean) * inverse, inverse

    def run(x):
      y, inverse = f(x, None, None)
      return y @ W, inverse

    jaxpr = jax.make_jaxpr(run)(X).jaxpr
    (dot,) = (e for e in jaxpr.eqns if e.primitive.name == 'dot_general')
    self.assertIsNone(moments.find(flow_lib.Flow(jaxpr), [dot.invars[0]]))


if __name__ == '__main__':
  absltest.main()
