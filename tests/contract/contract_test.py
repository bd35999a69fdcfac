"""The contract: leaf types x models x transforms.

    lift(f)(p, x) == f(materialize(p), x)

for every leaf type, in every model, under every JAX transform. A
new leaf type adds a row to `contract_leaves.LEAVES`, a new kind of model one to
`contract_models.CASES`, and both must pass everything below.

Compiling is what takes the time: the rows of a model are one program for each
transform, and what one of them raises is raised by its own test. Some models are the
same program in Linen as in NNX, equation by equation, which `test_twins` shows: what
depends on the program alone is then asked in NNX only.
"""

import functools
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import contract_leaves
import contract_models
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
from orbax.checkpoint import v1 as ocp

import jaxopt_compress as jc
from jaxopt_compress.analysis import uses

LEAVES = contract_leaves.LEAVES

TWINS = ('mlp', 'tied', 'einsum', 'custom_vjp')
# What the tree of parameters may change, its paths and its order; and Flax promotes
# bfloat16 in one way here and in another there.
ASKED_OF_TREES = (
  'jit',
  'grad',
  'jit on four devices',
  'orbax round trip',
  'no recompilation at step two',
  'abstract init',
  'bf16 parameters',
)
ASKED_OF_PROGRAMS = ('eager', 'remat', 'vmap', 'scan', 'shard_map')
# Its program is unusual, its tree is not; eager would take as long as all of these.
ASKED_OF_FOREIGN = ('jit', 'grad', 'remat', 'vmap', 'scan', 'shard_map')
# Leaves that are not cut along outputs; rows whose zeros are put back in products.
_WHOLE = (jc.PackedArray, jc.pruning.Bitmask, jc.pruning.SparseCodes)
_PUT_BACK = {'mask', 'mask of learned scores', 'bitmask', '1:2'}


def _rows(f):
  """`f(row, value, *args)` of all rows in one program; for some, an error."""
  errors = {}

  @jax.jit
  def program(rows, *args):
    out = {}
    for row, value in rows.items():
      try:
        out[row] = f(row, value, *args)
      except Exception as error:
        errors[row] = error
    return out

  def run(rows, *args):
    fine = {row: v for row, v in rows.items() if not _is_error(v)}
    return {**rows, **program(fine, *args), **errors}

  run.program = program
  return run


def _is_error(value):
  return isinstance(value, Exception)


def _of(results, row):
  if _is_error(results[row]):
    raise results[row]
  return results[row]


