"""The contract: leaf types x models x transforms.

    lift(f)(p, x) == f(materialize(p), x)

for every leaf type, in every model, under every JAX transform. A new leaf type
adds a row to LEAVES, a new kind of model one to `contract_models.CASES`, and both
must pass everything below.
"""

import functools
import re
import tempfile
from typing import Any
from typing import NamedTuple

from absl.testing import absltest
from absl.testing import parameterized
import contract_models
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
from orbax.checkpoint import v1 as ocp

import jaxopt_compress as jc
from jaxopt_compress.core import uses
from jaxopt_compress.pruning import masked


class Leaf(NamedTuple):
  """How a row makes its leaves, and how far it may be from the law.

  `rounds` is the relative error, over the largest output, that rounding the other
  operand may add: leaves that round activations carry their bound here.
  """

  compress: Any  # (params, uses) -> params with leaves
  rounds: float = 0.0


def _weights(params, uses):
  return [path for path, _ in jc.named_leaves(params) if _is_weight(uses[path])]


def _is_weight(used):
  return any(u.contracted for u in used)


def _rules(params, uses, value):
  rules = [(re.escape(p), value) for p in _weights(params, uses)]
  return [*rules, (r'.*', None)]


def _stored(scheme):
  return lambda params, uses: jc.quantize(
    params, _rules(params, uses, scheme), uses
  )


def _trained(scheme):
  def compress(params, uses):
    comp = jc.fake_quantize(_rules(params, uses, scheme), uses)
    return comp.apply(params, comp.init(params))

  return compress


def _mask(params, uses):
  chosen = set(_weights(params, uses))
  half = lambda x: jnp.abs(x) > jnp.median(jnp.abs(x))
  return jc.map_named(
    lambda path, x: masked.Masked(x, half(x)) if path in chosen else x, params
  )


_INT4_G4 = jc.Scheme(jc.Spec('int4', 'group', 4, scale='bfloat16'))

LEAVES = {
  'int8': Leaf(_stored(jc.W8A16)),
  'int4 g4': Leaf(_stored(_INT4_G4)),
  'int8 x int8': Leaf(_stored(jc.W8A8), rounds=0.05),
  'fake int8 x int8': Leaf(_trained(jc.W8A8), rounds=0.05),
  'mask': Leaf(_mask),
  'fake int4 of a mask': Leaf(
    lambda params, uses: _trained(_INT4_G4)(_mask(params, uses), uses)
  ),
}


class Table:
  """What several tests of one cell share, made once."""

  def __init__(self, model, leaf):
    self.apply, self.params, self.x = _case(model)
    self.leaf = LEAVES[leaf]
    self.uses = _uses(model)
    self.q = self.compress(self.params)
    self.lifted = jax.jit(jc.lift(self.apply))
    self.y = self.lifted(self.q, self.x)

  def compress(self, params):
    return self.leaf.compress(params, self.uses)

  @functools.cached_property
  def grads(self):
    return self.grads_of(jc.lift(self.apply))

  def grads_of(self, f):
    loss = lambda q: jnp.square(f(q, self.x)).mean()
    return jax.jit(jax.grad(loss, allow_int=True))(self.q)

  def dense(self, q, x):
    return self.apply(jc.materialize(q), x)


@functools.cache
def _case(model):
  return contract_models.CASES[model]()


@functools.cache
def _uses(model):
  case = _case(model)
  return jc.uses(case.apply)(case.params, case.x)


@functools.cache
def _cell(model, leaf):
  return Table(model, leaf)


def _close(a, b, tolerance=2e-5, scale=None):
  """Equal up to `tolerance` of the largest magnitude in `b`, or of `scale`."""
  a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
  assert a.shape == b.shape, (a.shape, b.shape)
  scale = np.abs(b).max(initial=1e-3) if scale is None else scale
  np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def _close_gradients(got, want, tolerance):
  """Equal up to `tolerance` of the largest gradient in the tree."""
  pairs = [
    (a, b)
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True)
    if b.dtype != jax.dtypes.float0
  ]
  scale = max(float(jnp.abs(b).max()) for _, b in pairs)
  assert scale > 0
  for a, b in pairs:
    assert a.dtype == b.dtype, (a.dtype, b.dtype)
    # A few roundings to bfloat16, each 2^-9 of the value.
    _close(a, b, tolerance + (1e-2 if b.dtype == jnp.bfloat16 else 0), scale)


