"""Learned ranges: gradients of the papers' equations, and that they help."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.quantization import learned

_RNG = np.random.default_rng(0)
W = _RNG.normal(size=(12, 5)).astype(np.float32)
X = _RNG.normal(size=(7, 12)).astype(np.float32)


def _oracle(x, s, z, lowest, highest, pact):
  """x_hat and its derivatives with respect to x, s and z, by the equations."""
  v = x / s + z
  q = np.round(np.clip(v, lowest, highest))
  inside = (v >= lowest) & (v <= highest)
  d_s = np.where(inside, 0.0 if pact else q - v, q - z)
  return (q - z) * s, inside.astype(float), d_s, np.where(inside, 0, -s)


class _Case(parameterized.TestCase):
  """Draws the same numbers whatever ran before."""

  def setUp(self):
    super().setUp()
    global _RNG
    _RNG = np.random.default_rng(0)


class EquationsTest(_Case):
  @parameterized.product(
    format=('int2', 'int4', 'int8'),
    symmetric=(True, False),
    learn=('lsq', 'pact'),
  )
  def test_gradients(self, format, symmetric, learn):
    spec = jc.schemes.Spec(
      format, 'tensor', symmetric=symmetric, static=True, learn=learn
    )
    fmt = spec.numbers
    s = np.float32(1.3 / fmt.highest)
    z = np.float32(0 if symmetric else round(fmt.lowest / 2))
    x = np.float64(W)
    want, d_x, d_s, d_z = _oracle(
      x, s, z, fmt.lowest, fmt.highest, learn == 'pact'
    )
    f = lambda x, s, z: learned.surrogate(
      x, s, None if symmetric else z, spec=spec, entries=60
    )
    g = _RNG.normal(size=W.shape)
    out, pull = jax.vjp(f, W, s, z)
    got_x, got_s, got_z = pull(jnp.float32(g))
    slow = 1 / np.sqrt(60 * fmt.highest)
    np.testing.assert_allclose(out, want, atol=1e-5)
    np.testing.assert_allclose(got_x, g * d_x, atol=1e-5)
    np.testing.assert_allclose(got_s, slow * (g * d_s).sum(), rtol=1e-3)
    if not symmetric:
      np.testing.assert_allclose(got_z, slow * (g * d_z).sum(), rtol=1e-3)

  def test_starts(self):
    got = learned.first_range(
      W, jc.schemes.Spec('int4', learn='lsq'), ((-2, 0),)
    )
    want = 2 * np.abs(W).mean(0, keepdims=True) / np.sqrt(7)
    np.testing.assert_allclose(got['scale'], want, rtol=1e-6)
    spec = jc.schemes.Spec('int4', symmetric=False, learn='lsq')
    got = learned.first_range(W, spec, ((-2, 0),))
    span = W.max(0) - W.min(0)
    np.testing.assert_allclose(got['scale'][0], span / 15, rtol=1e-5)

  def test_a_step_finds_the_least_squared_error(self):
    w = jnp.asarray(_RNG.normal(size=(4000,)), jnp.float32)
    spec = jc.schemes.Spec('int3', 'tensor', learn='lsq')
    error = lambda s: jnp.square(
      learned.surrogate(w, s, None, spec=spec, entries=1) - w
    ).mean()
    s = jnp.float32(1.0)
    for _ in range(300):
      s = s - 0.2 * jax.grad(error)(s)
    grid = jnp.linspace(0.2, 1.2, 201)
    best = grid[jnp.argmin(jax.vmap(error)(grid))]
    self.assertAlmostEqual(float(s), float(best), delta=0.04)


def _apply(p, x):
  body = lambda h, w: (jax.nn.relu(h @ w), None)
  h = lax.scan(jax.checkpoint(body), x, p['layers'])[0]
  return h @ p['head']


def _problem():
  rng = np.random.default_rng(1)
  params = {
    'layers': jnp.asarray(rng.normal(size=(2, 12, 12)) / 3, jnp.float32),
    'head': jnp.asarray(W),
  }
  uses = jc.uses(_apply)(params, X)
  return params, uses


def _loss(comp, rest, target):
  def loss(params, learned, x):
    state = jc.core.merge_learned(learned, rest)
    y = jc.lift(_apply)(comp.apply(params, state), x)
    return jnp.square(y - target).mean()

  return loss


class TrainTest(_Case):
  @parameterized.parameters(
    'int4 lsq, int4 tensor static lsq',
    'int4 lsq asym, int4 tensor static asym lsq',
    'int4 g4 lsq, int8 tensor static asym pact',
    'int3 mse lsq',
    'int4 tensor bfloat16 lsq, int8 token',
  )
  def test_trained_is_frozen_and_learning_helps(self, words):
    params, uses = _problem()
    rules = [('.*', words)]
    ranges = None
    if 'static' in words:
      ranges = jc.calibrate(_apply, params, rules, [X], uses)
    comp = jc.fake_quantize(rules, uses, ranges=ranges)
    values, rest = jc.core.split_learned(comp.init(params))
    target = _apply(params, X)
    loss = jax.jit(jax.value_and_grad(_loss(comp, rest, target), (0, 1)))
    first, (_, grads) = loss(params, values, X)
    for path, g in jax.tree.leaves_with_path(grads):
      if "'weight'" in str(path) and "'scale'" in str(path):
        self.assertGreater(float(jnp.abs(g).max()), 0, path)
    learn = lambda rate: lambda v, g: v - rate * g
    losses = []
    for _ in range(150):
      now, (g_params, g_values) = loss(params, values, X)
      losses.append(float(now))
      params = jax.tree.map(learn(0.005), params, g_params)
      values = jax.tree.map(learn(0.002), values, g_values)
    last, _ = loss(params, values, X)
    # The quantised loss jumps from step to step; its level falls.
    self.assertLess(np.median(losses[50:]), 0.97 * float(first))

    frozen = jc.freeze(comp.apply(params, jc.core.merge_learned(values, rest)))
    y = jax.jit(jc.lift(_apply))(frozen, X)
    got = jnp.square(y - target).mean()
    np.testing.assert_allclose(got, last, rtol=1e-5)

  def test_delayed_and_gradual_start(self):
    params, uses = _problem()
    comp = jc.fake_quantize([('.*', 'int2, int8')], uses, begin=10, end=20)
    state = comp.init(params)

    def run(step):
      now = comp.update(state, params, jc.Info(step))
      tree = comp.apply(params, now)
      return jax.jit(lambda t, x: jc.lift(_apply)(t, x))(tree, X), tree

    dense = _apply(params, X)
    (early, tree), (late, _) = run(5), run(25)
    np.testing.assert_allclose(early, dense, rtol=1e-5, atol=1e-6)
    frozen = jax.jit(jc.lift(_apply))(jc.freeze(tree), X)
    np.testing.assert_array_equal(late, frozen)
    between, _ = run(14)
    apart = lambda y: float(jnp.linalg.norm(y - dense))
    self.assertBetween(apart(between), 0.1 * apart(late), 0.95 * apart(late))

    hard = jc.fake_quantize([('.*', 'int2, int8')], uses, begin=10)
    for step, want in ((9, dense), (10, late)):
      tree = hard.apply(
        params, hard.update(hard.init(params), params, jc.Info(step))
      )
      y = jax.jit(jc.lift(_apply))(tree, X)
      np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
    with self.assertRaisesRegex(ValueError, 'begin=5 is after end=3'):
      jc.fake_quantize([('.*', 'W8A8')], uses, begin=5, end=3)

  def test_stochastic_rounding_is_new_at_each_step_and_unbiased(self):
    params, uses = _problem()
    comp = jc.fake_quantize([('.*', 'int4 stochastic')], uses, seed=3)
    state = comp.init(params)
    at = jax.jit(
      lambda step: jc.materialize(
        comp.apply(params, comp.update(state, params, jc.Info(step)))
      )['head']
    )
    draws = np.stack([at(i) for i in range(400)])
    self.assertGreater(np.abs(draws[0] - draws[1]).max(), 0)
    np.testing.assert_array_equal(draws[7], at(7))
    step = np.abs(W).max(0) / 7.5
    inside = np.abs(W) <= 7 * step
    error = (draws.mean(0) - W) / step
    self.assertLess(np.abs(error[inside]).max(), 4.5 * 0.5 / np.sqrt(400))

  def test_bad_input(self):
    params, uses = _problem()
    with self.assertRaisesRegex(ValueError, 'jc.calibrate'):
      jc.fake_quantize([('.*', 'int4, int4 tensor static lsq')], uses).init(
        params
      )
    with self.assertRaisesRegex(ValueError, 'cannot be learned'):
      jc.schemes.Spec('e2m1', 'group', 32, scale='e8m0', learn='lsq')
    with self.assertRaisesRegex(ValueError, 'static=True'):
      jc.schemes.Spec('int4', 'token', learn='pact')
    with self.assertRaisesRegex(ValueError, "weights have 'lsq'"):
      jc.Scheme(jc.schemes.Spec('int4', 'tensor', static=True, learn='pact'))


if __name__ == '__main__':
  absltest.main()