class Model:
  """What the tests of one model share, made once; everything is by row."""

  def __init__(self, name):
    self.name = name
    self.apply, self.params, self.x = contract_models.CASES[name]()
    self.uses = jc.uses(self.apply)(self.params, self.x)
    self.make = _rows(self._make)
    self.q, self.dense = self.leaves(self.params)
    self.of = functools.cache(self._of_transform)
    self.dense_program = functools.cache(lambda f: jax.jit(f(self.apply)))
    self.traces = 0
    self.step = _rows(self._step)
    self.stepped = self.step(self.q, self.x)
    self.y = self._outputs(self.stepped)

  def _make(self, row, params):
    q = LEAVES[row].compress(params, self.uses)
    return q, jc.materialize(q)

  def leaves(self, params):
    """What the rows make of parameters, and what they stand for."""
    made = self.make(dict.fromkeys(LEAVES, params))
    return [
      {row: m if _is_error(m) else m[i] for row, m in made.items()}
      for i in (0, 1)
    ]

  def _step(self, row, q, x):
    self.traces += row == 'int8'
    return jax.tree.map(lambda p: p, q), jc.lift(self.apply)(q, x)

  def _outputs(self, stepped):
    return {r: s if _is_error(s) else s[1] for r, s in stepped.items()}

  def _of_transform(self, transform):
    """The lifted model under a transform, of all rows."""
    f = transform(jc.lift(self.apply))
    return _rows(lambda row, q, x: f(q, x))(self.q, self.x)

  def under_dense(self, transform, row):
    """The same of what a row stands for: all rows are one program."""
    return self.dense_program(transform)(_of(self.dense, row), self.x)

  @functools.cached_property
  def dense_grads(self):
    """d loss / d (leaf, x), through what the leaves stand for."""
    found = {
      row: q if _is_error(q) else self.under_dense(_grad, row)
      for row, q in self.dense.items()
    }
    pull = _rows(
      lambda row, q, found: jax.vjp(jc.materialize, q)[1](found[row][0])[0]
    )
    return {
      row: q if _is_error(q) else (q, *found[row][1:])
      for row, q in pull(self.q, found).items()
    }

  def on_four_devices(self):
    mesh = _mesh()

    def put(q):
      cut = jc.rules.map_named(lambda path, x: _cut(path, x, self.uses), q)
      # Panels of columns do not come apart, nor do the segments of a bitmask.
      whole = lambda x, s: PartitionSpec() if isinstance(x, _WHOLE) else s
      cut = jax.tree.map(whole, q, cut, is_leaf=jc.is_compressed)
      return jc.parallel.device_put(q, mesh, cut)

    q = {r: q if _is_error(q) else put(q) for r, q in self.q.items()}
    return q, jc.parallel.device_put(self.x, mesh, PartitionSpec('data'))

  @functools.cached_property
  def sharded(self):
    q, x = self.on_four_devices()
    return q, self._outputs(self.step(q, x))

  @functools.cached_property
  def restored(self):
    q = {r: q for r, q in self.q.items() if not _is_error(q)}
    with tempfile.TemporaryDirectory() as directory:
      ocp.save(f'{directory}/q', q)
      back = ocp.load(f'{directory}/q', jax.tree.map(_abstract, q))
    return self.q | back

  @functools.cached_property
  def abstract(self):
    """Shapes of the leaves and outputs, from shapes of the parameters."""
    made = jax.eval_shape(self.make.program, dict.fromkeys(LEAVES, self.params))
    q = {row: m[0] for row, m in made.items()}
    return made, jax.eval_shape(self.step.program, q, self.x)

  @functools.cached_property
  def in_bf16(self):
    """Lifted and dense outputs where all parameters are bfloat16."""
    to_bf16 = lambda x: x.astype(jnp.bfloat16) if _is_float(x) else x
    params = jax.tree.map(to_bf16, self.params)
    q, dense = self.leaves(params)
    return self._outputs(self.step(q, self.x)), dense


@functools.lru_cache(maxsize=2)
def _model(name):
  return Model(name)


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


# ------------------------------------------------------------------ transforms


def _same(f):
  return f


def _grad(f):
  loss = lambda q, x: jnp.square(f(q, x)).mean()

  def grads(q, x):
    with_x = (0, 1) if _is_float(x) else (0,)  # tokens have no gradient
    return jax.grad(loss, with_x, allow_int=True)(q, x)

  return grads


def _remat(f):
  return _grad(jax.checkpoint(f))


def _vmap(f):
  """Over x, within one over weights and x."""

  def run(q, x):
    xs = jnp.stack([jnp.stack([x, x[::-1]])] * 2)
    twice = jax.tree.map(lambda p: jnp.stack([p, p]), q)
    return jax.vmap(jax.vmap(f, (None, 0)))(twice, xs)[1, 0]

  return run


def _scan(f):
  return lambda q, x: jax.lax.scan(lambda q, x: (q, f(q, x)), q, x[None])[1][0]


def _shard_map(f):
  spec = PartitionSpec('data')
  return jax.shard_map(
    f,
    mesh=_mesh(),
    in_specs=(PartitionSpec(), spec),
    out_specs=spec,
    check_vma=False,
  )


