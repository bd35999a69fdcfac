import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import chex
import deep
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_compress as jc


class RenumberedTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (
      'transformer',
      deep.transformer,
      {'params/Block_0:layers': [0, 2]},
      lambda: deep.transformer(2),
    ),
    (
      'resnet',
      deep.resnet,
      {'params/Residual_0:layers': [1], 'params/Residual_3:layers': [1]},
      lambda: deep.resnet((1, 1)),
    ),
    ('decoder', deep.gqa, {'blocks/0:layers': [1]}, lambda: deep.gqa(1)),
  )
  def test_masked_is_without(self, made, sources, smaller):
    fun, params, x = made()
    plan = jc.Plan(deep.structure(made), sources)
    small_fun, like, _ = smaller()
    small = plan.apply(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(small, like)
    shapes = {path: leaf.shape for path, leaf in jc.rules.named_leaves(small)}
    self.assertEqual(plan.shapes, shapes)
    y = small_fun(small, x)
    np.testing.assert_allclose(
      y, fun(plan.mask(params), x), rtol=1e-5, atol=1e-6
    )
    self.assertGreater(float(jnp.abs(y - fun(params, x)).max()), 1e-3)
    optimizer = optax.MultiSteps(optax.adam(0.1), 2)
    chex.assert_trees_all_equal_shapes_and_dtypes(
      plan.apply(optimizer.init(params)), optimizer.init(small)
    )
    again = jc.Plan.from_json(plan.to_json())
    self.assertEqual(again.shapes, plan.shapes)

  def test_drawn(self):
    p = {
      'layers': [{'w': i * jnp.eye(2)} for i in range(4)],
      'head': jnp.eye(2),
    }

    def fun(p, x):
      for layer in p['layers']:
        x = x + jnp.tanh(x @ layer['w'])
      return x @ p['head']

    found = jc.structure(fun)(p, jnp.ones((1, 2)))
    for source in ([0, 2, 3], [1], [0, 1, 1, 2, 3], [3, 0]):
      small = jc.Plan(found, {'layers/0:layers': source}).apply(p)
      got = [int(layer['w'][0, 0]) for layer in small['layers']]
      self.assertEqual(got, source)
      self.assertIsInstance(small['layers'], list)
    for empty, message in (([], 'one at least'), ([4], 'channels 0 to 3')):
      with self.assertRaisesRegex(ValueError, message):
        jc.Plan(found, {'layers/0:layers': empty})

  def test_numbers_between(self):
    # A list with activations in it: layers 0, 2, 4, of which 2 goes.
    model = nnx.Sequential(
      *(
        m
        for i in range(4)
        for m in (nnx.Linear(4, 4, rngs=nnx.Rngs(i)), jnp.tanh)
      )
    )
    graphdef, params = nnx.split(model)
    fun = lambda p, x: nnx.merge(graphdef, p)(x)
    found = jc.structure(fun)(params, jnp.ones((2, 4)))
    (name,) = found.layers
    small = jc.Plan(found, {name: [0, 2, 3]}).apply(params)
    self.assertEqual(list(small['layers']), [0, 3, 5])

  def test_layers_keep_their_order(self):
    found = deep.structure(deep.transformer)
    (name,) = found.layers
    width = 'params/Block_2/Dense_0/kernel:-1'
    importance = {name: np.arange(3.0), width: np.arange(16.0)}
    self.assertEqual(list(jc.pruning.sort(found, importance).sources), [width])
    leading = jc.Plan(found, {name: [1, 2], width: [3, 5]}).leading
    self.assertEqual(leading.sources[name].tolist(), [1, 2])
    self.assertEqual(leading.sources[width].tolist(), [0, 1])

  def test_widths_and_layers_at_once(self):
    _, params, _ = deep.transformer()
    found = deep.structure(deep.transformer)
    width = 'params/Block_2/Dense_0/kernel:-1'
    plan = jc.Plan(found, {'params/Block_0:layers': [2], width: [1, 3, 5]})
    small = plan.apply(params)
    self.assertEqual(
      small['params']['Block_0']['Dense_0']['kernel'].shape, (8, 3)
    )
    np.testing.assert_array_equal(
      small['params']['Block_0']['Dense_0']['bias'],
      params['params']['Block_2']['Dense_0']['bias'][jnp.array([1, 3, 5])],
    )

  def test_parameters_without_their_collection(self):
    _, params, _ = deep.resnet()
    found = deep.structure(deep.resnet)
    plan = jc.Plan(found, {'params/Residual_0:layers': [2]})
    small = plan.apply(params)
    for name in params:
      chex.assert_trees_all_equal(plan.apply(params[name]), small[name])
    masked = optax.masked(
      optax.adam(0.1), lambda p: jax.tree.map(lambda x: x.ndim == 1, p)
    )
    chex.assert_trees_all_equal_structs(
      plan.apply(masked.init(params['params'])), masked.init(small['params'])
    )

  def test_modules(self):
    class Attributes(nnx.Module):
      def __init__(self, depth):
        self.depth = depth
        for i in range(depth):
          setattr(self, f'l{i}', nnx.Linear(4, 4, rngs=nnx.Rngs(i)))

      def __call__(self, x):
        for i in range(self.depth):
          x = x + jnp.tanh(getattr(self, f'l{i}')(x))
        return x

    class Listed(nnx.Module):
      def __init__(self, depth):
        self.layers = nnx.List(
          nnx.Linear(4, 4, rngs=nnx.Rngs(i)) for i in range(depth)
        )

      def __call__(self, x):
        for layer in self.layers:
          x = x + jnp.tanh(layer(x))
        return x

    x = jnp.linspace(-1, 1, 8).reshape(2, 4)
    for kind in (Listed, Attributes):
      model = kind(3)
      graphdef, params = nnx.split(model)
      fun = lambda p, x, g=graphdef: nnx.merge(g, p)(x)
      found = jc.structure(fun)(params, x)
      (name,) = found.layers
      plan = jc.Plan(found, {name: [0, 2]})
      small = jc.shrink(plan, model)
      small.depth = 2
      y = small(x)
      np.testing.assert_allclose(y, fun(plan.mask(params), x), rtol=1e-6)
      # And as a state with the module of that size.
      state = plan.apply(params)
      np.testing.assert_array_equal(y, nnx.merge(nnx.split(small)[0], state)(x))
      self.assertEqual(model(x).shape, y.shape)  # the module itself has all

  def test_attributes_are_refused(self):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Params:
      w0: jax.Array
      w1: jax.Array

    p = Params(jnp.eye(2), jnp.eye(2))
    fun = lambda p, x: jnp.tanh(jnp.tanh(x @ p.w0) @ p.w1)
    plan = jc.Plan(jc.structure(fun)(p, jnp.ones((1, 2))), {'w0:layers': [1]})
    with self.assertRaisesRegex(
      ValueError, 'a Params, whose attributes are given'
    ):
      plan.apply(p)


if __name__ == '__main__':
  absltest.main()
