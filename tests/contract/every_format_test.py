"""The law for every number format x granularity x zero point x dtype x transform.

One small model for all: a scan of checkpointed layers whose weight is reshaped and
transposed on the way, a branch, and a batch of experts. Each program holds all
formats at once, one leaf each, and two transforms where one fits in the other; a
failure names its rows.

Not everything meets everything, for compiling is what takes the time. In bfloat16 a
format meets each granularity with a zero point or without. Gradients are taken
without the branch, whose gradient `contract_test` asks of each type of leaf.

Rows with activations, 'int8 asym, int8 token asym', are compared with the model
whose products round what meets the weight: with what they mean, not with what they
approximate.
"""

import functools
import re

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.quantization import formats
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import schemes

_RNG = np.random.default_rng(0)
W = _RNG.normal(size=(2, 10, 10)).astype(np.float32) / 3 + np.float32(0.05)
X = _RNG.normal(size=(8, 10)).astype(np.float32)
# The largest magnitude of a token, or of four entries of it, is positive: at
# -127.5 steps of a symmetric int8 it would be a tie, which falls to either side.
for _x in (X[:, :4], X[:, 4:8], X[:, 8:], X):
  _at = np.abs(_x).argmax(axis=1)[:, None]
  np.put_along_axis(_x, _at, np.abs(np.take_along_axis(_x, _at, 1)), 1)

# 4 and 7 do not divide 10: the last groups are shorter, the last bytes filled.
WEIGHTS = {
  'tensor': 'tensor',
  'channel': 'channel',
  'group': 'g4',
  'block': '7x4',
  'mx': 'g4 mx',
  'nv': 'g4 nv',
  'dq': 'g4 dq',
}

# Both operands are codes: scales, zero points and groups of either.
PAIRS = (
  'int8 asym, int8 token',
  'int8, int8 token asym',
  'int8 tensor, int8 tensor',
  'int8 tensor asym, int8 tensor asym',
  'int8 g4, int8 g4',
  'int8 g4 asym, int8 g4 asym',
  'int8 7x5 asym, int8 token asym',
  'int4 g4, int8 token',
  'int4 g4 asym, int8 token',
  'int4 g4 asym, int8 token asym',
  'int4 g4 dq asym, int8 g4 asym',
  'int4 7x5, int4 token',
  'int8 asym, e4m3 token asym',
  'e4m3, int8 token asym',
  'e5m2 asym, e4m3 token',
  'e4m3 tensor, e4m3 tensor',
  'e4m3 g4 asym, e5m2 g4 asym',
  'nf4 g4 dq, int8 token',
  'e2m1 g4 mx, e4m3 g4 mx',
  'e2m1 g4 mx asym, e2m1 g4 mx asym',
  *(
    f'{name} g4 mx, {name} g4 mx'
    for name in ('int8', 'e4m3', 'e5m2', 'e3m2', 'e2m3', 'e2m1')
  ),
  'e2m1 g4 nv, e2m1 g4 nv',
  'e2m1 g4 nv asym, e2m1 g4 nv asym',
)

ROWS = {
  **{
    how: [
      f'{f} {words}{asym}' for f in formats.FORMATS for asym in ('', ' asym')
    ]
    for how, words in WEIGHTS.items()
  },
  'token': [f'{name}, {name} token' for name in formats.FORMATS],
  'token asym': [f'{name} asym, {name} token asym' for name in formats.FORMATS],
  'pairs': list(PAIRS),
}


def model(w, x, branch=True):
  def layer(h, w):
    w = w.reshape(10, 2, 5).reshape(10, 10)
    if branch:
      h = lax.cond(h[0, 0] > 9, lambda: h, lambda: h @ w.T)
    else:
      h = h @ w.T
    return lax.logistic(h), None

  h, _ = lax.scan(jax.checkpoint(layer), x, w)
  return h, jnp.einsum('lio,bi->blo', w[1:], h)


def meant(w, x, rounded=lambda x: x):
  """The same in three lines, `rounded` what meets the weight."""
  h = x
  for w_l in w:
    h = lax.logistic((rounded(h) @ w_l.T).astype(x.dtype))
  return h, (rounded(h) @ w[1]).astype(x.dtype)[:, None]


@functools.cache
def _leaves(how, dtype):
  ws = {row: jnp.asarray(W, dtype) for row in ROWS[how]}
  uses = jc.uses(
    lambda p, x: lax.scan(lambda h, w: (h @ w, None), x, p['w'])[0]
  )({'w': W}, X)['w']
  rules = [(re.escape(row), row) for row in ws]

  @jax.jit
  def make(ws):
    q = jc.quantize(ws, rules, {row: uses for row in ws})
    return q, jc.materialize(q)

  return make(ws)


@functools.cache  # one function, so that jit knows it again
def _grad(f):
  def loss(w, x):
    return sum(jnp.square(y.astype(jnp.float32)).mean() for y in f(w, x))

  return jax.grad(loss, argnums=1)


def _vmaps(f):
  """Over x, within one over weights and x."""

  def run(w, x):
    twice = jax.tree.map(lambda p: jnp.stack([p, p]), w)
    return jax.vmap(jax.vmap(f, (None, 0)))(twice, x.reshape(2, 2, 2, 10))

  return run


def _scan_in_shard_map(f):
  """Each device one row of x after the other."""

  def run(w, x):
    return lax.scan(lambda w, x: (w, f(w, x[None])), w, x)[1]

  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('d',))
  return jax.shard_map(run, mesh=mesh, in_specs=(P(), P('d')), out_specs=P('d'))