def _kind(leaf) -> str:
  """Its type; leaves of all layouts for CPUs are one kind."""
  packed = isinstance(leaf, jc.PackedArray)
  return 'PackedArray' if packed else type(leaf).__name__


def _dense(model, leaf):
  """Where leaves become dense, and why; nowhere else. Zeros always do."""
  found = set()
  if model in ('lstm linen', 'foreign'):
    # Their cells join the kernels of the gates before the product.
    no_rule = {'PackedArray': 'PanelArray', 'SparseCodes': 'SparseCodes'}
    if leaf in no_rule:
      found.add(('concatenate', f'{no_rule[leaf]} has no rule for it'))
    if leaf == 'LoRA':
      found.add(('concatenate', 'several weights have adapters of their own'))
  if model.startswith(('cnn', 'foreign')) and leaf == 'LoRA':
    # Channel by channel, a depthwise kernel is not one matrix in and out.
    found.add(('conv_general_dilated', 'a convolution in groups'))
  return found


def _asked(model):
  if model == 'foreign':
    return ASKED_OF_FOREIGN
  if model in [f'{twin} linen' for twin in TWINS]:
    return ASKED_OF_TREES
  return (*ASKED_OF_TREES, *ASKED_OF_PROGRAMS)


def _equations(jaxpr):
  """What each equation does, how, and to what; those within another after it."""
  for eqn in jaxpr.eqns:
    how = {name: str(value) for name, value in eqn.params.items()}
    # Programs follow below; functions are known by where they lie in memory.
    how = {
      k: v for k, v in how.items() if ' at 0x' not in v and '{ lambda' not in v
    }
    yield eqn.primitive.name, how, [str(v.aval) for v in eqn.invars]
    for inner in jax.tree.leaves(list(eqn.params.values())):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        yield from _equations(inner)


