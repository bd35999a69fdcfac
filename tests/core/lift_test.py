"""The verb: lift(f)(leaf, x) == f(materialize(leaf), x), whatever f does."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
from signs import signs
from signs import STACK
from signs import W
from signs import X

from jaxopt_compress.analysis import explain
from jaxopt_compress.analysis import scopes
from jaxopt_compress.core import array
from jaxopt_compress.core import lift


def _equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)
  jax.tree.map(lambda a, b: _same_type(a, b), a, b)


def _same_type(a, b):
  a, b = jax.typeof(a), jax.typeof(b)
  assert (a.dtype, a.weak_type) == (b.dtype, b.weak_type), (a, b)


# ------------------------------------------------------------- functions of w


@jax.custom_vjp
def _doubled_gradient(x, w):
  return x @ w


_doubled_gradient.defvjp(
  lambda x, w: (x @ w, (x, w)),
  lambda saved, g: (2 * g @ saved[1].T, 2 * saved[0].T @ g),
)


@jax.custom_jvp
def _tripled_gradient(x, w):
  return x @ w


@_tripled_gradient.defjvp
def tripled(primals, tangents):
  (x, w), (dx, dw) = primals, tangents
  return x @ w, 3 * (dx @ w + x @ dw)


@jax.jit
def _block(w, x):
  return jnp.maximum(x @ w, 0)


@functools.partial(jax.jit, static_argnames='power')
def _powered(w, x, power):
  return (x @ w) ** power


def _layers(w, x):
  for _ in range(3):
    x = _block(w, x) % 8
  return x


def _while(w, x):
  def step(state):
    i, x = state
    return i + 1, (x @ w) % 4

  # The leaf is a constant of the test and of the step.
  return lax.while_loop(lambda s: s[0] < 2 + 0 * w[0, 0], step, (0.0, x))[1]


def _scan_carry(w, x):
  def step(carry, x):
    w, total = carry
    return (w, total + x @ w), total

  return lax.scan(step, (w, jnp.zeros(8)), x)[0]


def _scan_carry_changes(w, x):
  return lax.scan(lambda w, x: (w * 2, x @ w), w, x)[1]


def _fori(w, x):
  return lax.fori_loop(0, 3, lambda i, x: (x @ w) % 4, x)


def _cond(w, x):
  return lax.cond(x.sum() > 0, lambda x: x @ w, lambda x: x + w[0, 0], x)


def _switch(w, x):
  return lax.switch(2, [lambda: x, lambda: x @ w, lambda: x @ w.T])


def _platform(w, x):
  return lax.platform_dependent(
    w, x, cpu=lambda w, x: x @ w, default=lambda w, x: x * 0
  )


def _closed_over(w, x):
  table = jnp.arange(8.0) + np.ones(8, np.float32)
  return x @ w + table[None] * jnp.float32(2)


def _vmap_columns(w, x):
  return jax.vmap(lambda c: x @ c, in_axes=1)(w)


def _hessian(w, x):
  return jax.hessian(lambda x: jnp.square(x @ w).sum())(x[0])


def _linearize(w, x):
  y, tangent = jax.linearize(lambda x: jnp.square(x @ w), x)
  return y, tangent(x)


CASES = dict(
  dot=lambda w, x: x @ w,
  dot_of_left=lambda w, x: w @ x.T,
  transposed=lambda w, x: x @ w.T,
  twice=lambda w, x: (x @ w) @ w + x @ w.T,
  with_itself=lambda w, x: w @ w,
  elementwise=lambda w, x: w * 2 + w,
  returned=lambda w, x: (w, [x], {'w': w}),
  unused=lambda w, x: x + 1,
  weak=lambda w, x: (x.sum() * 0 + 2.0, jnp.asarray(3.0), 4),
  effects_of_none=lambda w, x: None,
  bf16=lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16),
  einsum=lambda w, x: jnp.einsum('ij,kj->ik', w, x),
  stopped=lambda w, x: x @ lax.stop_gradient(w),
  barrier=lambda w, x: x @ lax.optimization_barrier((w, x))[0],
  copied=lambda w, x: x @ jnp.array(w, copy=True),
  layers=_layers,
  static_argument=lambda w, x: _powered(w, x, power=2),
  custom_vjp=lambda w, x: _doubled_gradient(x, w),
  custom_jvp=lambda w, x: _tripled_gradient(x, w),
  custom_without_weight=lambda w, x: jax.nn.relu(x @ w),
  remat=lambda w, x: jax.checkpoint(_layers)(w, x),
  scan_constant=lambda w, x: lax.scan(lambda c, x: (c + x @ w, x), x[0], x),
  scan_carry=_scan_carry,
  scan_carry_changes=_scan_carry_changes,
  scan_rows=lambda w, x: lax.scan(lambda c, r: (c + r, r), x[0], w),
  while_loop=_while,
  fori=_fori,
  cond=_cond,
  switch=_switch,
  platform=_platform,
  map=lambda w, x: lax.map(lambda x: x @ w, x),
  associative_scan=lambda w, x: lax.associative_scan(jnp.add, x @ w),
  closed_over=_closed_over,
  vmap_examples=lambda w, x: jax.vmap(lambda x: x @ w)(x),
  vmap_columns=_vmap_columns,
  grad_inside=lambda w, x: jax.grad(lambda x: jnp.square(x @ w).sum())(x),
  hessian_inside=_hessian,
  linearize_inside=_linearize,
  jvp_inside=lambda w, x: jax.jvp(lambda x: x @ w, (x,), (x,)),
  gather=lambda w, x: w[jnp.array([0, 2, 2])],
  sort=lambda w, x: jnp.sort(w, axis=0),
)


def _sum_of_floats(f):
  def total(w, x):
    leaves = map(jnp.asarray, jax.tree.leaves(f(w, x)))
    floats = [y for y in leaves if jnp.issubdtype(y.dtype, jnp.floating)]
    return sum((y.astype(jnp.float32).sum() for y in floats), jnp.float32(0))

  return total


class LawTest(parameterized.TestCase):
  @parameterized.parameters(
    'dot',
    'twice',
    'returned',
    'weak',
    'effects_of_none',
    'layers',
    'custom_vjp',
    'scan_carry',
    'while_loop',
    'cond',
    'platform',
    'closed_over',
    'jvp_inside',
  )
  def test_eager(self, name):
    f = CASES[name]
    _equal(lift.lift(f)(W, X), f(W.materialize(), X))

  @parameterized.parameters(*CASES)
  def test_jit_and_gradient(self, name):
    f = CASES[name]
    both = lambda f: jax.value_and_grad(_sum_of_floats(f), 1)
    if name in ('while_loop', 'effects_of_none'):
      both = lambda f: f  # no reverse-mode derivative
    got = jax.jit(both(lift.lift(f)))(W, X)
    _equal(got, jax.jit(both(f))(W.materialize(), X))

  @parameterized.parameters('dot', 'scan_constant', 'cond', 'remat', 'layers')
  def test_vmap(self, name):
    f = CASES[name]
    xs = jnp.stack([X, X + 1, -X])
    want = jax.vmap(f)(STACK.materialize(), xs)
    _equal(jax.vmap(lift.lift(f))(STACK, xs), want)
    want = jax.vmap(f, (None, 0))(W.materialize(), xs)
    _equal(jax.vmap(lift.lift(f), (None, 0))(W, xs), want)

  @parameterized.named_parameters(
    dict(testcase_name='plain', options={}),
    dict(testcase_name='reverse', options=dict(reverse=True)),
    dict(testcase_name='unroll', options=dict(unroll=2)),
  )
  def test_scan_over_a_stack(self, options):
    def f(stack, x):
      body = lambda x, w: ((x @ w) % 4, x)
      return lax.scan(body, x, stack, **options)

    _equal(jax.jit(lift.lift(f))(STACK, X), f(STACK.materialize(), X))
    met = explain.explain(f)(STACK, X)
    self.assertEqual(
      [(m.primitive, m.native) for m in met], [('dot_general', True)]
    )

  def test_scan_of_a_leaf_whose_parts_lack_the_axis(self):
    f = lambda w, x: lax.scan(lambda c, r: (c + r, r * x[0]), x[0], w)
    _equal(lift.lift(f)(W, X), f(W.materialize(), X))
    (met,) = explain.explain(f)(W, X)
    self.assertEqual(met.primitive, 'scan')
    self.assertIn('not all its parts have the scanned axis', met.reason)

  def test_second_derivatives(self):
    f = lambda w, x: jnp.square(x @ w).sum()
    hessian = jax.hessian(f, 1)
    got = jax.hessian(lift.lift(f), 1)(W, X[:2])
    _equal(got, hessian(W.materialize(), X[:2]))

  def test_gradient_of_the_parts(self):
    f = lambda w, x: jnp.square(x @ w).sum()
    g = jax.grad(lift.lift(f), allow_int=True)(W, X)
    want = jax.grad(lambda s: f(W.sign * s, X))(W.scale)
    _equal(g.scale, want)
    self.assertEqual(g.sign.dtype, jax.dtypes.float0)


class CustomDerivativeTest(parameterized.TestCase):
  @parameterized.parameters((_doubled_gradient, 2), (_tripled_gradient, 3))
  def test_it_is_the_custom_one(self, f, factor):
    lifted = lift.lift(lambda w, x: f(x, w).sum())
    g = jax.grad(lifted, 1)(W, X)
    _equal(g, factor * jnp.ones((4, 8)) @ W.materialize().T)
    g = jax.grad(lifted, allow_int=True)(W, X)
    _equal(g.scale, factor * (X.sum(0)[:, None] * W.sign).sum(0)[None])

  def test_forward_mode(self):
    f = lift.lift(lambda w, x: _tripled_gradient(x, w))
    _, dy = jax.jvp(lambda x: f(W, x), (X,), (X,))
    _equal(dy, 3 * X @ W.materialize())


class ArgumentsTest(parameterized.TestCase):
  def test_python_values_stay_python_values(self):
    def f(p, x, flag, *, scale=1.0, mode='add', extra=None):
      self.assertIs(type(scale), float)
      if flag and mode == 'mul' and extra is None:
        return p['w'] * scale
      return x @ p['w'] if p['n'] == 2 else x

    p = {'w': W, 'n': 2, 'name': 'dense', 'none': None}
    dense = array.materialize(p)
    lifted = lift.lift(f)
    _equal(lifted(p, X, False), f(dense, X, False))
    _equal(
      lifted(p, X, True, scale=3.0, mode='mul'),
      f(dense, X, True, scale=3.0, mode='mul'),
    )
    self.assertLen(explain.explain(f)(p, X, np.bool_(False)), 1)

  def test_leaves_anywhere_and_numpy(self):
    f = lambda x, *, weights: x @ weights[0] @ weights[1]
    lifted = lift.lift(f)
    weights = (W, np.asarray(W.materialize()))
    want = f(X, weights=array.materialize(weights))
    _equal(lifted(np.asarray(X), weights=weights), want)

  def test_without_leaves_it_is_the_function(self):
    f = lambda p, x: _layers(p['w'], x)
    p = {'w': W.materialize()}
    self.assertEqual(
      str(jax.make_jaxpr(lift.lift(f))(p, X)), str(jax.make_jaxpr(f)(p, X))
    )
    self.assertEqual(lift.lift(lambda x: x)('as it is'), 'as it is')

  def test_what_meets_no_leaf_is_left_alone(self):
    def f(w, x):
      h = jax.nn.gelu(jax.checkpoint(jnp.sin)(x) + 1)
      return (h @ w, lax.scan(lambda c, x: (c + x, jnp.tanh(c)), x[0], x))

    names = lambda f, w: [
      e.primitive.name for e in jax.make_jaxpr(f)(w, X).eqns
    ]
    lifted, plain = names(lift.lift(f), W), names(f, W.materialize())
    self.assertEqual(
      [
        n for n in lifted if n not in ('convert_element_type', 'mul', 'reshape')
      ],
      [n for n in plain if n not in ('mul',)],
    )

  def test_keys_and_names(self):
    @functools.wraps(_layers)
    def f(w, key):
      return jax.random.normal(key, (2, 8)) @ w

    lifted = lift.lift(f)
    self.assertEqual(lifted.__name__, '_layers')
    key = jax.random.key(3)
    np.testing.assert_allclose(
      lifted(W, key), f(W.materialize(), key), rtol=1e-6
    )

  def test_the_cache_of_jit_is_not_poisoned(self):
    matmul = jax.jit(lambda x, w: jnp.matmul(x, w))  # one cache for all calls
    f = lambda w, x: matmul(x, w) + jnp.dot(x, w)
    dense, lifted = jax.jit(f), jax.jit(lift.lift(f))
    other = signs(8, 8, seed=5)
    for w in (W, other):
      want = np.asarray(2 * X) @ np.asarray(w.materialize())
      _equal(dense(w.materialize(), X), want)
      _equal(lifted(w, X), want)
      _equal(dense(w.materialize(), X), want)


@jax.tree_util.register_pytree_with_keys_class
class Counting:
  """An object that holds a weight and a counter, as a model does."""

  def __init__(self, w, count):
    self.w, self.count = w, count

  def tree_flatten_with_keys(self):
    key = jax.tree_util.GetAttrKey
    return ((key('w'), self.w), (key('count'), self.count)), None

  @classmethod
  def tree_unflatten(cls, static, parts):
    return cls(*parts)

  def __call__(self, x):
    self.count = self.count + 1
    return x @ self.w


def _replaced(model, x):
  """All that the model holds is there again, through a jit."""
  model.w, model.count = jax.jit(lambda *held: held)(model.w, model.count)
  return x @ model.w


def _returned(model, x):
  model = Counting(model.w, model.count)
  return model(x), model.count


class StateTest(parameterized.TestCase):
  """What a function changes in place."""

  def setUp(self):
    super().setUp()
    self.model = Counting(W, jnp.int32(0))

  @parameterized.named_parameters(
    ('eager', lambda f: lift.lift(f)),
    ('jit', lambda f: jax.jit(lift.lift(f))),
    ('at scopes', lambda f: scopes.at_scopes(f, [('.*dot_general', None)])),
  )
  def test_is_refused_by_name(self, wrap):
    def f(tree, x):
      return tree['model'](x)

    said = r'^model/count is changed in place.*copy=True.*nnx.state'
    with self.assertRaisesRegex(ValueError, said):
      wrap(f)({'model': self.model}, X)

  def test_may_be_returned(self):
    for _ in range(3):
      y, self.model.count = lift.lift(_returned)(self.model, X)
    self.assertEqual(self.model.count, 3)
    _equal(y, X @ W.materialize())

  def test_what_is_there_again_is_no_change(self):
    _equal(lift.lift(_replaced)(self.model, X), X @ W.materialize())

  def test_dicts_are_passed_by_value(self):
    def f(p, x):
      p['n'] = p['n'] + 1
      return x @ p['w'] + p.pop('n')

    _equal(lift.lift(f)({'w': W, 'n': 1.0}, X), X @ W.materialize() + 2)


class StrictTest(parameterized.TestCase):
  @parameterized.parameters(
    'while_loop', 'fori', 'cond', 'scan_carry', 'layers'
  )
  def test_native_inside(self, name):
    met = explain.explain(CASES[name])(W, X)
    dots = [m for m in met if m.primitive == 'dot_general']
    self.assertNotEmpty(dots)
    self.assertTrue(all(m.native for m in dots))

  def test_native_passes(self):
    _equal(lift.lift(_layers, strict=True)(W, X), _layers(W.materialize(), X))

  @parameterized.named_parameters(
    dict(testcase_name='flat', wrap=lambda f: f),
    dict(testcase_name='jit', wrap=jax.jit),
    dict(testcase_name='remat', wrap=jax.checkpoint),
  )
  def test_error_names_leaf_primitive_and_line(self, wrap):
    f = wrap(lambda p, x: x @ jnp.tanh(p['head']['w']))
    says = r'head/w would become dense: tanh at .*lift_test\.py:\d+.*no rule'
    with self.assertRaisesRegex(ValueError, says):
      lift.lift(f, strict=True)({'head': {'w': W}}, X)

  def test_error_under_jit(self):
    f = jax.jit(lift.lift(lambda w, x: w @ x.T, strict=True))
    with self.assertRaisesRegex(ValueError, 'it is on the left'):
      f(W, X)


if __name__ == '__main__':
  absltest.main()