# Into how many batches each cuts x, and the transform.
TRANSFORMS = {
  'jit': (1, lambda f: f),
  'grad': (1, _grad),
  'vmap in vmap of weights': (4, _vmaps),
  'scan in shard_map': (8, _scan_in_shard_map),
}


def _rows_of(how, dtype):
  """All, or in bfloat16 every other: in turns with a zero point and without."""
  if dtype == 'float32' or how not in WEIGHTS:
    return ROWS[how]
  first = list(WEIGHTS).index(how)
  pairs = zip(ROWS[how][::2], ROWS[how][1::2], strict=True)
  return [pair[(first + i) % 2] for i, pair in enumerate(pairs)]


def _rows(f):
  """One program of all rows; an error names the row that raised it."""

  def apply(ws, x):
    out = {}
    for row, w in ws.items():
      try:
        out[row] = f(w, x)
      except Exception as error:
        error.add_note(f'in the row {row!r}')
        raise
    return out

  return apply


@functools.cache
def _got(how, dtype, transform):
  q = {row: _leaves(how, dtype)[0][row] for row in _rows_of(how, dtype)}
  _, run = TRANSFORMS[transform]
  f = functools.partial(model, branch=transform != 'grad')
  return jax.jit(_rows(run(jc.lift(f))))(q, jnp.asarray(X, dtype))


@functools.cache
def _want(how, dtype, batches, grad):
  """What the rows mean, of so many batches: an activation's range is of one."""
  dense = {row: _leaves(how, dtype)[1][row] for row in _rows_of(how, dtype)}
  if how not in WEIGHTS:
    return {r: _want_rounded(r, how, dtype, batches, grad) for r in dense}
  one = _grad(meant) if grad else meant
  ys = _all_rows(one)(jnp.stack(list(dense.values())), jnp.asarray(X, dtype))
  at = lambda i: jax.tree.map(lambda y: y[i], ys)
  return {row: at(i) for i, row in enumerate(dense)}


def _want_rounded(row, how, dtype, batches, grad):
  act = schemes.scheme(row).act
  if batches > 1 and act.granularity != 'tensor' and act.scale != 'e4m3':
    return _want(how, dtype, 1, grad)[row]  # tokens do not see each other
  f = functools.partial(meant, rounded=functools.partial(_rounded, act=act))
  f = _grad(f) if grad else f
  w = _leaves(how, dtype)[1][row]
  ys = [f(w, x) for x in jnp.split(jnp.asarray(X, dtype), batches)]
  return jax.tree.map(lambda *y: jnp.concatenate(y), *ys)


@functools.cache
def _all_rows(f):
  return jax.jit(jax.vmap(f, (0, None)))


def _rounded(x, act):
  """The codes of the last axis, straight through; float32."""
  blocks = {
    'tensor': ((-2, 0), (-1, 0)),
    'token': ((-1, 0),),
    'group': ((-1, 4),),
  }[act.granularity]
  x = x.astype(jnp.float32)
  q = qarray.quantize_array(lax.stop_gradient(x), act, blocks, packed=0)
  return x + lax.stop_gradient(q.materialize() - x)


def _apart(got, want):
  """[tokens] the largest difference, over the largest number; or infinite."""
  worst = np.zeros(len(X))
  for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    a, b = (np.asarray(y, np.float32).reshape(len(X), -1) for y in (a, b))
    scale = np.abs(b).max()
    difference = np.abs(a - b).max(axis=1)
    fine = np.isfinite(difference) & (0 < scale < np.inf)
    worst = np.maximum(worst, np.where(fine, difference / scale, np.inf))
  return worst


class FormatsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (f'{how}, {dtype}, {transform}', how, dtype, transform)
    for how in ROWS
    for dtype in ('float32', 'bfloat16')
    for transform in TRANSFORMS
  )
  def test_law(self, how, dtype, transform):
    got = _got(how, dtype, transform)
    batches = 1 if how in WEIGHTS else TRANSFORMS[transform][0]
    want = _want(how, dtype, batches, transform == 'grad')
    self.assertCountEqual(got, _rows_of(how, dtype))
    tolerance = 3e-5 if dtype == 'float32' else 4e-2
    failed = {}
    for row in got:
      apart = _apart(got[row], want[row])
      # One code in a hundred falls to the other side after other roundings to
      # bfloat16; of most tokens none does.
      both = how not in WEIGHTS and dtype == 'bfloat16'
      typical = np.median(apart) if both else apart.max()
      if not (typical <= tolerance and apart.max() < 0.5):
        failed[row] = apart
    self.assertEqual(failed, {})

  @parameterized.product(how=tuple(ROWS), dtype=('float32', 'bfloat16'))
  def test_leaves_keep_their_type(self, how, dtype):
    q, dense = _leaves(how, dtype)
    for row, leaf in q.items():
      self.assertEqual((leaf.shape, leaf.dtype), (W.shape, jnp.dtype(dtype)))
      self.assertEqual(dense[row].shape, W.shape)
      self.assertLen({p.ndim for p in jax.tree.leaves(leaf)}, 1)
      weight = getattr(leaf, 'weight', leaf)
      self.assertEqual(weight.zero is not None, 'asym' in row.split(',')[0])
      self.assertEqual(weight is not leaf, ',' in row)


if __name__ == '__main__':
  absltest.main()
