from absl.testing import absltest
from absl.testing import parameterized
import chex
import in_out
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.analysis.plan import gathered
from jaxopt_compress.pruning.storage import bitmask
from jaxopt_compress.pruning.storage import n_m_array

KEY = jax.random.key(0)
W = {'w': jax.random.normal(KEY, (24, 16))}


def _apply(p, x):
  return x @ p['w']


X = jnp.ones((2, 24))
USES = jc.uses(_apply)(W, X)


def _stored(scheme):
  return jc.quantize(W, [('w', scheme)], USES)['w']


def _trained(scheme):
  comp = jc.fake_quantize([('w', scheme)], USES)
  return comp.apply(W, comp.init(W))['w']


def _adapted(base):
  adapters = jc.adapters.add_lora(base, [('w', 2)], USES, key=KEY)
  adapters = jax.tree.map(lambda x: x + 0.1, adapters)
  return jc.adapters.with_lora(base, adapters, USES)['w']


# Two of each four of a column are kept.
KEPT = jnp.where((jnp.arange(24) % 4 < 2)[:, None], W['w'], 0.0)


def _sparse_codes():
  q = jc.quantize({'w': KEPT}, [('w', 'int8')], USES)
  return jc.sparsify(q, [('w', 'smallest')], USES)[0]['w']


LEAVES = {
  'mask': lambda: jc.pruning.Masked(W['w'], W['w'] > 0),
  'int8': lambda: _stored('int8'),
  'int8, static int8': lambda: _stored('int8, int8'),
  'int4 asym': lambda: _stored('int4 asym'),
  'int3': lambda: _stored('int3'),
  'int4 g4': lambda: _stored('int4 g4'),
  'nvfp4 g4': lambda: _stored('e2m1 g4 nv'),
  'nf4 g4 dq': lambda: _stored('nf4 g4 dq'),
  'mask of int4 g4': lambda: jc.pruning.Masked(_stored('int4 g4'), W['w'] > 0),
  'bitmask': lambda: bitmask.of_array(KEPT),
  '2:4': lambda: n_m_array.of_array(KEPT, 2, 4, -2),
  'int8 without zeros': _sparse_codes,
  'fake int8': lambda: _trained('int8'),
  'adapters': lambda: _adapted(W),
  'adapters of int4 g4': lambda: _adapted({'w': _stored('int4 g4')}),
}

# Rows in groups of four that stay whole, columns in any order.
ROWS = np.r_[4:8, 12:20]
COLUMNS = np.array([3, 0, 8, 9, 15])


