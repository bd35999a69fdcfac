"""Structural rules over real formats: shard_map, loops, platforms."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.core import interpret
from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import lift
from jaxopt_compress.core import sharding
from jaxopt_compress.quantization import qarray


def _mesh():
  return jax.make_mesh((4,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))


W = jax.random.normal(jax.random.key(0), (16, 8))
X = jax.random.normal(jax.random.key(1), (4, 16))


def _leaf(format, group=0):
  return _quantized(W, format, group)


def _quantized(w, format, group=0):
  granularity = 'group' if group else 'channel'
  spec = jc.Spec(format, granularity, group)
  return qarray.quantize_array(w, spec, ((-2, group),), packed=-2)


LEAVES = {
  'int8': _leaf('int8'),
  'int4 g4': _leaf('int4', 4),
  'ragged': _leaf('int8', 6),
}
SPECS = {'replicated': P(), 'rows': P('d'), 'columns': P(None, 'd')}
CELLS = [
  dict(
    testcase_name=f'{leaf} {spec} {vma}',
    leaf=LEAVES[leaf],
    spec=SPECS[spec],
    vma=vma,
  )
  for leaf in LEAVES
  for spec in SPECS
  for vma in (True, False)
]


def _dot(w, x):
  """x @ w where the rows or the columns of w are cut, or nothing is."""
  if w.shape[0] < x.shape[1]:
    i = lax.axis_index('d') * w.shape[0]
    x = lax.dynamic_slice_in_dim(x, i, w.shape[0], axis=1)
    return lax.psum(jnp.dot(x, w), 'd')
  return jnp.dot(x, w)


def _shard(f, specs, spec, vma):
  return jax.jit(
    jax.shard_map(
      f,
      mesh=_mesh(),
      in_specs=(specs, P()),
      out_specs=spec if spec == P(None, 'd') else P(),
      check_vma=vma,
    )
  )


class ShardMapTest(parameterized.TestCase):
  @parameterized.named_parameters(*CELLS)
  def test_lift_of_shard_map(self, leaf, spec, vma):
    f = jc.lift(_shard(_dot, spec, spec, vma))
    np.testing.assert_allclose(f(leaf, X), X @ leaf.materialize(), atol=1e-5)

  @parameterized.named_parameters(*CELLS)
  def test_lift_inside_shard_map(self, leaf, spec, vma):
    cuts = [4 if i < len(spec) and spec[i] else 1 for i in range(2)]
    local = tuple(n // c for n, c in zip(leaf.shape, cuts, strict=True))
    specs = sharding.leaf_specs(leaf, spec, _mesh(), local)
    if specs is None:
      return self.assertEqual((leaf.describe(), spec), ('int8 g6', P('d')))
    f = _shard(lambda w, x: jc.lift(_dot)(w, x), specs, spec, vma)
    np.testing.assert_allclose(f(leaf, X), X @ leaf.materialize(), atol=1e-5)

  def test_what_cannot_be_cut_is_said(self):
    f = _shard(_dot, P('d'), P('d'), True)
    met = jc.explain(f)(LEAVES['ragged'], X)
    self.assertEqual([m.primitive for m in met], ['shard_map'])
    self.assertIn('cannot be cut as', met[0].reason)
    met = jc.explain(f)(LEAVES['int4 g4'], X)
    self.assertEqual([m.primitive for m in met], ['dot_general'])

  def test_gradients_of_replicated_weights(self):
    comp = jc.fake_quantize([(r'w', jc.W8A8)])

    def loss(p, x):
      y = jc.lift(lambda p, x: jnp.dot(x, p['w']))(comp.apply(p, ()), x)
      return jnp.square(y).sum()

    def grads(p, x):
      p = jax.tree.map(lambda a: lax.pcast(a, ('d',), to='varying'), p)
      return lax.psum(jax.grad(loss)(p, x), 'd')

    run = jax.shard_map(
      grads, mesh=_mesh(), in_specs=(P(), P('d')), out_specs=P()
    )
    got, want = jax.jit(run)({'w': W}, X), jax.grad(loss)({'w': W}, X)
    np.testing.assert_allclose(got['w'], want['w'], rtol=1e-4, atol=1e-4)


class LoopsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    # The scanned axis is the packed one, the grouped one, neither.
    dict(testcase_name='packed', format='int4', n=1, group=0, native=False),
    dict(
      testcase_name='groups of one', format='int8', n=4, group=1, native=True
    ),
    dict(testcase_name='one row', format='int8', n=1, group=0, native=True),
    dict(
      testcase_name='shared scale', format='int8', n=4, group=0, native=False
    ),
  )
  def test_scan_over_the_axis_of_a_matrix(self, format, n, group, native):
    q = _quantized(W[:n], format, group)
    f = lambda w, x: lax.scan(lambda c, r: (c + r, r * c), x, w)
    got = jc.lift(f)(q, X[0, :8])
    want = f(q.materialize(), X[0, :8])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(close, got, want)
    dense = [m for m in jc.explain(f)(q, X[0, :8]) if m.primitive == 'scan']
    self.assertEqual(not dense, native)

  def test_scan_stays_compressed_slice_by_slice(self):
    stack = _quantized(jnp.stack([W, 2 * W]), 'int4', 4)
    f = lambda w, x: lax.scan(lambda c, w: (c, x @ w), 0, w)[1]
    jaxpr = jax.make_jaxpr(jc.lift(f))(stack, X)
    (scan,) = [e for e in jaxpr.eqns if e.primitive.name == 'scan']
    types = [v.aval.str_short() for v in scan.invars]
    self.assertIn('uint8[2,8,8]', types)
    self.assertNotIn('float32[2,16,8]', types)

  def test_branches_for_platforms_stay_with_them(self):
    f = lambda w, x: lax.platform_dependent(
      w, x, cpu=lambda w, x: x @ w, default=lambda w, x: x[:, :8]
    )
    run = jax.jit(jc.lift(f))
    want = X @ LEAVES['int8'].materialize()
    np.testing.assert_allclose(run(LEAVES['int8'], X), want, atol=1e-5)
    text = run.lower(LEAVES['int8'], X).as_text()
    self.assertNotIn('stablehlo.slice', text)  # the default is not lowered


class EvaluateTest(parameterized.TestCase):
  def test_names_and_constants(self):
    table = jnp.arange(16.0)[None]
    closed, _ = jaxprs.trace(lambda w, x: jnp.dot(x + table, w), W, X)
    met = []
    ctx = lift.context(record=met.append, inline=True)
    leaf = LEAVES['int8']
    (y,) = interpret.evaluate(ctx, closed, [leaf, X], ['layer/w', None])
    want = (X + table) @ leaf.materialize()
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)
    self.assertEqual([(m.path, m.native) for m in met], [('layer/w', True)])

  def test_results_may_stay_compressed(self):
    closed, _ = jaxprs.trace(lambda w: w.T, W)
    ctx = lift.context()
    (y,) = interpret.evaluate(ctx, closed, [LEAVES['int8']], ['w'])
    self.assertIsInstance(y, qarray.QArray)
    self.assertEqual(y.shape, (8, 16))


if __name__ == '__main__':
  absltest.main()
