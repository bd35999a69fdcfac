"""Masked is shrunk: results, gradients, and after ten steps of an optimizer.

Where a group lies within others, each of these keeps channels of its own.
"""

import functools
import re

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from modules import MODULES
from networks import made
from networks import NETWORKS
import numpy as np
import optax

import jaxopt_compress as jc
from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.core import rules as rules_lib


def _drawn(params):
  rng = np.random.default_rng(0)

  def draw(path, x):
    if path.endswith('var'):
      return jnp.asarray(rng.random(x.shape) + 0.5, x.dtype)
    return jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype)

  return rules_lib.map_named(draw, params)


def _half(found, names):
  """Half of the channels of some groups, other ones in each row."""
  rng, sources = np.random.default_rng(0), {}
  for name in names:
    group = found.groups[name]
    rows = [found.groups[g].size for g in group.within]
    every = np.broadcast_to(np.arange(group.size), (*rows, group.size))
    drawn = rng.permuted(every, axis=-1)[..., : group.size // 2]
    sources[name] = np.sort(drawn, axis=-1)
  return plan_lib.Plan(found, sources)


@functools.partial(jax.jit, static_argnums=0)
def _ten_steps(fun, p, keep, x):
  """(result, gradient, parameters after ten steps) where some stay zero."""
  # An eps that is not tiny: noise of vanishing gradients would be a full step.
  optimizer = optax.adam(1e-2, eps=1e-2)

  def grad(p):
    g = jax.grad(lambda p: jnp.sin(fun(p, x)).sum())(p)
    return jax.tree.map(jnp.multiply, g, keep)

  def step(_, carry):
    p, state = carry
    updates, state = optimizer.update(grad(p), state, p)
    return optax.apply_updates(p, updates), state

  end, _ = jax.lax.fori_loop(0, 10, step, (p, optimizer.init(p)))
  return fun(p, x), grad(p), end


class ModulesTest(parameterized.TestCase):
  def check(self, fun, small_fun, plan, params, x):
    ones = jax.tree.map(jnp.ones_like, params)
    small = plan.apply(params)
    self.assertNotEqual(*map(_numbers, (params, small)))
    y, *others = _ten_steps(fun, plan.mask(params), plan.mask(ones), x)
    got = _ten_steps(small_fun, small, plan.apply(ones), x)
    self.assertNotAlmostEqual(
      float(jnp.abs(y - fun(params, x)).max()), 0.0, places=3
    )
    for a, b in zip((y, *map(plan.apply, others)), got, strict=True):
      a, b = (
        np.concatenate([*map(np.ravel, jax.tree.leaves(t))]) for t in (a, b)
      )
      np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)

  @parameterized.parameters(*MODULES)
  def test_modules(self, name):
    case = MODULES[name]
    fun, params = case.build(**case.sizes)
    params = _drawn(params)
    x = jax.random.normal(jax.random.key(1), case.shape)
    found = jc.structure(fun)(params, x)
    sizes, names = dict(case.sizes), []
    for pattern, size in case.groups.items():
      of = [n for n in found.free if re.fullmatch(pattern, n)]
      self.assertNotEmpty(of)
      for group in map(found.groups.get, of):
        self.assertEqual(bool(group.fixed), bool(size), group)
        self.assertEmpty(group.inexact)
        if size:
          sizes[size] = group.size // 2
      names += of
    small_fun = case.build(**sizes)[0] if sizes else fun
    self.check(fun, small_fun, _half(found, names), params, x)

  # The others are tested in plan_test; these had no rule made for them.
  @parameterized.parameters('shufflenet', 'wavenet', 'mamba', 'lstm', 'experts')
  def test_networks(self, name):
    self.assertIn(name, NETWORKS)
    fun, params, x = made(name)
    params = _drawn(params)
    found = jc.structure(fun)(params, x)
    exact = [n for n, g in found.free.items() if not (g.inexact or g.fixed)]
    self.check(fun, fun, _half(found, exact), params, x)


def _numbers(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


if __name__ == '__main__':
  absltest.main()
