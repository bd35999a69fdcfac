"""Which numbers of a config make the network of a plan, for models of many kinds."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import chex
from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import jaxopt_compress as jc

KEY, X, IMAGES = jax.random.key(0), jnp.ones((2, 5)), jnp.ones((2, 8, 8, 3))


class Mlp(nn.Module):
  widths: tuple[int, ...] = (12, 8)
  classes: int = 3

  @nn.compact
  def __call__(self, x):
    for n in self.widths:
      x = nn.relu(nn.Dense(n)(x))
    return nn.Dense(self.classes)(x)


class Net(nn.Module):
  """Convolutions and batch norms of one width, and of its multiple."""

  width: int = 4
  expand: int = 3
  classes: int = 3

  @nn.compact
  def __call__(self, x):
    for _ in range(2):
      y = nn.Conv(self.width * self.expand, (1, 1))(x)
      y = nn.relu(nn.BatchNorm(use_running_average=True)(y))
      x = nn.Conv(self.width, (3, 3))(y)
    return nn.Dense(self.classes)(x.mean((1, 2)))


class Attention(nn.Module):
  """Heads whose product is written in kernels as one axis."""

  heads: int = 4
  head_dim: int = 6
  mlp: int = 20

  @nn.compact
  def __call__(self, x):
    n = self.heads * self.head_dim
    q, k, v = (
      nn.Dense(n, name=f)(x).reshape(*x.shape[:-1], self.heads, -1)
      for f in 'qkv'
    )
    w = jax.nn.softmax(jnp.einsum('thd,shd->hts', q, k))
    y = jnp.einsum('hts,shd->thd', w, v).reshape(*x.shape[:-1], n)
    x = x + nn.Dense(x.shape[-1], name='o')(y)
    return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(self.mlp)(x)))


@dataclasses.dataclass
class NnxConfig:
  hidden: int = 12
  depth: int = 2


class NnxMlp(nnx.Module):
  def __init__(self, config, rngs):
    self.first = nnx.Linear(5, config.hidden, rngs=rngs)
    self.rest = nnx.List(
      [
        nnx.Linear(config.hidden, config.hidden, rngs=rngs)
        for _ in range(config.depth)
      ]
    )
    self.last = nnx.Linear(config.hidden, 3, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.first(x))
    for layer in self.rest:
      x = nnx.relu(layer(x))
    return self.last(x)


def _linen(make, x):
  """(shapes, apply) of a Linen module made of a config."""
  return (
    lambda c: jax.eval_shape(make(c).init, KEY, x),
    lambda c: make(c).apply,
  )


def _nnx_shapes(config):
  model = nnx.eval_shape(lambda: NnxMlp(config, nnx.Rngs(0)))
  return nnx.state(model)


def _nnx_apply(config):
  graphdef = nnx.graphdef(nnx.eval_shape(lambda: NnxMlp(config, nnx.Rngs(0))))
  return lambda state, x: nnx.merge(graphdef, state)(x)


def _of_dict(c):
  return Mlp(tuple(c['widths']), c.get('classes', 3))


# {name: (shapes, apply, config, x, {size of groups: new size}, delta)}
MODELS = {
  'module, one of its widths': (
    *_linen(lambda m: m, X),
    Mlp(),
    X,
    {8: 4},
    {'widths/1': 4},
  ),
  'dict, both widths': (
    *_linen(_of_dict, X),
    {'widths': [12, 8], 'seed': 12},
    X,
    {12: 5, 8: 4},
    {'widths/0': 5, 'widths/1': 4},
  ),
  'ConfigDict': (
    *_linen(_of_dict, X),
    ml_collections.ConfigDict({'widths': (12, 8), 'classes': 3}),
    X,
    {12: 6},
    {'widths/0': 6},
  ),
  'multiple of a width': (
    *_linen(lambda m: m, IMAGES),
    Net(),
    IMAGES,
    {12: 8},
    {'expand': 2},
  ),
  'heads': (
    *_linen(lambda m: m, X),
    Attention(),
    X,
    {4: 2, 20: 7},
    {'heads': 2, 'mlp': 7},
  ),
  'nnx of a dataclass': (
    _nnx_shapes,
    _nnx_apply,
    NnxConfig(),
    X,
    {12: 4},
    {'hidden': 4},
  ),
}


def _planned(name):
  shapes, apply, config, x, sizes, delta = MODELS[name]
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda s: jnp.float32(rng.uniform(0.5, 1.5, s.shape)), shapes(config)
  )
  found = jc.structure(apply(config))(params, x)
  plan = jc.Plan(
    found,
    {
      n: np.sort(rng.permutation(g.size)[: sizes[g.size]])
      for n, g in found.free.items()
      if g.size in sizes
    },
  )
  return params, plan


class ConfigDeltaTest(parameterized.TestCase):
  @parameterized.parameters(*MODELS)
  def test_found(self, name):
    shapes, apply, config, x, _, want = MODELS[name]
    params, plan = _planned(name)
    delta, new = jc.analysis.config_delta(shapes, config, plan)
    self.assertEqual(delta, want)
    self.assertIs(type(new), type(config))
    small = jc.shrink(plan, params)
    chex.assert_trees_all_equal_shapes(shapes(new), small)
    np.testing.assert_allclose(
      apply(new)(small, x),
      apply(config)(plan.mask(params), x),
      rtol=1e-5,
      atol=1e-5,
    )

  def test_layers(self):
    """A layer less, of narrower ones, by the number of layers."""
    config = NnxConfig(depth=3)
    params = jax.tree.map(lambda s: jnp.ones(s.shape), _nnx_shapes(config))
    found = jc.structure(_nnx_apply(config))(params, X)
    sources = {
      n: [0, 2] if n.endswith(':layers') else np.arange(5)
      for n, g in found.groups.items()
      if not g.locked
    }
    plan = jc.Plan(found, sources)
    delta, new = jc.analysis.config_delta(_nnx_shapes, config, plan)
    self.assertEqual(delta, {'hidden': 5, 'depth': 2})
    chex.assert_trees_all_equal_shapes(
      _nnx_shapes(new), jc.shrink(plan, params)
    )

  def test_numbers_that_have_to_fit(self):
    """Neither of two numbers may change alone."""

    def shapes(c):
      assert c['hidden'] == c['heads'] * c['head_dim'], c
      n = c['hidden']
      return {'q': jnp.ones((5, n)), 'o': jnp.ones((n, 5))}

    def apply(p, x):
      y = (x @ p['q']).reshape(len(x), -1, 6)
      return (y / (1 + y.max(-1, keepdims=True))).reshape(len(x), -1) @ p['o']

    config = {'hidden': 24, 'heads': 4, 'head_dim': 6}
    found = jc.structure(apply)(shapes(config), X)
    (heads,) = (n for n, g in found.free.items() if g.size == 4)
    plan = jc.Plan(found, {heads: [0, 2]})
    delta, _ = jc.analysis.config_delta(shapes, config, plan)
    self.assertEqual(delta, {'hidden': 12, 'heads': 2})

  def test_refused(self):
    def shapes(c):
      return {'a': jnp.ones((5, c['n'])), 'b': jnp.ones((c['n'], c['n']))} | {
        'c': jnp.ones((c['n'], 7)),
        'd': jnp.ones((7, 3)),
      }

    fun = lambda p, x: x @ p['a'] @ p['b'] @ p['c'] @ p['d']
    found = jc.structure(fun)(shapes({'n': 8}), X)
    first, second, third = 'a:-1', 'b:-1', 'c:-1'
    for config, sources, message in (
      ({'n': 8}, {first: [0, 1], second: [0]}, "one number 'n'.*equal widths"),
      ({'n': 8}, {first: [0, 1]}, 'wants 2, .*:-1 wants 8'),
      (
        {'n': 8},
        {third: [0]},
        r'c is to be \(8, 1\), from \(8, 7\).*no number\. .*written',
      ),
      ({'n': 9}, {first: [0, 1]}, r'other parameters: a of shape \(5, 8\) has'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        jc.analysis.config_delta(shapes, config, jc.Plan(found, sources))

  def test_shapes_that_fit_two_networks(self):
    """Half of the width: with half of the heads, or with heads of half the size."""

    def shapes(c):
      n, d = c['width'], c['width'] // c['heads']
      of = {'in': (5, n), 'q': (n, n), 'k': (n, c['keys'] * d)}
      of |= {'v': (n, c['keys'] * d), 'o': (n, n), 'out': (n, 3)}
      return {
        name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in of.items()
      }

    def apply(p, x):  # heads of 8
      x = x @ p['in']
      k, v = (jnp.reshape(x @ p[n], (len(x), -1, 8)) for n in 'kv')
      q = jnp.reshape(x @ p['q'], (len(x), k.shape[1], -1, 8))
      w = jax.nn.softmax(jnp.einsum('tkrd,skd->krts', q, k))
      y = jnp.einsum('krts,skd->tkrd', w, v).reshape(len(x), -1)
      return (x + y @ p['o']) @ p['out']

    config = {'width': 32, 'heads': 4, 'keys': 2}
    found = jc.structure(apply)(shapes(config), X)
    groups = {g.size: n for n, g in found.free.items() if not g.within}
    sources = {groups[n]: np.arange(m) for n, m in ((32, 16), (2, 1))}
    delta, _ = jc.analysis.config_delta(shapes, config, jc.Plan(found, sources))
    self.assertEqual(delta, {'width': 16, 'heads': 2, 'keys': 1})

  def test_two_settings(self):
    shapes = lambda c: {
      'a': jnp.ones((5, c['m'] * c['n'])),
      'b': jnp.ones((c['m'] * c['n'], 3)),
    }
    config = {'m': 4, 'n': 4}
    found = jc.structure(lambda p, x: x @ p['a'] @ p['b'])(shapes(config), X)
    plan = jc.Plan(found, {'a:-1': np.arange(8)})
    with self.assertRaisesRegex(ValueError, "{'n': 2}, {'m': 2}.*'n': 4"):
      jc.analysis.config_delta(shapes, config, plan)


if __name__ == '__main__':
  absltest.main()
