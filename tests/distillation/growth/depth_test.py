import functools

from absl.testing import absltest
from absl.testing import parameterized
import deep
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.core import rules
from jaxopt_compress.distillation.growth import depth


def _chain(p, x):
  for i in range(len(p)):
    x = x + jnp.tanh(x @ p[f'l{i}']['v']) @ p[f'l{i}']['w']
  return x


def _layers(n):
  p = {
    f'l{i}': {
      k: np.cos(np.arange(9.0).reshape(3, 3) + i + j)
      for j, k in enumerate('vw')
    }
    for i in range(n)
  }
  return jax.tree.map(jnp.float32, p)


X = jnp.float32([[1, -2, 0.5], [0.3, 0, 2]])


@functools.cache
def _structure(n=2):
  return jc.structure(_chain)(_layers(n), X)


def _plan(asked, where='uniform'):
  found = _structure()
  return plan_lib.Plan(found, depth.sources(found, asked, where))


class SourcesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('twice', 2, 'uniform', [0, 0, 1, 1]),
    ('half as many more', 1.5, 'uniform', [0, 0, 1]),
    ('stacked', 2, 'stacked', [0, 1, 0, 1]),
    ('number', {'l0:layers': 3}, 'stacked', [0, 1, 0]),
    ('by hand', {'l0:layers': [0, 1, 1]}, 'uniform', [0, 1, 1]),
  )
  def test_which(self, asked, where, expected):
    found = depth.sources(_structure(), asked, where)
    self.assertEqual(
      {n: s.tolist() for n, s in found.items()}, {'l0:layers': expected}
    )

  @parameterized.named_parameters(
    ('parts', 1.2, 'uniform', '2 layers, which do not become 2.4'),
    ('fewer', 0.5, 'uniform', 'do not become 1'),
    ('fewer by number', {'l0:layers': 1}, 'uniform', '1 are fewer'),
    ('one goes', {'l0:layers': [1, 1]}, 'uniform', 'at least once'),
    ('typo', {'l0:layer': 4}, 'uniform', "'l0:layers'"),
    ('where', 2, 'stack', "'stacked'"),
  )
  def test_refused(self, asked, where, message):
    with self.assertRaisesRegex(ValueError, message):
      depth.sources(_structure(), asked, where)

  def test_no_layers(self):
    found = jc.structure(lambda p, x: jnp.tanh(x @ p['w']))(
      {'w': jnp.ones((3, 3))}, X
    )
    with self.assertRaisesRegex(ValueError, 'no layers'):
      depth.sources(found, 2)


class StartTest(parameterized.TestCase):
  @parameterized.named_parameters(
    # w of each layer as a multiple of that of its source.
    ('copy', 'uniform', 'copy', [1, 1, 1, 1]),
    ('identity', 'uniform', 'identity', [1, 0, 1, 0]),
    ('identity on top', 'stacked', 'identity', [1, 1, 0, 0]),
    ('gated', 'uniform', 'gated', [1, 0.1, 1, 0.1]),
    (
      'another gate',
      'uniform',
      functools.partial(depth.gated, gate=0.25),
      [1, 0.25, 1, 0.25],
    ),
    ('shared', 'uniform', 'shared', [0.5, 0.5, 0.5, 0.5]),
  )
  def test_last_weights(self, where, how, factors):
    plan, p = _plan(2, where), _layers(2)
    new = depth.start(plan, plan.apply(p), how)
    for i, (source, factor) in enumerate(
      zip(plan.sources['l0:layers'], factors, strict=True)
    ):
      old = p[f'l{source}']
      np.testing.assert_array_equal(new[f'l{i}']['v'], old['v'])
      np.testing.assert_allclose(
        new[f'l{i}']['w'], np.float32(factor) * old['w'], rtol=1e-6
      )

  @parameterized.named_parameters(
    ('transformer', deep.transformer, (2,), (4,)),
    ('statistics', deep.resnet, ((2, 1),), ((4, 2),)),
  )
  def test_function_is_kept(self, made, few, many):
    fun, params, x = made(*few)
    larger, like, _ = made(*many)
    found = jc.structure(fun)(params, x)
    plan = plan_lib.Plan(found, depth.sources(found, 2))
    new = depth.start(plan, plan.apply(params), 'identity')
    self.assertEqual(
      jax.tree.map(jnp.shape, new), jax.tree.map(jnp.shape, like)
    )
    np.testing.assert_allclose(larger(new, x), fun(params, x), atol=1e-5)
    # What is zero has a gradient, and no other start is the same function.
    grads = jax.grad(lambda p: jnp.sin(larger(p, x)).sum())(new)
    grads, values = map(dict, map(rules.named_leaves, (grads, new)))
    zero = [p for p, v in values.items() if not np.asarray(v).any()]
    self.assertNotEmpty(zero)
    for path in zero:
      self.assertGreater(float(jnp.abs(grads[path]).max()), 0, path)
    copied = larger(plan.apply(params), x)
    self.assertGreater(float(jnp.abs(copied - fun(params, x)).max()), 1e-3)

  def test_stacks_of_a_loop(self):
    def fun(p, x):
      def layer(x, p):
        return x + jnp.tanh(x @ p['v']) @ p['w'], None

      return jax.lax.scan(layer, x, p)[0]

    p = jax.tree.map(lambda *x: jnp.stack(x), *_layers(2).values())
    found = jc.structure(fun)(p, X)
    plan = plan_lib.Plan(found, depth.sources(found, 2))
    new = depth.start(plan, plan.apply(p), 'identity')
    np.testing.assert_allclose(fun(new, X), fun(p, X), atol=1e-6)
    grads = jax.grad(lambda p: fun(p, X).sum())(new)
    # Of new layers the last weight alone learns at once, then all.
    moved = np.abs(np.asarray(grads['w'])).max((1, 2)) > 0
    self.assertEqual(moved.tolist(), [True] * 4)
    still = np.abs(np.asarray(grads['v'])).max((1, 2)) > 0
    self.assertEqual(still.tolist(), [True, False, True, False])

  def test_rectified_layers(self):
    def fun(p, x):
      return deep.mlp(p, jax.nn.relu(x)).sum(-1)

    x = jnp.cos(jnp.arange(12.0).reshape(2, 6))
    found = jc.structure(fun)(deep.MLP, x)
    plan = plan_lib.Plan(found, depth.sources(found, 1.5))
    new = depth.start(plan, plan.apply(deep.MLP), 'identity')
    self.assertLen(new, 12)
    np.testing.assert_allclose(fun(new, x), fun(deep.MLP, x), rtol=1e-5)

  def test_post_norm_is_refused(self):
    fun, params, x = deep.transformer(post=True)
    found = jc.structure(fun)(params, x)
    plan = plan_lib.Plan(found, depth.sources(found, 2))
    new = plan.apply(params)
    with self.assertRaisesRegex(ValueError, "layers='copy'"):
      depth.start(plan, new, 'identity')
    with self.assertRaisesRegex(ValueError, "'shared'"):
      depth.start(plan, new, 'share')


if __name__ == '__main__':
  absltest.main()
