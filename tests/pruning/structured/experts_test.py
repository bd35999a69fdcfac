"""What experts are worth, and plans that leave some out."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen
import jax
from jax import lax
import jax.numpy as jnp
import mixtures
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.pruning.structured import experts

X = mixtures.X


def on_a_stream(name):
  return lambda p, x: x + mixtures.MIXTURES[name](p['moe'], x)


def by_hand(name, p, x):
  """[tokens, experts]: gates, and norms of what experts give."""
  k = mixtures.TAKES[name]
  top, which = lax.top_k(jax.nn.softmax(x @ p['router']), k)
  top = top / top.sum(-1, keepdims=True) if k > 1 else top
  chosen = jax.nn.one_hot(which, p['router'].shape[-1])
  h = jax.nn.relu(jnp.einsum('td,edf->tef', x, p['up']))
  y = jnp.einsum('tef,efd->ted', h, p['down'])
  gates = (chosen * top[..., None]).sum(1)
  return gates, jnp.linalg.norm(y, axis=-1)


class ExpertsTest(parameterized.TestCase):
  @parameterized.parameters(*mixtures.MIXTURES)
  def test_by_hand(self, name):
    fun, p = on_a_stream(name), {'moe': mixtures.drawn()}
    found = jc.structure(fun)(p, X)
    gates, norms = by_hand(name, p['moe'], X)
    counts = (gates > 0).sum(0)
    group = 'moe/down:-3'
    for score, want in (
      (experts.reap, (gates * norms).sum(0) / jnp.maximum(counts, 1)),
      (experts.frequency, counts / len(X)),
      (experts.mass, jax.nn.softmax(X @ p['moe']['router']).mean(0)),
    ):
      got = score(found, fun, p, [X[:3], X[3:]])
      np.testing.assert_allclose(got[group], want, rtol=1e-4, atol=1e-6)

  @parameterized.parameters(*mixtures.MIXTURES)
  def test_fewer_experts(self, name):
    fun, p = on_a_stream(name), {'moe': mixtures.drawn()}
    found = jc.structure(fun)(p, X)
    small = jc.Plan(found, {'moe/down:-3': [0, 2, 3]}).apply(p)
    kept = {
      n: jnp.take(w, jnp.array([0, 2, 3]), axis=-1 if n == 'router' else 0)
      for n, w in p['moe'].items()
    }
    gates, _ = by_hand(name, kept, X)
    h = jax.nn.relu(jnp.einsum('td,edf->tef', X, kept['up']))
    y = jnp.einsum('tef,efd,te->td', h, kept['down'], gates)
    np.testing.assert_allclose(fun(small, X), X + y, rtol=1e-4, atol=1e-5)
    least = mixtures.TAKES[name]
    if least > 1:
      with self.assertRaisesRegex(ValueError, 'the program takes 2 of them'):
        jc.Plan(found, {'moe/down:-3': [0]})

  def test_loops(self):
    p = mixtures.drawn(layers=(2,))

    def looped(p, x):
      layer = lambda x, p: (x + mixtures.every(p, x), None)
      return lax.scan(layer, x, p['layers'])[0]

    def named(p, x):
      for layer in p['layers']:
        x = x + mixtures.every(layer, x)
      return x

    layers = [jax.tree.map(lambda w, i=i: w[i], p) for i in range(2)]
    forms = (looped, {'layers': p}), (named, {'layers': layers})
    found = [jc.structure(fun)(p, X) for fun, p in forms]
    got = [
      experts.reap(s, fun, p, [X])
      for s, (fun, p) in zip(found, forms, strict=True)
    ]
    (x,), (y, z) = (list(g.values()) for g in got)
    np.testing.assert_allclose(x, np.stack([y, z]), rtol=1e-4)
    # Each layer of the loop keeps experts of its own, as many as the others.
    by = [('.*', 0.5)]
    plan = jc.select(found[0], got[0], keep=0.5, by=by)
    small = plan.apply(forms[0][1])
    self.assertEqual(small['layers']['up'].shape, (2, 2, 6, 5))
    for i in range(2):
      best = np.sort(np.argsort(-x[i])[:2])
      np.testing.assert_array_equal(small['layers']['up'][i], p['up'][i][best])
    # Layers with names share one threshold, and keep what is above it.
    by = [('.*', 'keep')]
    plan = jc.select(
      found[1], got[1], keep=0.75, by=by, scope='global', at_least=2
    )
    self.assertEqual(sum(plan.sizes.values()), 6)
    self.assertTrue(jnp.isfinite(named(plan.apply(forms[1][1]), X)).all())

  def test_groups_of_experts(self):
    # Of two groups of two experts one is chosen first, and then both of it.
    def fun(p, x):
      chances = jax.nn.sigmoid(x @ p['router'])
      best = lax.top_k(chances.reshape(-1, 2, 2).max(-1), 1)[1]
      inside = jnp.repeat(jax.nn.one_hot(best[:, 0], 2), 2, -1)
      gates, which = lax.top_k(jnp.where(inside > 0, chances, 0.0), 2)
      weights = jnp.einsum('tk,tke->te', gates, jax.nn.one_hot(which, 4))
      h = jax.nn.relu(jnp.einsum('td,edf->tef', x, p['up']))
      return x + jnp.einsum('tef,efd,te->td', h, p['down'], weights)

    p = mixtures.drawn()
    found = jc.structure(fun)(p, X)
    got = experts.frequency(found, fun, p, [X])
    groups, inside = got.values()
    np.testing.assert_allclose(groups.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(inside, [0.5, 0.5], rtol=1e-6)

  def test_linen(self):
    class Mixture(linen.Module):
      experts: int

      @linen.compact
      def __call__(self, x):
        n, init = self.experts, linen.initializers.normal()
        d = x.shape[-1]
        p = {
          'router': self.param('router', init, (d, n)),
          'up': self.param('up', init, (n, d, 5)),
          'down': self.param('down', init, (n, 5, d)),
        }
        return x + mixtures.every(p, x)

    model = Mixture(4)
    params = model.init(jax.random.key(0), X)
    found = jc.structure(model.apply)(params, X)
    scores = experts.reap(found, model.apply, params, [X])
    plan = jc.select(found, scores, keep=0.5, by=[('.*', 'keep')])
    small = plan.apply(params)
    self.assertEqual(Mixture(2).apply(small, X).shape, X.shape)

  @parameterized.product(loop=(False, True), dtype=('float32', 'bfloat16'))
  def test_unreachable(self, loop, dtype):
    # The router has a bias, and top_k is of what comes after softmax.
    def layer(p, x):
      chances = jax.nn.softmax(x @ p['router'] + p['bias'][None])
      gates, which = lax.top_k(chances, 2)
      chosen = jax.nn.one_hot(which, chances.shape[-1], dtype=x.dtype)
      weights = (chosen * gates[..., None]).sum(1)
      h = jax.nn.relu(jnp.einsum('td,edf->tef', x, p['up']))
      return x + jnp.einsum('tef,efd,te->td', h, p['down'], weights)

    def fun(p, x):
      if loop:
        return lax.scan(lambda x, p: (layer(p, x), None), x, p['moe'])[0]
      return layer(p['moe'], x)

    layers = (2,) if loop else ()
    p = mixtures.drawn(layers=layers) | {'bias': 0.1 * jnp.ones((*layers, 4))}
    p = {'moe': jax.tree.map(lambda w: w.astype(dtype), p)}
    x = X.astype(dtype)
    found = jc.structure(fun)(p, x)
    (name,) = experts.experts_lib.groups(found)
    plan = jc.Plan(found, {name: [0, 1, 3]})
    closed = experts.unreachable(plan, fun, p, x)
    run = jax.jit(fun)
    np.testing.assert_allclose(
      run(closed, x).astype('float32'),
      run(plan.apply(p), x).astype('float32'),
      rtol=1e-5 if dtype == 'float32' else 2e-2,
      atol=1e-5 if dtype == 'float32' else 2e-2,
    )

  def test_refused(self):
    fun, p = on_a_stream('every'), {'moe': mixtures.drawn()}
    found = jc.structure(fun)(p, X)
    plain = lambda p, x: x @ p['moe']['router']
    for call, message in (
      (
        lambda: experts.reap(jc.structure(plain)(p, X), plain, p, [X]),
        'no exp',
      ),
      (lambda: experts.reap(found, fun, p, []), 'no batch'),
      (lambda: experts.reap(found, fun, p, [X * jnp.nan]), 'not finite'),
      (lambda: experts.reap(found, plain, p, [X]), 'does not use'),
      (
        lambda: experts.unreachable(
          jc.Plan(found, {'moe/down:-3': [0, 1]}), fun, p, X
        ),
        'nothing is added to what a router',
      ),
    ):
      with self.assertRaisesRegex(ValueError, message):
        call()


if __name__ == '__main__':
  absltest.main()