def _is_float(x):
  return jnp.issubdtype(x.dtype, jnp.floating)


def _mesh():
  return jax.make_mesh(
    (4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )


CELLS = [
  dict(testcase_name=f'{model}, {leaf}', model=model, leaf=leaf)
  for model in contract_models.CASES
  for leaf in LEAVES
]


# Where int8 weights become dense, and why; nowhere else.
DENSE = {
  # Its cell joins the kernels of the four gates before the product.
  'lstm linen': {('concatenate', 'QArray has no rule for it')},
}


class ContractTest(parameterized.TestCase):
  @parameterized.named_parameters(*CELLS)
  def test_jit(self, model, leaf):
    t = _cell(model, leaf)
    want = jax.jit(t.dense)(t.q, t.x)
    self.assertEqual(t.y.dtype, want.dtype)
    _close(t.y, want, 2e-5 + t.leaf.rounds)
    leaves = jax.tree.leaves(t.q, is_leaf=jc.is_compressed)
    self.assertTrue(any(map(jc.is_compressed, leaves)))

  @parameterized.named_parameters(
    *(dict(testcase_name=m, model=m) for m in contract_models.CASES)
  )
  def test_runs_on_the_integers(self, model):
    t = _cell(model, 'int8')
    dense = {
      (met.primitive, met.reason)
      for met in jc.explain(t.apply)(t.q, t.x)
      if not met.native
    }
    self.assertEqual(dense, DENSE.get(model, set()))

  @parameterized.named_parameters(*CELLS)
  def test_eager(self, model, leaf):
    t = _cell(model, leaf)
    _close(jc.lift(t.apply)(t.q, t.x), t.y, 2e-5 + t.leaf.rounds)

  @parameterized.named_parameters(*CELLS)
  def test_grad_of_params(self, model, leaf):
    t = _cell(model, leaf)
    want = t.grads_of(t.dense)
    _close_gradients(t.grads, want, 1e-4 + 3 * t.leaf.rounds)

  @parameterized.named_parameters(*CELLS)
  def test_grad_of_activations(self, model, leaf):
    t = _cell(model, leaf)
    if not _is_float(t.x):
      return self.assertIn('tied', model)  # tokens have no gradient
    loss = lambda f: lambda x: jnp.square(f(t.q, x)).mean()
    got, want = (
      jax.jit(jax.grad(loss(f)))(t.x) for f in (jc.lift(t.apply), t.dense)
    )
    self.assertGreater(np.abs(want).max(), 0)
    _close(got, want, 1e-4 + 3 * t.leaf.rounds)

  @parameterized.named_parameters(*CELLS)
  def test_vmap(self, model, leaf):
    t = _cell(model, leaf)
    over_x = jax.jit(jax.vmap(jc.lift(t.apply), in_axes=(None, 0)))
    xs = jnp.stack([t.x, t.x[::-1]])
    _close(over_x(t.q, xs)[0], t.y, 2e-5 + t.leaf.rounds)
    over_both = jax.jit(jax.vmap(jc.lift(t.apply)))
    stacked = jax.tree.map(lambda p: jnp.stack([p, p]), t.q)
    _close(over_both(stacked, xs)[0], t.y, 2e-5 + t.leaf.rounds)

  @parameterized.named_parameters(*CELLS)
  def test_scan(self, model, leaf):
    t = _cell(model, leaf)

    @jax.jit
    def run(q, xs):
      step = lambda q, x: (q, jc.lift(t.apply)(q, x))
      return jax.lax.scan(step, q, xs)[1]

    _close(run(t.q, t.x[None])[0], t.y, 2e-5 + t.leaf.rounds)

  @parameterized.named_parameters(*CELLS)
  def test_remat(self, model, leaf):
    t = _cell(model, leaf)
    remat = t.grads_of(jax.checkpoint(jc.lift(t.apply)))
    _close_gradients(remat, t.grads, 1e-5 + t.leaf.rounds)

  @parameterized.named_parameters(*CELLS)
  def test_shard_map(self, model, leaf):
    t = _cell(model, leaf)
    spec = PartitionSpec('data')
    run = jax.jit(
      jax.shard_map(
        jc.lift(t.apply),
        mesh=_mesh(),
        in_specs=(PartitionSpec(), spec),
        out_specs=spec,
        check_vma=False,
      )
    )
    if 'dropout' in model:  # each shard draws its own mask of its own shape
      t_dense = jax.jit(
        jax.shard_map(
          t.dense,
          mesh=_mesh(),
          in_specs=(PartitionSpec(), spec),
          out_specs=spec,
          check_vma=False,
        )
      )
      want = t_dense(t.q, t.x)
    else:
      want = t.y
    _close(run(t.q, t.x), want, 2e-5 + t.leaf.rounds)

  @parameterized.named_parameters(*CELLS)
  def test_jit_on_four_devices(self, model, leaf):
    t = _cell(model, leaf)
    mesh = _mesh()
    cut = jc.map_named(lambda path, x: _cut(path, x, t.uses), t.q)
    q = jc.device_put(t.q, mesh, cut)
    x = jc.device_put(t.x, mesh, PartitionSpec('data'))
    widest = max(
      len(p.sharding.device_set)
      for p in jax.tree.leaves(q)
      if not p.sharding.is_fully_replicated
    )
    self.assertEqual(widest, 4)
    _close(t.lifted(q, x), t.y, 2e-5 + t.leaf.rounds)

  @parameterized.named_parameters(*CELLS)
  def test_orbax_round_trip(self, model, leaf):
    t = _cell(model, leaf)
    with tempfile.TemporaryDirectory() as directory:
      ocp.save(f'{directory}/q', t.q)
      back = ocp.load(f'{directory}/q', jax.tree.map(_abstract, t.q))
    self.assertEqual(jax.tree.structure(back), jax.tree.structure(t.q))
    for a, b in zip(*map(jax.tree.leaves, (back, t.q)), strict=True):
      self.assertEqual(a.dtype, b.dtype)
      np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

  @parameterized.named_parameters(*CELLS)
  def test_no_recompilation_at_step_two(self, model, leaf):
    t = _cell(model, leaf)
    traces = []

    @jax.jit
    def step(q, x):
      traces.append(1)
      y = jc.lift(t.apply)(q, x)
      return jax.tree.map(lambda p: p, q), y

    q, y = step(t.q, t.x)
    _, again = step(q, t.x)
    np.testing.assert_array_equal(np.asarray(y), np.asarray(again))
    self.assertLen(traces, 1)

  @parameterized.named_parameters(*CELLS)
  def test_abstract_init(self, model, leaf):
    t = _cell(model, leaf)
    q = jax.eval_shape(t.compress, t.params)
    self.assertEqual(jax.tree.structure(q), jax.tree.structure(t.q))
    same = lambda a, b: self.assertEqual((a.shape, a.dtype), (b.shape, b.dtype))
    jax.tree.map(same, q, t.q)
    y = jax.eval_shape(jc.lift(t.apply), q, t.x)
    self.assertEqual((y.shape, y.dtype), (t.y.shape, t.y.dtype))

  @parameterized.named_parameters(*CELLS)
  def test_bf16_parameters(self, model, leaf):
    t = _cell(model, leaf)
    to_bf16 = lambda x: x.astype(jnp.bfloat16) if _is_float(x) else x
    q = t.compress(jax.tree.map(to_bf16, t.params))
    want = jax.jit(t.dense)(q, t.x)
    got = t.lifted(q, t.x)
    self.assertEqual(got.dtype, want.dtype)
    _close(got, want, 3e-2 + t.leaf.rounds)


def _cut(path, x, used):
  """Cuts an output axis of a weight over four devices, where one divides."""
  if not _is_weight(used[path]):
    return PartitionSpec()
  free = [a for a in uses.axes(path, x, used).free if x.shape[a] % 4 == 0]
  return PartitionSpec(
    *('data' if a in free[-1:] else None for a in range(-x.ndim, 0))
  )


def _abstract(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


if __name__ == '__main__':
  absltest.main()
