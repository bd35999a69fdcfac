"""Training with quantisation: the frozen forward pass, the dense derivative."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.core import array
from jaxopt_compress.pruning import masked
from jaxopt_compress.quantization import trained

W4G4 = jc.Scheme(jc.Spec('int4', 'group', 4, scale='bfloat16'))
SCHEMES = {'W8A16': jc.W8A16, 'W8A8': jc.W8A8, 'W4G4': W4G4}


def _normal(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def _mlp(p, x):
  return jnp.tanh(x @ p['a']) @ p['b']


def _cnn(p, x):
  numbers = ('NHWC', 'HWIO', 'NHWC')
  x = lax.conv_general_dilated(
    x, p['a'], (1, 1), 'SAME', dimension_numbers=numbers
  )
  return jnp.tanh(x).mean((1, 2)) @ p['b']


def _attention(p, x):
  q, k, v = jnp.einsum('td,dchk->cthk', x, p['a'].reshape(8, 3, 2, 4))
  a = jax.nn.softmax(jnp.einsum('thk,shk->hts', q, k))
  return jnp.einsum('hts,shk,hkd->td', a, v, p['b'])


def _embedding(p, tokens):
  return jnp.tanh(p['a'][tokens] @ p['b']) @ p['a'].T


def _scanned(p, x):
  body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
  return lax.scan(body, x, p['a'])[0] @ p['b']


def _model(name):
  """(apply, params, x)"""
  f, a, b, x = dict(
    mlp=(_mlp, (8, 16), (16, 4), _normal(5, 8, seed=2)),
    cnn=(_cnn, (3, 3, 4, 8), (8, 4), _normal(2, 5, 5, 4, seed=2)),
    attention=(_attention, (8, 24), (2, 4, 8), _normal(5, 8, seed=2)),
    embedding=(_embedding, (12, 8), (8, 8), jnp.array([1, 5, 5])),
    scanned=(_scanned, (3, 8, 8), (8, 4), _normal(5, 8, seed=2)),
  )[name]
  return f, {'a': _normal(*a) / 3, 'b': _normal(*b, seed=1) / 3}, x


@functools.cache
def _setup(name, scheme):
  f, params, x = _model(name)
  uses = jc.uses(f)(params, x)
  rules = [(r'.*', SCHEMES[scheme])]
  return f, params, x, jc.fake_quantize(rules, uses), rules, uses


CELLS = [
  dict(testcase_name=f'{m} {s}', name=m, scheme=s)
  for m in ('mlp', 'cnn', 'attention', 'embedding', 'scanned')
  for s in SCHEMES
]


class ForwardTest(parameterized.TestCase):
  @parameterized.named_parameters(*CELLS)
  def test_is_the_frozen_one_to_the_bit(self, name, scheme):
    f, params, x, comp, rules, uses = _setup(name, scheme)
    stored = jax.jit(lambda p: jc.quantize(p, rules, uses))(params)
    want = jax.jit(jc.lift(f))(stored, x)

    @jax.jit
    def train(params, x):
      y, pullback = jax.vjp(lambda p: jc.lift(f)(comp.apply(p, ()), x), params)
      return y, pullback(jnp.ones_like(y))

    y = jax.jit(lambda p, x: jc.lift(f)(comp.apply(p, ()), x))(params, x)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(train(params, x)[0], want)

  @parameterized.parameters(*SCHEMES)
  def test_freeze_is_quantize(self, scheme):
    _, params, _, comp, rules, uses = _setup('attention', scheme)
    frozen = jc.freeze(comp.apply(params, comp.init(params)))
    stored = jc.quantize(params, rules, uses)
    self.assertEqual(jax.tree.structure(frozen), jax.tree.structure(stored))
    jax.tree.map(np.testing.assert_array_equal, frozen, stored)


class GradientTest(parameterized.TestCase):
  @parameterized.named_parameters(*(c for c in CELLS if c['scheme'] != 'W8A8'))
  def test_of_weights_is_that_of_the_dense_function_at_w_hat(
    self, name, scheme
  ):
    f, params, x, comp, rules, uses = _setup(name, scheme)
    w_hat = array.materialize(jc.quantize(params, rules, uses))
    loss = lambda f: lambda p: jnp.square(f(p, x)).sum()
    lifted = lambda p, x: jc.lift(f)(comp.apply(p, ()), x)
    got = jax.jit(jax.grad(loss(lifted)))(params)
    want = jax.jit(jax.grad(loss(f)))(w_hat)
    for path in params:
      self.assertEqual(got[path].dtype, params[path].dtype)
      scale = float(jnp.abs(want[path]).max())
      np.testing.assert_allclose(got[path], want[path], atol=1e-5 * scale)

  def test_with_integer_activations(self):
    # y = x_hat . w_hat; dy/dw = x_hat, dy/dx = w_hat (both roundings skipped).
    w, x = _normal(8, 4), _normal(5, 8, seed=1)
    comp = jc.fake_quantize([('w', jc.W8A8)])
    g = _normal(5, 4, seed=2)

    def total(p, x):
      return (jc.lift(lambda p, x: x @ p['w'])(comp.apply(p, ()), x) * g).sum()

    dw, dx = jax.jit(jax.grad(total, (0, 1)))({'w': w}, x)
    scale = np.abs(np.asarray(x)).max(1, keepdims=True) * np.float32(2 / 255)
    x_hat = np.clip(np.rint(x * (np.float32(1) / scale)), -128, 127) * scale
    w_hat = jc.quantize({'w': w}, [('w', jc.W8A16)])['w'].materialize()
    np.testing.assert_allclose(dw['w'], x_hat.T @ np.asarray(g), atol=1e-5)
    np.testing.assert_allclose(dx, g @ w_hat.T, atol=1e-5)

  @parameterized.parameters('vmap', 'scan', 'remat')
  def test_under_transformations(self, how):
    f, params, x, comp, *_ = _setup('mlp', 'W8A8')
    lifted = lambda p, x: jc.lift(f)(comp.apply(p, ()), x)
    loss = lambda p, x: jnp.square(lifted(p, x)).sum()
    want = jax.jit(jax.grad(loss))(params, x)
    xs = x[:, None]
    each = lambda p: jax.vmap(loss, (None, 0))(p, xs).sum()
    over = lambda p: lax.scan(lambda c, x: (c + loss(p, x), None), 0.0, xs)[0]
    total = dict(
      vmap=each, scan=over, remat=lambda p: jax.checkpoint(loss)(p, x)
    )[how]
    got = jax.jit(jax.grad(total))(params)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, got, want)

  def test_through_a_mask(self):
    w, x = _normal(8, 4), _normal(5, 8, seed=1)
    mask = _normal(8, 4, seed=2) > 0
    comp = jc.fake_quantize([('w', jc.W8A16)])

    def leaf(w):
      return comp.apply({'w': masked.Masked(w, mask)}, ())

    f = lambda p, x: (x @ p['w'].reshape(2, 4, 4).reshape(8, 4)).sum()
    g = jax.jit(jax.grad(lambda w: jc.lift(f)(leaf(w), x)))(w)
    want = jnp.where(mask, x.sum(0)[:, None], 0)
    np.testing.assert_allclose(g, want, rtol=1e-5)
    # What is masked is 0 in the stored leaf, and the leaf is flat again.
    stored = jc.freeze(leaf(w))['w']
    self.assertIsInstance(stored, jc.QArray)
    np.testing.assert_array_equal(stored.materialize()[~mask], 0)

  def test_bfloat16_parameters_get_bfloat16_gradients(self):
    f, params, x, comp, *_ = _setup('mlp', 'W8A16')
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    x = x.astype(jnp.bfloat16)
    loss = lambda p: jc.lift(f)(comp.apply(p, ()), x).astype(jnp.float32).sum()
    g = jax.jit(jax.grad(loss))(params)
    self.assertEqual(
      {a.dtype for a in jax.tree.leaves(g)}, {jnp.dtype('bfloat16')}
    )
    dense = jax.grad(lambda p: f(p, x).astype(jnp.float32).sum())(params)
    for path in g:
      a, b = (np.asarray(t[path], np.float32) for t in (g, dense))
      np.testing.assert_allclose(a, b, atol=0.1 * np.abs(b).max())

  @parameterized.named_parameters(
    dict(testcase_name='transpose', f=lambda w: w.T),
    dict(testcase_name='reshape', f=lambda w: w.reshape(2, 4, 4)),
    dict(testcase_name='slice', f=lambda w: w[:, 1:3]),
    dict(testcase_name='split', f=lambda w: jnp.split(w, 2, axis=1)[1]),
    dict(testcase_name='cast', f=lambda w: w.astype(jnp.bfloat16)),
    dict(testcase_name='elementwise', f=lambda w: w * 3),
  )
  def test_moves_have_the_derivative_of_the_move(self, f):
    w = _normal(8, 4)
    comp = jc.fake_quantize([('w', W4G4)])
    y, pullback = jax.vjp(
      lambda w: jc.lift(f)(comp.apply({'w': w}, ())['w']), w
    )
    w_hat = comp.apply({'w': w}, ())['w'].materialize()
    y_want, pullback_want = jax.vjp(f, w_hat)
    np.testing.assert_array_equal(y, y_want)
    g = _normal(*y.shape, seed=3).astype(y.dtype)
    np.testing.assert_array_equal(pullback(g)[0], pullback_want(g)[0])


class FollowingTest(parameterized.TestCase):
  """Ranges of activations as moving averages of what training meets."""

  def _following(self, words='int8, int8 tensor static asym ema', **options):
    f, params, x = _model('scanned')
    uses = jc.uses(f)(params, x)
    rules = [(r'.*', words)]
    ranges = jc.calibrate(f, params, rules, [x], uses, 'minmax')
    comp = jc.fake_quantize(rules, uses, ranges=ranges, **options)

    @jax.jit
    def step(i, params, state, x):
      def loss(p):
        leaves = comp.apply(p, state)
        y, stats = jc.observe(f, comp.observes(p))(leaves, x)
        return jnp.square(y - 1).mean(), stats

      (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
      params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
      info = jc.Info(i, grads, stats)
      return params, comp.update(state, params, info), value, stats

    return f, params, x, comp, step

  def test_averages(self):
    _, params, x, comp, step = self._following(decay=0.8)
    state = comp.init(params)
    low, high = (np.array(e) for e in state['ends']['a'])
    for i in range(4):
      params, state, _, stats = step(i + 1, params, state, x * (i + 1))
      met = stats['a'].state
      low = 0.8 * low + 0.2 * np.reshape(met.low, (3, 1, 1))
      high = 0.8 * high + 0.2 * np.reshape(met.high, (3, 1, 1))
    # The first layer meets x itself.
    self.assertAlmostEqual(float(met.high[0]), 4 * float(x.max()), places=4)
    np.testing.assert_allclose(state['ends']['a'], (low, high), rtol=1e-5)
    scale, zero = state['ranges']['a']
    np.testing.assert_allclose(scale, (high - low) / 255, rtol=1e-5)
    want = np.round(-0.5 - (high + low) / 2 / np.asarray(scale))
    np.testing.assert_array_equal(zero, want)

  @parameterized.parameters(
    'int8, int8 tensor static asym ema',
    'int4, int8 tensor static ema',
    'e4m3, e4m3 tensor static ema',
  )
  def test_freezes_to_what_was_trained(self, words):
    f, params, x, comp, step = self._following(words)
    state, values = comp.init(params), []
    for i in range(6):
      params, state, value, _ = step(i + 1, params, state, x)
      values.append(float(value))
    self.assertLess(values[-1], values[0])
    self.assertEqual(step._cache_size(), 1)
    frozen = jc.freeze(comp.apply(params, state))
    self.assertIn('static', frozen['a'].describe())
    y = jax.jit(lambda p, s: jc.lift(f)(comp.apply(p, s), x))(params, state)
    np.testing.assert_array_equal(jax.jit(jc.lift(f))(frozen, x), y)

  def test_starts_where_it_was_calibrated(self):
    f, params, x, comp, _ = self._following()
    met = jc.observe(f, {'b': jc.minmax('tensor')})(params, x)[1]['b'].state
    ends = [e.item() for e in comp.init(params)['ends']['b']]
    np.testing.assert_allclose(ends, met, atol=0.01)  # zero points are integers

  def test_without_statistics(self):
    _, params, _, comp, _ = self._following()
    state = comp.init(params)
    with self.assertRaisesRegex(
      ValueError, r'a meets.*comp.observes\(params\)'
    ):
      comp.update(state, params, jc.Info(1))

  def test_words(self):
    with self.assertRaisesRegex(ValueError, "'ema' is for static"):
      jc.Spec('int8', 'tensor', learn='ema')
    with self.assertRaisesRegex(ValueError, 'ema.* is for activations'):
      jc.Scheme(jc.Spec('int8', 'tensor', static=True, learn='ema'))


class LeafTest(parameterized.TestCase):
  def test_describe_and_shape(self):
    leaf = jc.fake_quantize([('w', jc.W8A8)]).apply({'w': _normal(8, 4)}, ())[
      'w'
    ]
    self.assertIsInstance(leaf, trained.FakeQuant)
    self.assertEqual(leaf.describe(), 'fake int8 channel, int8 activations')
    self.assertEqual((leaf.shape, leaf.dtype), ((8, 4), jnp.float32))
    self.assertFalse(
      jc.fake_quantize([('w', W4G4)])
      .apply({'w': _normal(8, 4)}, ())['w']
      .can_cut(-2, 2)
    )

  def test_rules_are_checked_and_none_leaves_alone(self):
    params = {'w': _normal(8, 4), 'b': jnp.ones(4)}
    comp = jc.fake_quantize([('w', 'W8A8'), ('b', None)])
    self.assertIs(comp.apply(params, comp.init(params))['b'], params['b'])
    with self.assertRaisesRegex(ValueError, 'No rule covers b'):
      jc.fake_quantize([('w', 'W8A8')]).apply(params, ())

  def test_not_finite_stays_not_finite(self):
    comp = jc.fake_quantize([('w', jc.W8A16)])
    f = jax.jit(
      lambda w: jc.lift(lambda p: p['w'] * 1)(comp.apply({'w': w}, ()))
    )
    for row in (0, 2):
      for bad in (jnp.nan, jnp.inf):
        w = _normal(8, 4).at[row, 0].set(bad)
        self.assertFalse(np.isfinite(f(w))[:, 0].any())

  def test_on_a_mesh_with_explicit_axes(self):
    mesh = jax.make_mesh(
      (4,), ('d',), axis_types=(jax.sharding.AxisType.Explicit,)
    )
    comp = jc.fake_quantize([('w', 'W8A16')])
    w = _normal(8, 16)
    for spec in ('d', None), (None, 'd'), (None, None):
      with jax.set_mesh(mesh):
        cut = jax.device_put(w, jax.P(*spec))
        f = jax.jit(lambda w: comp.apply({'w': w}, ())['w'].frozen)
        got = f(cut)
      want = jc.quantize({'w': w}, [('w', 'W8A16')])['w']
      np.testing.assert_array_equal(got.materialize(), want.materialize())

  @parameterized.parameters(*SCHEMES)
  def test_original_residuals(self, scheme):
    """Forward as ever; backward the two products of unrounded operands."""
    f, params, x = lambda p, x: x @ p['a'], {'a': _normal(8, 4)}, _normal(5, 8)
    rules, uses = [(r'.*', SCHEMES[scheme])], jc.uses(f)(params, x)
    out, pull = {}, {}
    for original in (False, True):
      comp = jc.fake_quantize(rules, uses, original_residuals=original)
      run = lambda p, x, comp=comp: jc.lift(f)(comp.apply(p, ()), x)
      out[original], pull[original] = jax.vjp(run, params, x)
    np.testing.assert_array_equal(out[True], out[False])
    g = _normal(5, 4, seed=4)
    dp, dx = pull[True](g)
    np.testing.assert_allclose(dp['a'], x.T @ g, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, g @ params['a'].T, rtol=1e-5, atol=1e-6)
    self.assertGreater(jnp.abs(dx - pull[False](g)[1]).max(), 1e-4)

  @parameterized.parameters(
    'int8 lsq', 'int8, int8 tensor static lsq', 'int8, int8, int8'
  )
  def test_original_residuals_need_no_rounded_ones(self, scheme):
    with self.assertRaisesRegex(ValueError, 'original_residuals=True, and'):
      jc.fake_quantize([('w', scheme)], original_residuals=True)

  def test_a_step_of_training_compiles_once_and_learns(self):
    f, params, x, comp, *_ = _setup('mlp', 'W4G4')
    target = f(jax.tree.map(lambda w: w[::-1], params), x)
    traces = []

    @jax.jit
    def step(params):
      traces.append(1)
      loss = lambda p: jnp.square(
        jc.lift(f)(comp.apply(p, ()), x) - target
      ).mean()
      value, grads = jax.value_and_grad(loss)(params)
      return jax.tree.map(lambda w, g: w - 0.1 * g, params, grads), value

    values = []
    for _ in range(30):
      params, value = step(params)
      values.append(float(value))
    self.assertLen(traces, 1)
    self.assertLess(values[-1], 0.2 * values[0])


if __name__ == '__main__':
  absltest.main()