class GatheredTest(parameterized.TestCase):
  @parameterized.parameters(*LEAVES)
  def test_stands_for_the_same(self, name):
    leaf = LEAVES[name]()
    out = gathered.taken(leaf, {0: ROWS, 1: COLUMNS})
    self.assertIs(type(out), type(leaf))
    np.testing.assert_array_equal(
      out.materialize(), leaf.materialize()[ROWS][:, COLUMNS]
    )
    # What shares bytes goes on to.
    cut = len(ROWS) * len(COLUMNS) / W['w'].size
    self.assertLess(jc.nbytes({'w': out}), (cut + 0.2) * jc.nbytes({'w': leaf}))

  @parameterized.parameters('mask', 'int4 g4', 'adapters', 'bitmask')
  def test_other_entries_for_each_row(self, name):
    leaf = LEAVES[name]()
    dense = np.asarray(leaf.materialize())
    # Of each column two groups of four rows, of each row three columns.
    rows = np.arange(8)[:, None] + 4 * (np.arange(16) % 4)
    columns = (np.arange(24)[:, None] + np.arange(3)) % 16
    for axis, index in ((0, rows), (1, columns)):
      if axis and 'g4' in name:  # rows of a group take other columns
        with self.assertRaisesRegex(ValueError, 'groups of rows share a scale'):
          gathered.taken(leaf, {axis: index})
        continue
      out = gathered.taken(leaf, {axis: index})
      self.assertIs(type(out), type(leaf))
      np.testing.assert_array_equal(
        out.materialize(), np.take_along_axis(dense, index, axis)
      )

  @parameterized.parameters(
    (
      'int4 g4',
      np.array([0, 1, 2, 4]),
      'w: 4 entries along axis -2 share a sc',
    ),
    ('int4 g4', np.array([3, 2, 1, 0]), 'in multiples of 4 that begin at one'),
    ('packed', np.arange(8), r'jc.pack\(jc.shrink\(plan, jc.unpack\(tree'),
  )
  def test_refused(self, name, rows, message):
    params = {'v': jnp.ones((2, 24)), 'w': W['w']}
    fun = lambda p, x: x @ p['v'] @ p['w']
    x = jnp.ones((1, 2))
    plan = jc.Plan(jc.structure(fun)(params, x), {'v:-1': rows})
    scheme = 'int8' if name == 'packed' else name
    rules = [('w', scheme), ('.*', None)]
    q = jc.quantize(params, rules, jc.uses(fun)(params, x))
    if name == 'packed':
      q = jc.pack(q, jc.uses(fun)(params, x), target='cpu')
    with self.assertRaisesRegex(ValueError, message):
      jc.shrink(plan, q)

  def test_groups_that_come_apart(self):
    leaf = n_m_array.of_array(KEPT, 2, 4, -2)
    rows = np.r_[:3, 4:7, 8:10]
    for run in (
      gathered.taken,
      jax.jit(lambda q, _: gathered.taken(q, {0: rows})),
    ):
      out = run(leaf, {0: rows})
      self.assertIsInstance(out, bitmask.Bitmask)
      np.testing.assert_array_equal(out.materialize(), KEPT[rows])

  def test_cut_over_devices(self):
    mesh = jax.make_mesh((4,), ('model',))
    cut = jax.sharding.NamedSharding(mesh, jax.P(None, 'model'))
    columns = np.r_[:4, 12:16]
    dense = jax.device_put(W['w'], cut)
    leaf = jc.quantize({'w': dense}, [('w', 'int8')], USES)['w']
    for x in (dense, leaf):
      for run in (
        gathered.taken,
        jax.jit(lambda x, _: gathered.taken(x, {1: columns})),
      ):
        out = run(x, {1: columns})
        array = out if x is dense else out.qvalue
        self.assertEqual(array.sharding.spec, jax.P(None, 'model'))
        want = np.asarray(jc.materialize({'w': x})['w'])[:, columns]
        np.testing.assert_array_equal(jc.materialize({'w': out})['w'], want)

  def test_abstract(self):
    out = gathered.taken(
      jax.ShapeDtypeStruct((4, 3), jnp.int8), {0: np.arange(2)}
    )
    self.assertEqual((out.shape, out.dtype), ((2, 3), jnp.int8))

  def test_one_entry_for_each_row(self):
    rows = np.array([[0], [1], [0]])
    x = np.arange(6).reshape(3, 2)
    for given in (x, jnp.asarray(x)):
      out = gathered.taken(given, {1: rows})
      self.assertEqual(out.tolist(), [[0], [3], [4]])

  def test_ragged_last_block(self):
    #  blocks of 8 of 12 rows: a whole one and a short one, which may go alone
    w = {'w': W['w'][:12]}
    leaf = jc.quantize(w, [('w', 'int4 g8')], in_out.IN_OUT)['w']
    for rows in (np.arange(8), np.arange(8, 12), np.r_[:8, :8]):
      out = gathered.taken(leaf, {0: rows})
      np.testing.assert_array_equal(out.materialize(), leaf.materialize()[rows])
    with self.assertRaisesRegex(ValueError, '8 entries along axis -2'):
      gathered.taken(leaf, {0: np.r_[8:12, :8]})

  def test_under_jit_and_of_numpy(self):
    leaf = LEAVES['int4 g4']()
    run = jax.jit(lambda q: gathered.taken(q, {0: ROWS}))
    chex.assert_trees_all_equal(run(leaf), gathered.taken(leaf, {0: ROWS}))
    out = gathered.taken(np.asarray(W['w']), {0: ROWS, 1: COLUMNS})
    self.assertIsInstance(out, jax.Array)
    np.testing.assert_array_equal(out, W['w'][ROWS][:, COLUMNS])


if __name__ == '__main__':
  absltest.main()
