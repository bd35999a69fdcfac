"""Networks that grow compute what they did, and every new unit learns."""

import contextlib
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import wider

import jaxopt_compress as jc

KEY = jax.random.key(1)


CASES = {
  'mlp': (wider.mlp, wider.ROWS),
  'flat': (wider.flat, wider.IMAGES),
  'vit': (wider.vit, wider.PATCHES),
  'decoder tied scanned': (wider.decoder, wider.IDS),
  'decoder untied': (
    functools.partial(wider.decoder, False, False, depth=1),
    wider.IDS,
  ),
  'lstm': (wider.lstm, wider.SEQUENCES),
}


# Groups that lie within others.
INSIDE = {
  'vit': ('k:-1.1', 'o:-2'),
  'decoder tied scanned': ('layers/k:-1', 'layers/o:-2', 'layers/o:-3'),
}


# Groups that a zero start leaves copies.
ALIKE = {
  'vit': r'in down:-1 \(.*_layer_norm.*net2net',
  'decoder tied scanned': r'in embed:-1 \(.*_rms_norm.*net2net',
}


@functools.cache
def case(name):
  """(fun, the function of the larger model, params, x, plan)."""
  make, x = CASES[name]
  fun, shapes = make()
  fun = wider.promoted(fun)
  params = wider.drawn(shapes)
  structure = jc.structure(fun)(params, x)
  # All that can grow: features of heads, too.
  sizes = {n: 2 * structure.groups[n].size for n in INSIDE.get(name, ())}
  plan = jc.widen(structure, factor=2, sizes=sizes)
  larger = wider.promoted(wider.vit(4)[0]) if name == 'vit' else fun
  return fun, larger, params, x, plan


def still(plan, grads):
  """The groups that have a channel without a gradient."""
  leaves, structure, found = (
    dict(jc.rules.named_leaves(grads)),
    plan.structure,
    [],
  )
  for group in plan.sources:
    sums = np.zeros(plan.sizes[group])
    for path, axis in structure.members(group):
      g = np.abs(np.asarray(leaves[path]))
      of = structure.channels(structure.axes[path][axis], group, plan.sizes)
      g = np.moveaxis(g, axis, 0).reshape(len(of), -1).sum(1)
      np.add.at(sums, of[of >= 0], g[of >= 0])
    if (sums < 1e-9).any():
      found.append(group)
  return found


