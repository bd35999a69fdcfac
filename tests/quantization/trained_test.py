"""The leaf that trains: the frozen forward pass, the dense derivative."""

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import training_models

import jaxopt_compress as jc
from jaxopt_compress.core import array
from jaxopt_compress.pruning import masked_array
from jaxopt_compress.quantization import trained

CELLS = [
  dict(testcase_name=f'{m} {s}', name=m, scheme=s)
  for m in ('mlp', 'cnn', 'attention', 'embedding', 'scanned')
  for s in training_models.SCHEMES
]


class ForwardTest(parameterized.TestCase):
  @parameterized.named_parameters(*CELLS)
  def test_is_the_frozen_one_to_the_bit(self, name, scheme):
    f, params, x, comp, rules, uses = training_models.setup(name, scheme)
    stored = jax.jit(lambda p: jc.quantize(p, rules, uses))(params)
    want = jax.jit(jc.lift(f))(stored, x)

    @jax.jit
    def train(params, x):
      y, pullback = jax.vjp(lambda p: jc.lift(f)(comp.apply(p, ()), x), params)
      return y, pullback(jnp.ones_like(y))

    y = jax.jit(lambda p, x: jc.lift(f)(comp.apply(p, ()), x))(params, x)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(train(params, x)[0], want)

  @parameterized.parameters(*training_models.SCHEMES)
  def test_freeze_is_quantize(self, scheme):
    _, params, _, comp, rules, uses = training_models.setup('attention', scheme)
    frozen = jc.freeze(comp.apply(params, comp.init(params)))
    stored = jc.quantize(params, rules, uses)
    self.assertEqual(jax.tree.structure(frozen), jax.tree.structure(stored))
    jax.tree.map(np.testing.assert_array_equal, frozen, stored)


class GradientTest(parameterized.TestCase):
  @parameterized.named_parameters(*(c for c in CELLS if c['scheme'] != 'W8A8'))
  def test_of_weights_is_that_of_the_dense_function_at_w_hat(
    self, name, scheme
  ):
    f, params, x, comp, rules, uses = training_models.setup(name, scheme)
    w_hat = array.materialize(jc.quantize(params, rules, uses))
    loss = lambda f: lambda p: jnp.square(f(p, x)).sum()
    lifted = lambda p, x: jc.lift(f)(comp.apply(p, ()), x)
    got = jax.jit(jax.grad(loss(lifted)))(params)
    want = jax.jit(jax.grad(loss(f)))(w_hat)
    for path in params:
      self.assertEqual(got[path].dtype, params[path].dtype)
      scale = float(jnp.abs(want[path]).max())
      np.testing.assert_allclose(got[path], want[path], atol=1e-5 * scale)

  def test_a_learned_range_that_is_blended_in_moves(self):
    f = lambda p, x: x @ p['w'].T
    params = {'w': training_models.normal(4, 8)}
    x = training_models.normal(5, 8, seed=1)
    uses = jc.uses(f)(params, x)
    comp = jc.fake_quantize([('w', 'int2 lsq')], uses, end=10)
    leaf = comp.apply(params, comp.init(params))
    want = f(jc.materialize(leaf), x)
    np.testing.assert_allclose(jc.lift(f)(leaf, x), want, atol=1e-5)

  def test_with_integer_activations(self):
    # y = x_hat . w_hat; dy/dw = x_hat, dy/dx = w_hat (both roundings skipped).
    w, x = training_models.normal(8, 4), training_models.normal(5, 8, seed=1)
    comp = jc.fake_quantize([('w', jc.W8A8)], uses=in_out.IN_OUT)
    g = training_models.normal(5, 4, seed=2)

    def total(p, x):
      return (jc.lift(lambda p, x: x @ p['w'])(comp.apply(p, ()), x) * g).sum()

    dw, dx = jax.jit(jax.grad(total, (0, 1)))({'w': w}, x)
    low = np.minimum(np.min(x, 1, keepdims=True), 0)
    high = np.maximum(np.max(x, 1, keepdims=True), 0)
    scale = (high - low) * np.float32(1 / 255)
    zero = np.clip(np.rint(-0.5 - (high + low) / 2 / scale), -128, 127)
    codes = np.clip(np.rint(x / scale) + zero, -128, 127)
    x_hat = (codes - zero) * scale
    w_hat = jc.quantize({'w': w}, [('w', jc.W8A16)], uses=in_out.IN_OUT)[
      'w'
    ].materialize()
    np.testing.assert_allclose(dw['w'], x_hat.T @ np.asarray(g), atol=1e-5)
    np.testing.assert_allclose(dx, g @ w_hat.T, atol=1e-5)

  @parameterized.parameters('vmap', 'scan', 'remat')
  def test_under_transformations(self, how):
    f, params, x, comp, *_ = training_models.setup('mlp', 'W8A8')
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
    w, x = training_models.normal(8, 4), training_models.normal(5, 8, seed=1)
    mask = training_models.normal(8, 4, seed=2) > 0
    comp = jc.fake_quantize([('w', jc.W8A16)], uses=in_out.IN_OUT)

    def leaf(w):
      return comp.apply({'w': masked_array.Masked(w, mask)}, ())

    f = lambda p, x: (x @ p['w'].reshape(2, 4, 4).reshape(8, 4)).sum()
    g = jax.jit(jax.grad(lambda w: jc.lift(f)(leaf(w), x)))(w)
    want = jnp.where(mask, x.sum(0)[:, None], 0)
    np.testing.assert_allclose(g, want, rtol=1e-5)
    # What is masked is 0 in the stored leaf, and the leaf is flat again.
    stored = jc.freeze(leaf(w))['w']
    self.assertIsInstance(stored, jc.QArray)
    np.testing.assert_array_equal(stored.materialize()[~mask], 0)

  def test_bfloat16_parameters_get_bfloat16_gradients(self):
    f, params, x, comp, *_ = training_models.setup('mlp', 'W8A16')
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
    w = training_models.normal(8, 4)
    comp = jc.fake_quantize([('w', training_models.W4G4)], uses=in_out.IN_OUT)
    y, pullback = jax.vjp(
      lambda w: jc.lift(f)(comp.apply({'w': w}, ())['w']), w
    )
    w_hat = comp.apply({'w': w}, ())['w'].materialize()
    y_want, pullback_want = jax.vjp(f, w_hat)
    np.testing.assert_array_equal(y, y_want)
    g = training_models.normal(*y.shape, seed=3).astype(y.dtype)
    np.testing.assert_array_equal(pullback(g)[0], pullback_want(g)[0])


