"""Structural rules: shard_map, loops and platforms over real formats; their cost."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import in_out
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
from signs import integers
from signs import signs
from signs import STACK
from signs import W as SIGNS

import jaxopt_compress as jc
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
  spec = jc.schemes.Spec(format, granularity, group)
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
    comp = jc.fake_quantize([(r'w', jc.W8A8)], uses=in_out.IN_OUT)

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
    chex.assert_trees_all_close(got, want, rtol=1e-6)
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


class CostTest(parameterized.TestCase):
  def test_a_block_shared_by_12_layers_is_traced_once(self):
    @jax.jit
    @chex.assert_max_traces(n=1)
    def block(w, x):
      return jnp.maximum(x @ w, 0)

    def f(ws, x):
      for w in ws:
        x = block(w, x)
      return x

    ws = [signs(8, 8, seed=i) for i in range(12)]
    lowered = jax.jit(lift.lift(f)).lower(ws, integers(4, 8))
    functions = lowered.as_text().count('func.func private @block')
    self.assertEqual(functions, 1)

  def test_one_compilation(self):
    @jax.jit
    @lift.lift
    @chex.assert_max_traces(n=1)
    def product(w, x):
      return x @ w

    for seed in range(3):
      product(signs(8, 8, seed=seed), integers(4, 8))

  def test_named_scopes_reach_the_program(self):
    def f(stack, x):
      def layer(x, w):
        with jax.named_scope('mine'):
          return x @ w, None

      with jax.named_scope('tower'):
        x, _ = lax.scan(jax.checkpoint(layer), x, stack)
      with jax.named_scope('head'):
        return x @ stack[0]

    text = (
      jax.jit(lift.lift(f))
      .lower(STACK, integers(4, 8))
      .as_text(debug_info=True)
    )
    for scope in ('tower/while', 'checkpoint/mine/', '/head/'):
      self.assertIn(scope, text)

  def test_remat_policy_is_kept(self):
    def f(policy, w, x):
      def body(w, x):
        return jnp.sin(jnp.sin(x @ w))

      return jax.checkpoint(body, policy=policy)(w, x).sum()

    policies = jax.checkpoint_policies
    sines = []
    for policy in (policies.everything_saveable, policies.nothing_saveable):
      g = jax.grad(lift.lift(functools.partial(f, policy)), 1)
      sines.append(
        str(jax.make_jaxpr(g)(SIGNS, integers(4, 8))).count(' = sin ')
      )
    self.assertEqual(sines, [2, 3])

  def test_a_gradient_inside_recomputes(self):
    body = jax.checkpoint(lambda w, x: jnp.sin(x @ w).sum())
    f = jax.jit(lift.lift(lambda w, x: jax.grad(body, 1)(w, x)))
    x, w = integers(4, 8), SIGNS.materialize()
    self.assertIn('optimization_barrier', f.lower(SIGNS, x).as_text())
    want = jnp.cos(x @ w) @ w.T
    np.testing.assert_allclose(f(SIGNS, x), want, rtol=1e-4, atol=1e-4)


class OpenLengthTest(absltest.TestCase):
  def test_a_loop_over_a_batch_of_any_length(self):
    def f(w, x):
      return lax.scan(lambda c, row: (c, row @ w), 0, x)[1]

    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape('b, 16'), jnp.float32)
    exported = jax.export.export(jax.jit(jc.lift(f)))(_leaf('int8'), x)
    self.assertEqual(str(exported.out_avals[0].shape), '(b, 8)')


if __name__ == '__main__':
  absltest.main()