class ContractTest(parameterized.TestCase):
  """One test for each model, what is asked, and row."""

  @parameterized.parameters(*((twin,) for twin in TWINS))
  def test_twins(self, twin):
    def program(model):
      apply, params, x = contract_models.CASES[model]()
      return list(_equations(jax.make_jaxpr(apply)(params, x).jaxpr))

    self.assertNotEmpty(program(f'{twin} nnx'))
    self.assertEqual(program(f'{twin} nnx'), program(f'{twin} linen'))

  @parameterized.named_parameters(
    (f'{model}, {asked}, {row}', model, asked, row)
    for model in contract_models.CASES
    for asked in _asked(model)
    for row in LEAVES
  )
  def test_law(self, model, asked, row):
    getattr(self, '_' + asked.replace(' ', '_'))(_model(model), row)

  @parameterized.named_parameters(
    *(dict(testcase_name=m, model=m) for m in contract_models.CASES)
  )
  def test_stays_compressed(self, model):
    t = _model(model)
    for row in LEAVES.keys() - _PUT_BACK:
      q = _of(t.q, row)
      leaves = jax.tree.leaves(q, is_leaf=jc.is_compressed)
      kinds = {_kind(x) for x in leaves if jc.is_compressed(x)}
      if 'PackedArray' in kinds:  # tables that no product reads are not packed
        kinds -= {'QArray', 'QDotArray'}
      self.assertLen(kinds, 1)
      dense = {
        (met.primitive, met.reason)
        for met in jc.explain(t.apply)(q, t.x)
        if not met.native
      }
      self.assertEqual(dense, _dense(model, *kinds), row)

  def _jit(self, t, row):
    got, want = _of(t.y, row), t.under_dense(_same, row)
    self.assertEqual(got.dtype, want.dtype)
    _close(got, want, 2e-5 + LEAVES[row].rounds)
    leaves = jax.tree.leaves(t.q[row], is_leaf=jc.is_compressed)
    self.assertTrue(any(map(jc.is_compressed, leaves)))

  def _eager(self, t, row):
    got = jc.lift(t.apply)(_of(t.q, row), t.x)
    _close(got, _of(t.y, row), 2e-5 + LEAVES[row].rounds)

  def _grad(self, t, row):
    got, want = _of(t.of(_grad), row), _of(t.dense_grads, row)
    tolerance = 1e-4 + 3 * LEAVES[row].rounds
    _close_gradients(got[0], want[0], tolerance)
    if not _is_float(t.x):
      return self.assertIn('tied', t.name)
    self.assertGreater(np.abs(want[1]).max(), 0)
    _close(got[1], want[1], tolerance)

  def _remat(self, t, row):
    got, want = _of(t.of(_remat), row), _of(t.of(_grad), row)
    _close_gradients(got, want, 1e-5 + LEAVES[row].rounds)

  def _vmap(self, t, row):
    got = _of(t.of(_vmap), row)
    _close(got, _of(t.y, row), 2e-5 + LEAVES[row].rounds)

  def _scan(self, t, row):
    got = _of(t.of(_scan), row)
    _close(got, _of(t.y, row), 2e-5 + LEAVES[row].rounds)

  def _shard_map(self, t, row):
    want = _of(t.y, row)
    if 'dropout' in t.name:  # each shard draws its own mask of its own shape
      want = t.under_dense(_shard_map, row)
    _close(_of(t.of(_shard_map), row), want, 2e-5 + LEAVES[row].rounds)

  def _jit_on_four_devices(self, t, row):
    q, y = t.sharded
    parts = [p.sharding for p in jax.tree.leaves(_of(q, row))]
    self.assertEqual(max(len(p.device_set) for p in parts), 4)
    if not row.startswith(('packed', 'bitmask')):
      self.assertFalse(all(p.is_fully_replicated for p in parts))
    _close(_of(y, row), _of(t.y, row), 2e-5 + LEAVES[row].rounds)

  def _orbax_round_trip(self, t, row):
    q, back = _of(t.q, row), t.restored[row]
    self.assertEqual(jax.tree.structure(back), jax.tree.structure(q))
    for a, b in zip(*map(jax.tree.leaves, (back, q)), strict=True):
      self.assertEqual(a.dtype, b.dtype)
      np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

  def _no_recompilation_at_step_two(self, t, row):
    q, y = _of(t.stepped, row)
    # What jit looks at: a program is compiled again where one of them changes.
    self.assertEqual(jax.tree.structure(q), jax.tree.structure(t.q[row]))
    typeof = lambda q: [jax.typeof(p) for p in jax.tree.leaves(q)]
    self.assertEqual(typeof(q), typeof(t.q[row]))
    before = t.traces
    after = {r: s if _is_error(s) else s[0] for r, s in t.stepped.items()}
    _, again = _of(t.step(after, t.x), row)
    self.assertEqual(t.traces, before)
    np.testing.assert_array_equal(np.asarray(y), np.asarray(again))

  def _abstract_init(self, t, row):
    made, stepped = t.abstract
    same = lambda a, b: self.assertEqual((a.shape, a.dtype), (b.shape, b.dtype))
    jax.tree.map(same, made[row], (_of(t.q, row), t.dense[row]))
    jax.tree.map(same, stepped[row], (t.q[row], _of(t.y, row)))

  def _bf16_parameters(self, t, row):
    got, dense = (_of(found, row) for found in t.in_bf16)
    want = t.dense_program(_same)(dense, t.x)
    self.assertEqual(got.dtype, want.dtype)
    _close(got, want, 3e-2 + LEAVES[row].rounds)


def _cut(path, x, used):
  """Cuts an output axis of a weight over four devices, where one divides."""
  if not contract_leaves.is_weight(used[path]):
    return PartitionSpec()
  free = [a for a in uses.axes(path, x, used).free if x.shape[a] % 4 == 0]
  return PartitionSpec(
    *('data' if a in free[-1:] else None for a in range(-x.ndim, 0))
  )


def _abstract(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


if __name__ == '__main__':
  absltest.main()