class GrowTest(parameterized.TestCase):
  @parameterized.product(
    name=list(CASES), how=[('net2net', None), ('net2net', KEY), ('zero', KEY)]
  )
  def test_keeps_the_function_and_learns(self, name, how):
    fun, larger, params, x, plan = case(name)
    alike = ALIKE.get(name) if how[0] == 'zero' else None
    # A start that is not the one asked for is told, and no other.
    told = (
      self.assertWarnsRegex(UserWarning, alike)
      if alike
      else contextlib.nullcontext()
    )
    with told:
      grown = jc.grow(plan, params, how[0], key=how[1], rebuilt=larger)
    jax.tree.map(
      lambda a, b: self.assertGreaterEqual(a.size, b.size), grown, params
    )

    @jax.jit
    def loss(p):
      y = larger(p, x)
      return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

    grads, y = jax.grad(loss, has_aux=True)(grown)
    want = fun(params, x)
    error = jnp.abs(y - want).max() / jnp.abs(want).max()
    self.assertLess(float(error), 1e-5)
    self.assertEqual(still(plan, grads), [])

  def test_numbers_of_the_model(self):
    """Norms of two groups: four are twice as many, and two that are wider."""

    def fun(p, x, groups=2):
      h = (x @ p['a']).reshape(x.shape[0], groups, -1)
      h = h - h.mean(-1, keepdims=True)
      h = h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-5)
      return jnp.tanh(h.reshape(x.shape[0], -1)) @ p['b']

    key, x = jax.random.split(KEY), jnp.sin(jnp.arange(12.0).reshape(4, 3))
    p = {'a': (3, 8), 'b': (8, 2)}
    p = {n: jax.random.normal(k, p[n]) for n, k in zip(p, key)}
    structure, more = jc.structure(fun)(p, x), functools.partial(fun, groups=4)
    plan = jc.widen(structure, 2)
    why = r"2 become 4: .* rebuilt=, or keep 2 and grow by sizes={'a:-1.1': 8}"
    self.assertRegex(str(plan), why)
    for same in (None, fun):
      with self.assertRaisesRegex(ValueError, why):
        jc.grow(plan, p, key=KEY, rebuilt=same)
    jc.grow(plan, p, key=KEY, exact=False)
    grown = jc.grow(plan, p, key=KEY, rebuilt=more)
    np.testing.assert_allclose(more(grown, x), fun(p, x), rtol=1e-4, atol=1e-5)
    grown = jc.grow(jc.widen(structure, sizes={'a:-1.1': 8}), p, key=KEY)
    np.testing.assert_allclose(fun(grown, x), fun(p, x), rtol=1e-4, atol=1e-5)

  def test_copies_get_gradients_of_their_own(self):
    fun, _, params, x, plan = case('mlp')
    alike = []
    for key in (None, KEY):
      grown = jc.grow(plan, params, key=key)
      g = jax.grad(lambda p: (fun(p, x) ** 2).sum())(grown)['a']
      alike.append(bool(jnp.allclose(g[:, :8], g[:, 8:], rtol=1e-3)))
    self.assertEqual(alike, [True, False])

  @parameterized.parameters('sgd', 'momentum', 'adam', 'factored')
  def test_optimizer_goes_on(self, name):
    """As if copies had been trained from the start: worked out on W1, W2 below."""
    # y = relu(x W1) W2, each unit twice: W1 gets half of its gradient, W2 all of it.
    tx = {
      'sgd': optax.sgd(0.1),
      'momentum': optax.sgd(0.1, momentum=0.9),
      'adam': optax.scale_by_adam(),
      'factored': optax.scale_by_factored_rms(min_dim_size_to_factor=2),
    }[name]
    fun, _, params, x, plan = case('mlp')
    params = params | {'b': jnp.zeros_like(params['b'])}
    grad = jax.jit(jax.grad(lambda p: (fun(p, x) ** 2).sum()))
    state = tx.init(params)
    large = jc.grow(plan, params)
    want = tx.init(large)
    for _ in range(3):
      _, state = tx.update(grad(params), state, params)
      _, want = tx.update(grad(large), want, large)
    got = jc.grow(plan, state)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
      got,
      want,
    )

  @parameterized.parameters((None,), (KEY,))
  def test_moments_are_those_of_the_larger_network(self, key):
    # The table and the head take a root of the random shares up each.
    def fun(p, x):
      x = p['e'][x]
      mean = (x * x).mean(-1, keepdims=True)
      return x * jax.lax.rsqrt(mean + 1e-5) * p['n'] @ p['o']

    p = wider.drawn({'e': (7, 4), 'n': (1, 4), 'o': (4, 3)})
    x = jnp.arange(5)
    plan = jc.widen(jc.structure(fun)(p, x), factor=1.5)
    grad = jax.grad(lambda p: (fun(p, x) ** 2).sum())
    first = grad(p)
    state = {'mu': first, 'nu': jax.tree.map(jnp.square, first)}
    large, state = jc.grow(plan, (p, state), key=key)
    want = grad(large)
    for name, g in want.items():
      np.testing.assert_allclose(state['mu'][name], g, rtol=1e-3, atol=1e-5)
      np.testing.assert_allclose(state['nu'][name], g**2, rtol=1e-3, atol=1e-5)

  def test_units_by_hand(self):
    # Of the wider network unit 2 is unit 0 again: their rows of `c` share it.
    fun = lambda p, x: jax.nn.relu(x @ p['a']) @ p['c']
    p = {'a': jnp.array([[1.0, 2.0]]), 'c': jnp.array([[8.0], [6.0]])}
    structure = jc.structure(fun)(p, jnp.ones((1, 1)))
    got = jc.grow(jc.Plan(structure, {'a:-1': [0, 1, 0]}), p, 'fpi')
    np.testing.assert_array_equal(got['a'], [[1.0, 2.0, 1.0]])
    np.testing.assert_array_equal(got['c'], [[4.0], [6.0], [4.0]])

  def test_drawn_copies_keep_rms_norms_and_not_layer_norms(self):
    for name, kept in (('decoder untied', True), ('vit', False)):
      fun, larger, params, x, plan = case(name)
      plan = jc.widen(plan.structure, factor=2, key=KEY)
      if not kept:
        with self.assertRaisesRegex(
          ValueError, 'counts every copy|plain copies'
        ):
          jc.grow(plan, params, rebuilt=larger)
        self.assertIn('not kept', str(plan))
        jc.grow(plan, params, rebuilt=larger, exact=False)
        continue
      got = fun(jc.grow(plan, params, key=KEY), x)
      np.testing.assert_allclose(got, fun(params, x), rtol=1e-3, atol=2e-4)

  @parameterized.parameters(('zero', 2), ('net2net', 1.5))
  def test_epsilon_of_a_norm(self, how, factor):
    def fun(bounded, p, x):
      x = bounded(x @ p['a'])
      mean = (x * x).mean(-1, keepdims=True)
      return x * jax.lax.rsqrt(mean + 1e-5) @ p['c']

    p = wider.drawn({'a': (3, 4), 'c': (4, 2)})
    p, x = p | {'a': 1e-2 * p['a']}, jnp.ones((5, 3))
    linear = functools.partial(fun, lambda x: x)
    plan = jc.widen(jc.structure(linear)(p, x), factor=factor)
    got = linear(jc.grow(plan, p, how, key=KEY), x)
    np.testing.assert_allclose(got, linear(p, x), rtol=1e-5)
    if how == 'zero':
      plan = jc.widen(jc.structure(functools.partial(fun, jnp.tanh))(p, x), 2)
      with self.assertWarnsRegex(
        UserWarning, 'kept up to 1e-05 at .*grow_test'
      ):
        jc.grow(plan, p, how, key=KEY)

  def test_half_precision_and_numpy_and_jit(self):
    fun, _, params, x, plan = case('mlp')
    half = jax.tree.map(lambda a: np.asarray(a.astype(jnp.bfloat16)), params)
    got = jax.jit(lambda p: jc.grow(plan, p, key=KEY))(half)
    self.assertEqual({a.dtype for a in got.values()}, {jnp.dtype(jnp.bfloat16)})
    np.testing.assert_allclose(fun(got, x), fun(half, x), atol=0.05)

  def test_arrays_stay_cut_over_devices(self):
    fun, _, params, x, plan = case('mlp')
    mesh = jax.make_mesh((4,), ('d',))
    cut = jax.NamedSharding(mesh, jax.P(None, 'd'))
    a = jax.device_put(params['a'], cut)
    got = jc.grow(plan, params | {'a': a}, key=KEY)
    self.assertEqual(got['a'].sharding.spec, cut.spec)
    whole = jc.grow(plan, params, key=KEY)
    np.testing.assert_array_equal(got['a'], whole['a'])

  def test_statistics_go_with_parameters(self):
    _, _, params, _, plan = case('flat')
    grown = jc.grow(plan, params)
    np.testing.assert_allclose(grown['var'], np.tile(params['var'], 2))

  def test_mistakes(self):
    _, _, params, _, plan = case('mlp')
    with self.assertRaisesRegex(ValueError, "how='net2nett'.*'net2net'"):
      jc.grow(plan, params, 'net2nett')
    with self.assertRaisesRegex(ValueError, 'pass key='):
      jc.grow(plan, params, 'zero')
    with self.assertRaisesRegex(ValueError, 'key=1;.*jax.random.key'):
      jc.grow(plan, params, key=1)
    with self.assertRaisesRegex(ValueError, 'key=1;.*jax.random.key'):
      jc.widen(plan.structure, factor=2, key=1)
    with self.assertRaisesRegex(ValueError, "layers='idenity'.*'identity'"):
      jc.grow(plan, params, layers='idenity')
    with self.assertRaisesRegex(ValueError, 'shrink.*first'):
      jc.grow(jc.Plan(plan.structure, {'a:-1': [0, 0]}), params)
    with self.assertRaisesRegex(ValueError, 'another network'):
      jc.grow(plan, params | {'a': jnp.ones((3, 9))})
    with self.assertRaisesRegex(ValueError, 'Find it again'):
      jc.grow(jc.Plan.from_json(plan.to_json()), params)


if __name__ == '__main__':
  absltest.main()
