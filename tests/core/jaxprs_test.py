"""Equations: where they are, and running them as they are."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import jaxprs


def _equations(f, *args):
  return jax.make_jaxpr(f)(*args).jaxpr


def _tower(x):
  with jax.named_scope('tower'):
    y = jnp.sin(x)
    with jax.named_scope('top'):
      return jnp.cos(y) + x


def _first(a, b):
  return a


def _second(a, b):
  return b


def _keep(i, pair):
  return (pair[0] + 1, pair[1])


class JaxprsTest(parameterized.TestCase):
  def test_scopes_and_lines(self):
    jaxpr = _equations(_tower, 1.0)
    self.assertEqual(
      [(e.primitive.name, jaxprs.scope_names(e)) for e in jaxpr.eqns],
      [
        ('sin', ['tower']),
        ('cos', ['tower', 'top']),
        ('add', ['tower', 'top']),
      ],
    )
    for eqn in jaxpr.eqns:
      self.assertRegex(jaxprs.source_of(eqn), r'jaxprs_test\.py:\d+')

  def test_scopes_of_a_backward_pass_are_those_of_the_forward_pass(self):
    jaxpr = _equations(jax.grad(jax.checkpoint(_tower)), 1.0)
    (remat,) = (e for e in jaxpr.eqns if jaxprs.inside(e))
    for eqn in jaxprs.inside(remat)[0].eqns:
      self.assertIn(jaxprs.scope_names(eqn), (['tower'], ['tower', 'top'], []))

  def test_operations_within_an_equation_are_named_as_it_is(self):
    (eqn, *_) = _equations(_tower, 1.0).eqns

    def f(x):
      with jaxprs.within(eqn):
        return jnp.tanh(x)

    (tanh,) = _equations(f, 1.0).eqns
    self.assertEqual(jaxprs.scope_names(tanh), ['tower'])

  @parameterized.parameters(
    (lambda x: jax.jit(jnp.sin)(x), 1),
    (lambda x: lax.cond(x > 0, jnp.sin, jnp.cos, x), 2),
    (lambda x: lax.while_loop(lambda x: x < 9, lambda x: x + 1, x), 2),
    (lambda x: lax.scan(lambda c, _: (c * 2, None), x, length=3)[0], 1),
    (jnp.sin, 0),
  )
  def test_inside(self, f, bodies):
    eqn = _equations(f, 1.0).eqns[-1]
    self.assertLen(jaxprs.inside(eqn), bodies)

  def test_run_together(self):
    jaxpr = _equations(_tower, 1.0)
    sin, cos, _ = jaxpr.eqns
    (x,) = jaxpr.invars
    got = jaxprs.run_together([sin, cos], {x: 0.5}, [cos.outvars[0]])
    np.testing.assert_allclose(got, [np.cos(np.sin(0.5))], rtol=1e-6)

  def test_run_dense(self):
    (square,) = _equations(lambda x: x * x, 1.0).eqns
    self.assertEqual(jaxprs.run_dense(square, [3.0, 3.0]), [9.0])
    top = _equations(lambda x: lax.top_k(x, 1)[0], jnp.arange(3.0)).eqns[0]
    values, indices = jaxprs.run_dense(top, [jnp.array([1.0, 5.0, 2.0])])
    self.assertEqual((values.tolist(), indices.tolist()), ([5.0], [1]))

  def test_is_var(self):
    jaxpr = _equations(lambda x: 2 * x, 1.0)
    self.assertTrue(jaxprs.is_var(jaxpr.outvars[0]))
    self.assertFalse(jaxprs.is_var(jaxpr.eqns[0].invars[0]))

  @parameterized.named_parameters(
    ('itself', lambda a, b: a, 0),
    ('jit', lambda a, b: jax.jit(lambda a, b: (b * 2, a))(a, b)[1], 0),
    ('jits', lambda a, b: jax.jit(jax.jit(lambda a, b: b))(a, b), 1),
    ('cond', lambda a, b: lax.cond(a > 0, _second, _second, a, b), 1),
    ('cond of two', lambda a, b: lax.cond(a > 0, _second, _first, a, b), None),
    ('loop', lambda a, b: lax.fori_loop(0, 3, _keep, (a, b))[1], 1),
    ('computed', lambda a, b: a + b, None),
    ('constant', lambda a, b: 2.0, None),
  )
  def test_origin(self, f, which):
    jaxpr = _equations(f, 1.0, 2.0)
    found = jaxprs.origin(jaxpr, jaxpr.outvars[0])
    self.assertEqual(
      [found is v for v in jaxpr.invars], [i == which for i in range(2)]
    )

  def test_casts_to_vary(self):
    mesh = jax.make_mesh((4,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
    seen = []

    def f(x):
      y = jaxprs.vary(x, {'d'})
      seen.extend(sorted(jaxprs.varying(jax.typeof(v))) for v in (x, y))
      return jaxprs.vary(y, frozenset())

    out = jax.shard_map(f, mesh=mesh, in_specs=jax.P(), out_specs=jax.P('d'))
    self.assertEqual(out(jnp.ones(1)).shape, (4,))
    self.assertEqual(seen[:2], [[], ['d']])


def _body(eqn):
  return eqn.params['jaxpr'].jaxpr if eqn.primitive.name == 'jit' else None


@jax.jit
def _pair(a, b):
  dead = jnp.cos(a)
  del dead
  return b, jax.jit(jnp.tanh)(a) * a


@jax.jit
def _long(x):
  for _ in range(61):
    x = jnp.sin(x)
  return x


class FlattenedTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('nothing', lambda a, b: a + b, ['add']),
    ('a call', lambda a, b: _pair(a, b)[1], ['tanh', 'mul']),
    ('twice', lambda a, b: _pair(*_pair(a, b)), ['tanh', 'mul'] * 2),
    (
      'what it passes on',
      lambda a, b: jnp.exp(_pair(a, b)[0]),
      ['tanh', 'mul', 'exp'],
    ),
    (
      'a large one',
      lambda a, b: (_long(a), _pair(a, b)),
      ['jit', 'tanh', 'mul'],
    ),
    (
      'in a loop',
      lambda a, b: lax.fori_loop(0, 2, lambda i, x: _pair(x, b)[1], a),
      ['scan'],
    ),
  )
  def test_same(self, f, names):
    closed = jax.make_jaxpr(f)(0.5, 2.0)
    flat = jaxprs.flattened(closed.jaxpr, _body)
    # What only a result of a call that nobody reads needs is there as well.
    found = [e.primitive.name for e in flat.eqns]
    self.assertEqual(found, names)
    made = [v for e in flat.eqns for v in e.outvars]
    self.assertLen(set(map(id, made)), len(made))
    values = dict(zip(flat.invars, (0.5, 2.0), strict=True))
    wanted = [v for v in flat.outvars if v not in values]
    made = dict(
      zip(wanted, jaxprs.run_together(flat.eqns, values, wanted), strict=True)
    )
    got = [(values | made)[v] for v in flat.outvars]
    want = jax.tree.leaves(f(0.5, 2.0))
    np.testing.assert_allclose(got, want, rtol=1e-6)

  def test_a_layer_stays_apart(self):
    def f(w, x):
      layer = jax.jit(lambda w, x: sum(jnp.sin(w * x) for _ in range(6)))
      return layer(w, x) + jax.jit(jnp.cos)(w) + layer(x, x)

    jaxpr = _equations(f, 1.0, 2.0)
    for leaves, jits in (((), 0), (jaxpr.invars[:1], 1), (jaxpr.invars, 2)):
      flat = jaxprs.flattened(jaxpr, _body, leaves)
      names = [e.primitive.name for e in flat.eqns]
      self.assertEqual(names.count('jit'), jits)

  def test_scopes_and_lines(self):
    def f(x):
      with jax.named_scope('model'):
        return jax.jit(_tower)(jnp.where(x > 0, x, 1.0))

    flat = jaxprs.flattened(_equations(f, 1.0), _body)
    where = {e.primitive.name: jaxprs.scope_names(e) for e in flat.eqns}
    self.assertEqual(where['sin'], ['model', 'tower'])
    self.assertEqual(where['cos'], ['model', 'tower', 'top'])
    self.assertEqual(where['select_n'], ['model'])
    for eqn in flat.eqns:
      self.assertRegex(jaxprs.source_of(eqn), r'jaxprs_test\.py:\d+')


if __name__ == '__main__':
  absltest.main()
