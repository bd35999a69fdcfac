"""Several leaves as one: it stands for what the joined arrays are, in codes."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import making
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.quantization import joins
from jaxopt_compress.quantization import qarray


def _leaf(format='int8', shape=(6, 4), group=0, seed=0, symmetric=True):
  w = making.normal(*shape, seed=seed)
  spec = jc.schemes.Spec(
    format,
    'group' if group else 'channel',
    group,
    symmetric=symmetric,
  )
  blocks = ((-2, group),)
  return qarray.quantize_array(w, spec, blocks, packed=-2)


KINDS = {
  'int8': {},
  'asymmetric': dict(symmetric=False),
  'int4': dict(format='int4'),
  'int4, filled': dict(format='int4', shape=(5, 4)),
  'groups': dict(group=2),
  'ragged groups': dict(group=4),
  'float8': dict(format='e4m3'),
  'nf4': dict(format='nf4', group=3),
}

JOINS = {
  'columns': lambda a, b: jnp.concatenate([a, b, a], axis=1),
  'rows': lambda a, b: jnp.concatenate([a, b], axis=0),
  'a shorter one': lambda a, b: jnp.concatenate([a[:2], b], axis=0),
  'stack': lambda a, b: jnp.stack([a, b]),
  'stack behind': lambda a, b: jnp.stack([a, b], axis=2),
  'choice': lambda a, b: jnp.where(jnp.bool(True), a, b),
  'tile': lambda a, b: jnp.tile(a, (2, 3)),
  'pad': lambda a, b: jnp.pad(a, ((2, 0), (1, 3)), constant_values=0.5),
  'roll': lambda a, b: jnp.roll(b, 2, axis=0),
  'roll columns': lambda a, b: jnp.roll(b, 1, axis=1),
}
# What is cut inside of a group before it is joined.
DENSE = {
  ('ragged groups', 'a shorter one'),
  ('nf4', 'a shorter one'),
  ('nf4', 'roll'),
}


class JoinsTest(parameterized.TestCase):
  @parameterized.parameters(*KINDS)
  def test_exact_and_still_a_leaf(self, kind):
    a, b = (_leaf(**KINDS[kind], seed=i) for i in (0, 1))

    def joined(a, b):
      return {name: join(a, b) for name, join in JOINS.items()}

    got = jax.jit(jc.lift(joined, keep=True))(a, b)
    want = jax.jit(joined)(a.materialize(), b.materialize())
    for name, leaf in got.items():
      with self.subTest(name):
        stays = isinstance(leaf, qarray.QArray)
        self.assertEqual(stays, (kind, name) not in DENSE)
        np.testing.assert_array_equal(jc.materialize(leaf), want[name])

  def test_drawn(self):
    a, b = _leaf(shape=(4, 2)), _leaf(shape=(2, 2), seed=1)
    # One scale a column of each; joined over rows, one for each two rows.
    rows = joins.concatenate(a, b, dimension=0)
    np.testing.assert_array_equal(
      rows.scale, [a.scale[0], a.scale[0], b.scale[0]]
    )
    self.assertEqual(rows.blocks, ((-2, 2),))
    columns = joins.concatenate(a, a, dimension=1)
    np.testing.assert_array_equal(columns.scale, jnp.tile(a.scale, (1, 2)))
    self.assertEqual(columns.blocks, ())

  def test_what_stays_apart(self):
    int8, int4 = _leaf(), _leaf('int4')
    static = [
      qarray.QDotArray(
        int8,
        jnp.full((1, 1), s),
        act=jc.schemes.Spec('int8', granularity='tensor', static=True),
      )
      for s in (0.1, 0.2)
    ]
    for a, b, why in (
      (int8, jnp.ones((6, 4)), 'not in codes'),
      (int8, int4, 'formats'),
      (int8, _leaf(group=2), 'granularity'),
      (*static, 'its own way'),
      (qarray.QDotArray(int8), int8, 'not in codes'),
    ):
      f = lambda a, b: jnp.concatenate([a, b], axis=1)
      want = f(*jc.materialize((a, b)))
      np.testing.assert_array_equal(jc.lift(f)(a, b), want)
      self.assertIn(why, ' '.join(m.reason for m in jc.explain(f)(a, b)))

  def test_pieces_of_one_leaf_share_its_range(self):
    static = qarray.QDotArray(
      _leaf(),
      jnp.full((1, 1), 0.1),
      act=jc.schemes.Spec('int8', granularity='tensor', static=True),
    )
    moved = jc.lift(lambda w: jnp.roll(w, 2, 0), keep=True)(static)
    self.assertIsInstance(moved, qarray.QDotArray)
    self.assertEqual(moved.weight.scale.shape, (1, 4))

  def test_gates_of_a_recurrent_cell(self):
    cell = nn.OptimizedLSTMCell(8)
    x = making.normal(3, 16)
    carry = cell.initialize_carry(jax.random.key(0), x.shape)
    params = cell.init(jax.random.key(1), carry, x)
    f = lambda p, x: cell.apply(p, carry, x)[1]
    uses = jc.uses(f)(params, x)
    rules = [('.*kernel', 'W8A8'), ('.*', None)]
    q = jc.quantize(params, rules, uses)
    self.assertTrue(all(m.native for m in jc.explain(f)(q, x)))
    # What is trained is what is stored, to the bit.
    comp = jc.fake_quantize(rules, uses)

    def trained(p):
      y = jc.lift(f)(comp.apply(p, comp.init(p)), x)
      return y.sum(), y

    g, y = jax.jit(jax.grad(trained, has_aux=True))(params)
    np.testing.assert_array_equal(jax.jit(jc.lift(f))(q, x), y)
    np.testing.assert_allclose(y, f(params, x), atol=0.02)
    g_want = jax.grad(lambda p: f(p, x).sum())(params)
    g = g['params']['ii']['kernel']
    g_want = g_want['params']['ii']['kernel']
    self.assertLess(jnp.abs(g - g_want).max(), 0.2 * jnp.abs(g_want).max())


if __name__ == '__main__':
  absltest.main()
