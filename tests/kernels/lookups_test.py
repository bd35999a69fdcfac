"""Products of one-hot rows: what is found, and that results are what they were."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc

pack = functools.partial(jc.pack, target='cpu')

K, N = 13, 40
W = jax.random.normal(jax.random.key(0), (K, N))
B = jnp.linspace(-1.0, 1.0, N)
# Some of them are no column: they meet the zeros.
PLACES = jax.random.randint(jax.random.key(1), (3, 20), -1, K + 2)
COLUMNS = np.arange(K, dtype=np.int32)[None, None]


def _compared(i, columns):
  return (i[..., None] == columns).astype(jnp.float32)


def _hidden(x):
  """The same, and nobody can see what it is."""
  return lax.optimization_barrier(x)


FOUND = {
  'jax.nn': lambda i: jax.nn.one_hot(i, K),
  'an iota': lambda i: _compared(i, jnp.arange(K)[None, None]),
  'a constant': lambda i: _compared(i, COLUMNS),
  'the other way round': lambda i: (COLUMNS == i[..., None]).astype(
    jnp.float32
  ),
}
NOT_FOUND = {
  'few rows': lambda i: jax.nn.one_hot(i[:, :9], K),
  'not whole': lambda i: _compared(
    i.astype(jnp.float32), jnp.arange(1.0 * K)[None, None]
  ),
  'an axis in front': lambda i: (
    jax.nn.one_hot(i, 3, axis=0)[0][..., None] * jnp.ones(K)[None, None]
  ),
  'zeros': lambda i: _compared(i, lax.broadcasted_iota(i.dtype, (1, 1, K), 0)),
  'zeros, spread': lambda i: _compared(
    i, jnp.broadcast_to(jnp.arange(1)[None, None], (1, 1, K))
  ),
  'hidden': lambda i: _hidden(jax.nn.one_hot(i, K)),
}


def _product(rows):
  return lambda p, i: jax.nn.silu(rows(i) @ p['w'] + B[None, None])


def _both(f, words):
  """(jitted, packed, not packed)."""
  params = {'w': W}
  uses = jc.uses(f)(params, PLACES)
  q = jc.quantize(params, [('w', words)], uses)
  return jax.jit(jc.lift(f)), pack(q, uses), q


class LookupsTest(parameterized.TestCase):
  @parameterized.product(
    rows=list(FOUND), words=('W8A8', 'int8, int8 token', 'int4 g4', 'int8')
  )
  def test_results_are_what_they_were(self, rows, words):
    g, p, _ = _both(_product(FOUND[rows]), words)
    self.assertIn('gather', g.lower(p, PLACES).as_text())
    hidden = _product(lambda i: _hidden(FOUND[rows](i)))
    np.testing.assert_allclose(
      g(p, PLACES), jax.jit(jc.lift(hidden))(p, PLACES), rtol=1e-6, atol=1e-6
    )

  def test_how_many_rows_may_be_open(self):
    p = {'w': W}
    f = lambda p, x: jax.nn.silu(x @ p['w'] + 1.0)
    x = jnp.ones((2, K))
    q = pack(jc.quantize(p, [('w', jc.W8A8)], u := jc.uses(f)(p, x)), u)
    leaves, tree = jax.tree.flatten(q)
    (b,) = jax.export.symbolic_shape('b')
    whose = jax.export.DisabledSafetyCheck.custom_call('jaxopt_compress_matmul')
    program = jax.export.export(
      jax.jit(lambda leaves, x: jc.lift(f)(tree.unflatten(leaves), x)),
      disabled_checks=[whose],
    )(leaves, jax.ShapeDtypeStruct((b, K), jnp.float32))
    np.testing.assert_allclose(
      program.call(leaves, x), jc.lift(f)(q, x), rtol=1e-6
    )

  def test_transforms(self):
    g, p, q = _both(_product(FOUND['jax.nn']), 'int8')
    many = jnp.stack([PLACES, PLACES + 1, PLACES - 2])
    got = jax.jit(jax.vmap(g, (None, 0)))(p, many)
    want = jax.jit(jax.vmap(g, (None, 0)))(q, many)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    _, got = lax.scan(lambda c, i: (c, g(p, i)), 0, many)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    of_scale = lambda p: jnp.sum(jnp.sin(g(p, PLACES)))
    got = jax.grad(of_scale, allow_int=True)(p)['w'].scale
    want = jax.grad(of_scale, allow_int=True)(q)['w'].scale
    np.testing.assert_allclose(
      got.reshape(-1), want.reshape(-1), rtol=1e-4, atol=1e-4
    )

  @parameterized.named_parameters((n, n) for n in NOT_FOUND)
  def test_not_found(self, name):
    g, p, q = _both(_product(NOT_FOUND[name]), 'int8')
    self.assertNotIn('gather', g.lower(p, PLACES).as_text())
    np.testing.assert_allclose(g(p, PLACES), g(q, PLACES), rtol=1e-5, atol=1e-5)

  def test_numbers_of_few_bits(self):
    """Column 256 of them is the first one again."""
    places = jnp.arange(6 * 256, dtype=jnp.uint8).reshape(6, 256)
    w = jax.random.normal(jax.random.key(3), (257, 8))
    f = lambda p, i: jax.nn.one_hot(i, 257) @ p['w']
    uses = jc.uses(f)({'w': w}, places)
    q = jc.quantize({'w': w}, [('w', 'int8')], uses)
    g = jax.jit(jc.lift(f))
    got, want = g(pack(q, uses), places), g(q, places)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)

  def test_other_columns_are_multiplied(self):
    other = COLUMNS[..., ::-1].copy()
    g, p, q = _both(_product(lambda i: _compared(i, other)), 'int8')
    np.testing.assert_allclose(g(p, PLACES), g(q, PLACES), rtol=1e-5, atol=1e-5)

  def test_a_residual_is_added_behind(self):
    other = jax.random.normal(jax.random.key(2), (3, 20, N))
    f = lambda p, i: jax.nn.one_hot(i, K) @ p['w'] + other
    g, p, q = _both(f, 'W8A8')
    self.assertIn('gather', g.lower(p, PLACES).as_text())
    np.testing.assert_allclose(g(p, PLACES), g(q, PLACES), rtol=1e-5, atol=1e-5)


if __name__ == '__main__':
  absltest.main()
