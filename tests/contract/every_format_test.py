"""The law for every number format x granularity x zero point x dtype.

One small model for all: a scan of checkpointed layers whose weight is reshaped and
transposed on the way, a branch, and a batch of experts. Each program holds all
formats at once, one leaf each, and a failure names its row.
"""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.quantization import formats

_RNG = np.random.default_rng(0)
W = _RNG.normal(size=(2, 10, 10)).astype(np.float32) / 3 + np.float32(0.05)
X = _RNG.normal(size=(8, 10)).astype(np.float32)

# 4 and 7 do not divide 10: the last groups are shorter, the last bytes filled.
HOW = {
  'tensor': 'tensor',
  'channel': 'channel',
  'group': 'g4',
  'block': '7x4',
  'mx': 'g4 mx',
  'nv': 'g4 nv',
  'dq': 'g4 dq',
}

ROWS = {
  how: {
    f'{name} {words}{asym}': f'{name} {words}{asym}'
    for name in formats.FORMATS
    for asym in ('', ' asym')
  }
  for how, words in HOW.items()
}


def model(w, x):
  def layer(h, w):
    w = w.reshape(2, 5, 10).reshape(10, 10)
    h = lax.cond(h[0, 0] > 9, lambda: h @ w.T, lambda: h @ w)
    return jnp.tanh(h), None

  h, _ = lax.scan(jax.checkpoint(layer), x, w)
  experts = jnp.einsum('lio,bi->blo', w, x)
  return h, experts, h @ w[1].T.astype(x.dtype)


def apply(ws, x):
  return {row: model(w, x) for row, w in ws.items()}


@functools.cache
def _uses():
  return jc.uses(
    lambda p, x: lax.scan(lambda h, w: (h @ w, None), x, p['w'])[0]
  )({'w': W}, X)['w']


@functools.cache
def _leaves(how, dtype):
  ws = {row: jnp.asarray(W, dtype) for row in ROWS[how]}
  uses = {row: _uses() for row in ws}
  rules = [(row.replace('.', r'\.'), words) for row, words in ROWS[how].items()]
  q = jax.jit(lambda ws: jc.quantize(ws, rules, uses))(ws)
  return q, jax.jit(jc.materialize)(q)


def _grad(f):
  def loss(ws, x):
    out = f(ws, x)
    return {
      row: sum(jnp.square(y.astype(jnp.float32)).mean() for y in ys)
      for row, ys in out.items()
    }

  def grads(ws, x):
    # One gradient for each row, by one cotangent for each of its copies of x.
    copies = {row: x for row in ws}
    each = lambda xs: sum(loss({row: ws[row]}, xs[row])[row] for row in ws)
    return jax.grad(each)(copies)

  return grads


def _mesh():
  return jax.sharding.Mesh(np.array(jax.devices()), ('d',))


def _sharded(f):
  return jax.shard_map(
    f, mesh=_mesh(), in_specs=(P(), P('d')), out_specs=P('d')
  )


TRANSFORMS = {
  'jit': lambda f: f,
  'grad': _grad,
  'vmap': lambda f: (
    lambda ws, x: jax.vmap(f, (None, 0))(ws, x.reshape(2, 4, 10))
  ),
  'vmap of weights': lambda f: (
    lambda ws, x: jax.vmap(f)(
      jax.tree.map(lambda p: jnp.stack([p, p]), ws), x.reshape(2, 4, 10)
    )
  ),
  'scan': lambda f: (
    lambda ws, x: lax.scan(
      lambda ws, x: (ws, f(ws, x)), ws, x.reshape(2, 4, 10)
    )[1]
  ),
  'shard_map': _sharded,
}


def _is_wanted(how, dtype, transform):
  """Every granularity under every transform; other scales under two."""
  if how in ('mx', 'nv', 'dq'):
    return transform in ('jit', 'scan') and dtype == 'float32'
  # What moves leaves about does not look at the dtype.
  if dtype == 'bfloat16':
    return transform == 'jit' or (how == 'group' and transform == 'grad')
  return True


class FormatsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    *(
      (f'{how}, {dtype}, {transform}', how, dtype, transform)
      for how in HOW
      for dtype in ('float32', 'bfloat16')
      for transform in TRANSFORMS
      if _is_wanted(how, dtype, transform)
    )
  )
  def test_law(self, how, dtype, transform):
    got, want = _results(how, dtype, transform)
    tolerance = 3e-5 if dtype == 'float32' else 4e-2
    for row in want:
      for a, b in zip(
        *map(jax.tree.leaves, (got[row], want[row])), strict=True
      ):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        scale = np.abs(b).max()
        self.assertTrue(np.isfinite(b).all() and scale > 0, row)
        self.assertLess(np.abs(a - b).max(), tolerance * scale, row)

  @parameterized.product(how=tuple(HOW), dtype=('float32', 'bfloat16'))
  def test_leaves_weigh_less_and_keep_their_type(self, how, dtype):
    q, dense = _leaves(how, jnp.dtype(dtype))
    for row, leaf in q.items():
      self.assertEqual((leaf.shape, leaf.dtype), (W.shape, jnp.dtype(dtype)))
      self.assertEqual(dense[row].shape, W.shape)
      self.assertLen({p.ndim for p in jax.tree.leaves(leaf)}, 1)
      self.assertEqual(leaf.zero is not None, 'asym' in row)


@functools.cache
def _dense(how, dtype):
  _, dense = _leaves(how, jnp.dtype(dtype))
  return jax.jit(apply)(dense, jnp.asarray(X, dtype))


@functools.cache
def _results(how, dtype, transform):
  q, dense = _leaves(how, jnp.dtype(dtype))
  x = jnp.asarray(X, dtype)
  run = TRANSFORMS[transform]
  got = jax.jit(run(jc.lift(apply)))(q, x)
  if transform == 'grad':
    return got, jax.jit(run(apply))(dense, x)
  # Rows do not see each other: only their grouping differs.
  alike = lambda a, b: b.reshape(a.shape)
  return got, jax.tree.map(alike, got, _dense(how, dtype))


if __name__ == '__main__':
  absltest.main()
