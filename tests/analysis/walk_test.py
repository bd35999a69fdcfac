"""Programs inside programs are entered, and every equation knows its place."""

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

import jaxopt_compress as jc
from jaxopt_compress.analysis import walk

W, X = jnp.ones((6, 6)), jnp.ones((8, 6))


def _tanh(x):
  return jnp.tanh(x)


def _custom_jvp(x):
  f = jax.custom_jvp(_tanh)
  f.defjvp(lambda primals, tangents: (f(*primals), tangents[0]))
  return f(x)


def _custom_vjp(x):
  f = jax.custom_vjp(_tanh)
  f.defvjp(lambda x: (x, None), lambda _, g: (g,))
  return f(x)


def _scan(x):
  return lax.scan(lambda c, x: (c + 1, jnp.tanh(x)), 0, x, reverse=True)


def _while(x):
  return lax.while_loop(lambda c: jnp.all(c < 1), _tanh, x)


def _shard_map(x):
  mesh = jax.make_mesh((4,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
  return jax.shard_map(_tanh, mesh=mesh, in_specs=P('d'), out_specs=P('d'))(x)


class EnterTest(parameterized.TestCase):
  @parameterized.named_parameters(
    dict(testcase_name='none', f=_tanh, record=None),
    dict(testcase_name='jit', f=jax.jit(_tanh), record=walk.Call),
    dict(testcase_name='remat', f=jax.checkpoint(_tanh), record=walk.Call),
    dict(testcase_name='custom_jvp', f=_custom_jvp, record=walk.Call),
    dict(testcase_name='custom_vjp', f=_custom_vjp, record=walk.Call),
    dict(
      testcase_name='cond',
      f=lambda x: lax.cond(True, _tanh, lambda x: x, x),
      record=walk.Cond,
      bodies=2,
    ),
    dict(testcase_name='scan', f=_scan, record=walk.Scan, times=8),
    dict(testcase_name='while', f=_while, record=walk.While, bodies=2),
    dict(
      testcase_name='shard_map', f=_shard_map, record=walk.ShardMap, times=4
    ),
  )
  def test_one_record_for_each(self, f, record, bodies=1, times=1):
    closed = jax.make_jaxpr(f)(X)
    inside = walk.enter(closed.jaxpr.eqns[-1])
    self.assertIn('tanh', [at.eqn.primitive.name for at in walk.places(closed)])
    if record is None:
      self.assertIsNone(inside)
      return
    self.assertIsInstance(inside, record)
    self.assertLen(inside.bodies, bodies)
    self.assertEqual(inside.times, times)

  def test_a_scan_says_which_operand_is_what(self):
    f = lambda c, h, x: lax.scan(lambda h, x: (h + c, x * c), h, x)
    (eqn,) = jax.make_jaxpr(f)(1.0, 2.0, jnp.ones(3)).jaxpr.eqns
    inside = walk.enter(eqn)
    self.assertEqual((inside.num_consts, inside.num_carry), (1, 1))
    self.assertFalse(inside.reverse)

  def test_opaque_programs_are_counted_not_entered(self):
    def f(a, b):
      return lax.custom_linear_solve(
        lambda x: a @ x, b, lambda _, b: b @ b, symmetric=True
      )

    closed = jax.make_jaxpr(f)(jnp.eye(3), jnp.ones((3, 3)))
    (at,) = walk.places(closed)
    self.assertEqual(at.path, 'custom_linear_solve')
    (solve,) = walk.enter(at.eqn).bodies
    self.assertEqual([a.path for a in walk.places(solve)], ['dot_general'])


class TraceTest(absltest.TestCase):
  def test_parameters_come_first_and_flags_stay(self):
    def f(p, x, *, flag):
      return x @ p['b'] if flag else x + p['n']

    p = {'a': jax.ShapeDtypeStruct((2, 6), jnp.float32), 'b': W, 'n': 3}
    closed, named = walk.trace(f, p, (X,), {'flag': True})
    self.assertEqual([path for path, _ in named], ['a', 'b'])
    shapes = [v.aval.shape for v in closed.jaxpr.invars]
    self.assertEqual(shapes, [(2, 6), (6, 6), (8, 6)])
    self.assertEqual([at.path for at in walk.places(closed)], ['dot_general'])

  def test_a_leaf_is_what_it_stands_for(self):
    q = jc.quantize({'w': W}, [('w', jc.W4A16)], uses=in_out.IN_OUT)
    closed, ((path, leaf),) = walk.trace(lambda p, x: x @ p['w'], q, (X,), {})
    self.assertEqual((path, leaf.shape), ('w', (6, 6)))
    self.assertEqual(
      [v.aval.shape for v in closed.jaxpr.invars], [(6, 6), (8, 6)]
    )


class AtTest(absltest.TestCase):
  def test_scopes_and_sources_of_where_one_is(self):
    def layer(h, w):
      with jax.named_scope('layer'):
        return jax.nn.relu(h) @ w, None

    def f(ws, x):
      with jax.named_scope('stack'):
        return lax.scan(layer, x, ws)[0]

    closed = jax.make_jaxpr(f)(W[None], X)
    at = {at.path: at for at in walk.places(closed)}
    self.assertEqual(list(at), ['stack/layer/max', 'stack/layer/dot_general'])
    # `relu` is a function of JAX: its line is the one that calls it.
    lines = [a.source for a in at.values()]
    self.assertEqual(len(set(lines)), 1)
    self.assertRegex(lines[0], r'walk_test\.py:\d+.*layer')
    self.assertEqual(
      [a.eqn.primitive.name for a, _ in at['stack/layer/max'].around[:1]],
      ['scan'],
    )

  def test_live_equations(self):
    f = lambda x: (x + 1, jnp.sin(x))[0]
    closed = jax.make_jaxpr(f)(X)
    self.assertEqual([e.primitive.name for e in walk.live(closed)], ['add'])


if __name__ == '__main__':
  absltest.main()