class LeafTest(parameterized.TestCase):
  def test_describe_and_shape(self):
    leaf = jc.fake_quantize([('w', jc.W8A8)], uses=in_out.IN_OUT).apply(
      {'w': training_models.normal(8, 4)}, ()
    )['w']
    self.assertIsInstance(leaf, trained.FakeQuant)
    self.assertEqual(
      leaf.describe(), 'fake int8 channel, int8 asym activations'
    )
    self.assertEqual((leaf.shape, leaf.dtype), ((8, 4), jnp.float32))
    self.assertFalse(
      jc.fake_quantize([('w', training_models.W4G4)], uses=in_out.IN_OUT)
      .apply({'w': training_models.normal(8, 4)}, ())['w']
      .can_cut(-2, 2)
    )

  def test_not_finite_stays_not_finite(self):
    comp = jc.fake_quantize([('w', jc.W8A16)], uses=in_out.IN_OUT)
    f = jax.jit(
      lambda w: jc.lift(lambda p: p['w'] * 1)(comp.apply({'w': w}, ()))
    )
    for row in (0, 2):
      for bad in (jnp.nan, jnp.inf):
        w = training_models.normal(8, 4).at[row, 0].set(bad)
        self.assertFalse(np.isfinite(f(w))[:, 0].any())

  def test_on_a_mesh_with_explicit_axes(self):
    mesh = jax.make_mesh(
      (4,), ('d',), axis_types=(jax.sharding.AxisType.Explicit,)
    )
    comp = jc.fake_quantize([('w', 'W8A16')], uses=in_out.IN_OUT)
    w = training_models.normal(8, 16)
    for spec in ('d', None), (None, 'd'), (None, None):
      with jax.set_mesh(mesh):
        cut = jax.device_put(w, jax.P(*spec))
        f = jax.jit(lambda w: comp.apply({'w': w}, ())['w'].frozen)
        got = f(cut)
      want = jc.quantize({'w': w}, [('w', 'W8A16')], uses=in_out.IN_OUT)['w']
      np.testing.assert_array_equal(got.materialize(), want.materialize())


if __name__ == '__main__':
  absltest.main()
