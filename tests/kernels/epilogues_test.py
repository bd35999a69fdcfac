"""What follows a product: what is found, and what is left alone."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.core import jaxprs
from jaxopt_compress.kernels import curves
from jaxopt_compress.kernels import epilogues

W, X = jnp.ones((8, 4)), jnp.ones((3, 8))
B = jnp.arange(4.0)[None]
C = jnp.arange(12.0).reshape(3, 4)
GELU = jax.jit(jax.nn.gelu)
# As silu, but for what they return.
SIGMOID = jax.jit(lambda y: (s := jax.nn.sigmoid(y), y * s)[0])
BOTH = jax.jit(lambda y: (y * jax.nn.sigmoid(y), y))


@jax.custom_jvp
def straight_relu(y):
  return jnp.maximum(y, 0)


straight_relu.defjvp(lambda p, t: (straight_relu(*p), t[0]))


@jax.custom_jvp
def my_relu(y):
  return jnp.maximum(y, 0)


my_relu.defjvp(lambda p, t: (my_relu(*p), jnp.where(p[0] > 0, t[0], 0.0)))


@jax.custom_jvp
def clipped_relu(y):
  return jnp.maximum(y, 0)


clipped_relu.defjvp(
  lambda p, t: (
    clipped_relu(*p),
    jnp.where((p[0] > 0) & (p[0] < 6), t[0], 0.0),
  )
)


@jax.custom_jvp
def my_gelu(y):
  return jax.nn.gelu(y)


my_gelu.defjvp(lambda p, t: (my_gelu(*p), t[0]))


def _norm(y, mean, factor, shift):
  return (y - mean) * factor + shift


FOUND = {  # function, steps, what follows them
  'bias': (lambda x, w, b: x @ w + b, ['add'], ''),
  'bias first': (lambda x, w, b: b + x @ w, ['add'], ''),
  'relu': (lambda x, w, b: jax.nn.relu(x @ w + b), ['add'], 'relu'),
  'relu alone': (lambda x, w, b: jax.nn.relu(x @ w), [], 'relu'),
  'maximum': (lambda x, w, b: jnp.maximum(x @ w, 0.0), [], 'relu'),
  'scalars': (lambda x, w, b: (x @ w) * 2.0 + 1.0, ['mul', 'add'], ''),
  'a norm': (
    lambda x, w, b: jax.nn.relu(_norm(x @ w, b, b, b)),
    ['sub', 'mul', 'add'],
    'relu',
  ),
  'einsum': (lambda x, w, b: jnp.einsum('mk,kn->mn', x, w) + b, ['add'], ''),
  'relu of a user': (lambda x, w, b: my_relu(x @ w + b), ['add'], 'relu'),
  'relu of a jitted function': (
    lambda x, w, b: jax.jit(lambda y: my_relu(y))(x @ w),
    [],
    'relu',
  ),
  'what silu begins with': (lambda x, w, b: SIGMOID(x @ w), [], 'sigmoid'),
  'up to relu': (lambda x, w, b: jax.nn.relu(x @ w) + b, [], 'relu'),
  'a residual': (lambda x, w, b: x @ w + b + C, ['add'], 'other'),
  'a residual first': (lambda x, w, b: C + (x @ w + b), ['add'], 'other'),
  'up to a second one': (lambda x, w, b: x @ w + C + C, [], 'other'),
  'gelu': (lambda x, w, b: jax.nn.gelu(x @ w + b), ['add'], 'gelu'),
  'gelu of a function': (lambda x, w, b: GELU(x @ w), [], 'gelu'),
  'silu': (lambda x, w, b: jax.nn.silu(x @ w), [], 'silu'),
  'sigmoid': (lambda x, w, b: jax.nn.sigmoid(x @ w + b), ['add'], 'sigmoid'),
  'tanh': (lambda x, w, b: jnp.tanh(x @ w) * C, [], 'tanh times other'),
  'a gate': (lambda x, w, b: jax.nn.silu(C) * (x @ w), [], 'times other'),
  'everything': (
    lambda x, w, b: jax.nn.relu(jax.nn.silu((x @ w) * b + b) + C),
    ['mul', 'add'],
    'silu other relu',
  ),
  'axes dropped': (
    lambda x, w, b: jax.nn.relu((x[None] @ w)[0] + b + C),
    ['add'],
    'other relu',
  ),
  'axes added': (
    lambda x, w, b: (x @ w)[:, None, :, None] + b[:, None, :, None],
    ['add'],
    '',
  ),
  'up to axes that are dropped': (
    lambda x, w, b: (x[None] @ w + b[None])[0],
    ['add'],
    '',
  ),
  'a curve between scales': (
    lambda x, w, b: 2.0 * jax.nn.silu((x @ w) * b) - b + C,
    ['mul'],
    'silu mul sub other',
  ),
  'up to another curve': (
    lambda x, w, b: jax.nn.gelu(jax.nn.gelu(x @ w)),
    [],
    'gelu',
  ),
}
# What is written otherwise, or only looks like one of them: what is found of it.
OTHER_CURVES = {
  'hard swish of a user': (
    lambda y: y * jnp.minimum(jnp.maximum(y + 3.0, 0.0), 6.0) / 6.0,
    'hard_swish, clip of a sum',
  ),
  'another slope': (lambda y: jax.nn.leaky_relu(y, 0.2), None),
  'another reach': (lambda y: jnp.clip(y, 0.0, 5.0), None),
  'erf of something else': (lambda y: 0.5 * y * (1 + lax.erf(y)), None),
}
NOT_FOUND = {
  'nothing': lambda x, w, b: x @ w,
  'read twice': lambda x, w, b: (y := x @ w) + b + y,
  'returned': lambda x, w, b: ((y := x @ w), y + b),
  'taken from': lambda x, w, b: b - x @ w,
  'axes dropped alone': lambda x, w, b: (x[None] @ w)[0],
  'in another order': lambda x, w, b: (x @ w).T + b.T,
  'along rows, axes added': (
    lambda x, w, b: (x @ w)[:, None] + jnp.arange(3.0)[:, None, None]
  ),
  'along rows': lambda x, w, b: x @ w + jnp.arange(3.0)[:, None],
  'part of gelu': lambda x, w, b: (y := x @ w) * 0.5 * (1 + jnp.tanh(y)),
  'silu and more': lambda x, w, b: BOTH(x @ w)[0],
  'relu with a derivative of its own': lambda x, w, b: straight_relu(x @ w),
  'relu clipped in its derivative': lambda x, w, b: clipped_relu(x @ w),
  'gelu with a derivative of its own': lambda x, w, b: my_gelu(x @ w),
  'gelu read twice': lambda x, w, b: jax.nn.gelu(y := x @ w) + y,
  'not zero': lambda x, w, b: jnp.maximum(x @ w, 1.0),
  'a type': lambda x, w, b: (x @ w).astype(jnp.bfloat16),
  'with itself': lambda x, w, b: (y := x @ w) * y,
}


def _chains(jaxpr):
  """The epilogues of a program, in every body of it."""
  found = list(epilogues.find(jaxpr).values())
  for eqn in jaxpr.eqns:
    for body in jaxprs.inside(eqn):
      found += _chains(body)
  return found


# How a function follows a product in a model.
WHERE = {
  'plain': lambda f: lambda x, w: f(x @ w),
  'in jit': lambda f: jax.jit(lambda x, w: f(x @ w)),
  'jitted itself': lambda f: lambda x, w: jax.jit(f)(x @ w),
  'in scan': lambda f: (
    lambda x, w: lax.scan(lambda c, x: (c, f(x[None] @ w)), 0, x)
  ),
}


class AsJaxWritesThemTest(parameterized.TestCase):
  """Fails where a release of JAX writes one of these functions another way."""

  @parameterized.product(
    name=[*curves.CURVES, 'relu'],
    where=list(WHERE),
    dtype=['float32', 'bfloat16'],
  )
  def test_is_found(self, name, where, dtype):
    f = curves.CURVES.get(name, jax.nn.relu)
    x, w = X.astype(dtype), W.astype(dtype)
    jaxpr = jax.make_jaxpr(WHERE[where](f))(x, w).jaxpr
    found = [c.curve or ('relu' if c.relu else '') for c in _chains(jaxpr)]
    self.assertEqual(
      found,
      [name],
      f'JAX {jax.__version__} writes {name} as {jax.make_jaxpr(f)(x)}, which'
      ' kernels/curves.py does not know: products are followed by XLA.',
    )


class FindTest(parameterized.TestCase):
  @parameterized.named_parameters((n, n) for n in FOUND)
  def test_found(self, name):
    f, steps, rest = FOUND[name]
    closed = jax.make_jaxpr(f)(X, W, B)
    chain = next(iter(epilogues.find(closed.jaxpr).values()))
    self.assertEqual([name for name, _, _ in chain.steps], steps)
    words = [chain.curve or '', *(name for name, _, _ in chain.after)]
    words.append('times' if chain.times else '')
    words.append('' if chain.other is None else 'other')
    words.append('relu' if chain.relu else '')
    self.assertEqual(' '.join(filter(None, words)), rest)

  @parameterized.named_parameters((n, *c) for n, c in OTHER_CURVES.items())
  def test_other_curves(self, f, name):
    jaxpr = jax.make_jaxpr(lambda x, w: f(x @ w))(X, W).jaxpr
    found = [c.curve for c in epilogues.find(jaxpr).values() if c.curve]
    self.assertEqual(found, [name] if name else [])

  @parameterized.parameters(*curves.CURVES)
  def test_derivatives_of_curves(self, name):
    """At the kinks, where ways of writing a curve differ, and beside them."""
    f = curves.CURVES[name]
    jaxpr = jax.make_jaxpr(lambda x, w: f(x @ w))(X, W).jaxpr
    (chain,) = epilogues.find(jaxpr).values()
    y = jnp.array([[-3.0, -1.0, 0.0, 2.0, 3.0, 6.0]])
    got = jax.vjp(chain.epilogue(None), y)[1](jnp.ones_like(y))
    want = jax.vjp(f, y)[1](jnp.ones_like(y))
    np.testing.assert_array_equal(got[0], want[0])

  @parameterized.named_parameters((n, n) for n in NOT_FOUND)
  def test_not_found(self, name):
    closed = jax.make_jaxpr(NOT_FOUND[name])(X, W, B)
    self.assertEmpty(epilogues.find(closed.jaxpr))

  @parameterized.parameters(
    lambda y: jnp.clip(y, jnp.zeros((7, 8)), jnp.full((7, 8), 6.0)),
    lambda y: jnp.minimum(jnp.maximum(y, jnp.zeros((7, 1))), 6.0) * 2 + 1,
    lambda y: jnp.clip(y[:, None], jnp.zeros((1, 7, 1)), 6.0),
    lambda y: jax.nn.silu(y[:, :1]) * jnp.full((1, 7), 2.0),
    lambda y: y[:, :1] + jnp.arange(7.0)[None],
    lambda y: jnp.maximum(y, jnp.zeros((7, 8))),
    lambda y: jax.nn.silu(y) + jnp.ones((7, 8)),
  )
  def test_what_is_spread_over_more_is_left_to_xla(self, after):
    for columns in (8, 1):
      f = lambda p, x: after(jnp.tile(x @ p['w'], 8 // p['w'].shape[1]))
      if columns == 1:
        f = lambda p, x: after(x @ p['w'])
      params = {'w': jax.random.normal(jax.random.key(0), (16, columns))}
      x = jax.random.normal(jax.random.key(1), (1, 16))
      uses = jc.uses(f)(params, x)
      q = jc.quantize(params, [('w', jc.W8A8)], uses)
      p = jc.pack(q, uses, target='cpu')
      got, want = (jax.jit(jc.lift(f))(leaf, x) for leaf in (p, q))
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

  def test_a_sum_of_two_products_follows_one(self):
    f = lambda x, w, b: jax.nn.relu((x @ w + b) + (x @ (2 * w) + b))
    jaxpr = jax.make_jaxpr(f)(X, W, B).jaxpr
    indices = [i for c in epilogues.find(jaxpr).values() for i in c.indices]
    self.assertLen(set(indices), len(indices))
    self.assertLen(indices, 4)

  def test_values(self):
    def f(x, w, a, b):
      return jax.nn.relu(((x @ w + a[None]) * b[None] - a[None]) * 3.0)

    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (3, 8), (8, 4), (4,), (4,)
    args = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
    jaxpr = jax.make_jaxpr(f)(*args).jaxpr
    (chain,) = epilogues.find(jaxpr).values()
    env = dict(zip(jaxpr.invars, args, strict=True))

    def read(v):
      if hasattr(v, 'val'):
        return v.val
      (maker,) = [e for e in jaxpr.eqns if v in e.outvars] or [None]
      if maker is None:
        return env[v]
      return read(maker.invars[0]).reshape(v.aval.shape)

    epilogue = chain.epilogue(read)
    got = epilogue(args[0] @ args[1])
    np.testing.assert_allclose(got, f(*args), rtol=1e-6, atol=1e-6)

  @parameterized.parameters(
    (jax.nn.relu, 0.0), (my_relu, 0.0), (lambda y: lax.max(y, 0.0), 0.5)
  )
  def test_derivative_at_zero(self, activation, slope):
    jaxpr = jax.make_jaxpr(lambda x, w: activation(x @ w))(X, W).jaxpr
    (chain,) = epilogues.find(jaxpr).values()
    self.assertEqual(jax.grad(chain.epilogue(None))(0.0), slope)


if __name__ == '__main__':
  absltest.main()
