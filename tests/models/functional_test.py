"""A model as a pure function: what must hold for every model."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress import models
from jaxopt_compress.core import rules


class BatchNormalized(nnx.Module):
  """One batch norm and one dropout: the two things that are not functions."""

  def __init__(self, rate, *, rngs):
    self.norm = nnx.BatchNorm(2, momentum=0.75, rngs=rngs)
    self.dropouts = nnx.List([nnx.Dropout(rate), nnx.Dropout(rate)])

  def __call__(self, x, *, train=False, rngs=None):
    x = self.norm(x, use_running_average=not train)
    out = {}
    for i, dropout in enumerate(self.dropouts):
      out[f'mask{i}'] = dropout(
        jnp.ones_like(x), deterministic=not train, rngs=rngs
      )
    return x, out


def small(rate=0.5):
  return models.functional(BatchNormalized(rate, rngs=nnx.Rngs(0)))


class FunctionalTest(parameterized.TestCase):
  def test_variables_follow_the_batch_in_training_only(self):
    f = small()
    x = jnp.array([[0.0, 2.0], [4.0, 2.0]])  # mean (2, 2), variance (4, 0)
    _, _, trained = f.apply(
      f.params, f.variables, x, train=True, rngs=jax.random.key(0)
    )
    _, _, same = f.apply(f.params, f.variables, x)
    np.testing.assert_allclose(trained['norm']['mean'], [0.5, 0.5])
    np.testing.assert_allclose(trained['norm']['var'], [1.75, 0.75])
    np.testing.assert_array_equal(same['norm']['mean'], [0.0, 0.0])
    np.testing.assert_array_equal(f.variables['norm']['mean'], [0.0, 0.0])

  def test_dropout_follows_the_key(self):
    f = small()
    x = jnp.ones((64, 2))

    def masks(seed):
      key = jax.random.key(seed)
      return f.apply(f.params, f.variables, x, train=True, rngs=key)[1]

    chex.assert_trees_all_equal(masks(0), masks(0))
    self.assertFalse(jnp.array_equal(masks(0)['mask0'], masks(1)['mask0']))
    self.assertFalse(jnp.array_equal(masks(0)['mask0'], masks(0)['mask1']))
    np.testing.assert_array_equal(np.unique(masks(0)['mask0']), [0.0, 2.0])

  def test_random_state_is_refused(self):
    class Noisy(nnx.Module):
      def __init__(self):
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    with self.assertRaisesRegex(ValueError, r"Noisy keeps .*\['drop'\]"):
      models.functional(Noisy())

  @parameterized.named_parameters(
    ('missing', lambda p: {}, 'Missing: norm/bias, norm/scale'),
    ('extra', lambda p: p | {'nrom': jnp.ones(2)}, 'Not in the model: nrom'),
    (
      'nested',
      lambda p: {'norm': p},
      'Missing: norm/bias.* Not in the model: norm/norm/bias',
    ),
  )
  def test_wrong_params_are_named(self, change, message):
    f = small()
    with self.assertRaisesRegex(ValueError, message):
      f.apply(change(f.params), f.variables, jnp.ones((1, 2)))

  def test_wrong_variables_are_named(self):
    f = small()
    with self.assertRaisesRegex(ValueError, 'variables .* norm/mean'):
      f.apply(f.params, {}, jnp.ones((1, 2)))

  def test_long_lists_are_cut(self):
    f = models.abstract('mlp', widths=(2,) * 9)
    with self.assertRaisesRegex(ValueError, 'layers/1/kernel and 14 more'):
      f.apply({}, {}, jnp.ones((1, 64)))


CASES = {
  'mlp': dict(in_features=64, widths=(8, 8), dropout=0.1),
  'cnn': dict(widths=(4, 8), dropout=0.1),
  'resnet': dict(widths=(4, 8), depths=(1, 1)),
  'vit': dict(patch=4, width=8, depth=1, heads=2, dropout=0.1),
}
IMAGES = np.random.default_rng(0).uniform(size=(6, 8, 8, 1)).astype('f')
KEY = jax.random.key(0)


@functools.cache
def made(name):
  # One program: an eager init compiles one for each shape.
  @jax.jit
  def init():
    f = models.functional(models.build(name, **CASES[name]))
    return f.params, f.variables

  return models.Functional(models.abstract(name, **CASES[name]).apply, *init())


def jitted(f):
  # Eagerly, every operation would be compiled alone.
  return jax.jit(f.apply, static_argnames='train')


class EveryModelTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_contract(self, name):
    f = made(name)
    y, out, variables = jitted(f)(f.params, f.variables, IMAGES)
    self.assertEqual(y.shape, (6, 10))
    self.assertIn('block0', out)
    self.assertEqual(out['features'].shape[0], 6)
    chex.assert_trees_all_equal(variables, f.variables)

  @parameterized.parameters(*CASES)
  def test_plain_string_dicts_without_random_state(self, name):
    def check(tree):
      if isinstance(tree, dict):
        self.assertIs(type(tree), dict)
        for key, value in tree.items():
          self.assertIs(type(key), str)
          self.assertNotIn('rng', key)
          check(value)
      else:
        self.assertIsInstance(tree, jax.Array)

    check(made(name).params)
    check(made(name).variables)

  @parameterized.parameters(*CASES)
  def test_grad_vmap_and_shapes(self, name):
    f = made(name)

    def loss(params):
      y, _, new = f.apply(params, f.variables, IMAGES, train=True, rngs=KEY)
      return (y**2).mean(), new

    stack = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), f.params)
    grad = jax.jit(jax.vmap(jax.grad(loss, has_aux=True)))
    grads, new = jax.tree.map(lambda x: x[0], grad(stack))
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, f.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, f.variables)
    alive = {p: bool(jnp.any(g)) for p, g in rules.named_leaves(grads)}
    # A softmax does not change when one number is added to all its scores.
    dead = {p for p, moves in alive.items() if not moves}
    self.assertLessEqual(dead, {'blocks/0/attn/k/bias'})

  @parameterized.parameters(*CASES)
  def test_abstract(self, name):
    f = models.abstract(name, **CASES[name])
    chex.assert_trees_all_equal_shapes_and_dtypes(f.params, made(name).params)
    for leaf in jax.tree.leaves((f.params, f.variables)):
      self.assertIsInstance(leaf, jax.ShapeDtypeStruct)
    y, _, _ = jax.eval_shape(f.apply, f.params, f.variables, IMAGES)
    self.assertEqual(y.shape, (6, 10))

  @parameterized.parameters(*CASES)
  def test_bfloat16(self, name):
    dtypes = dict(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    f = models.abstract(name, **CASES[name], **dtypes)
    like = lambda dtype, tree: (
      {  # noqa: E731
        x.dtype for x in jax.tree.leaves(tree)
      }
      <= {jnp.dtype(dtype)}
    )
    self.assertTrue(like('bfloat16', f.params))
    # Statistics stay in float32: steps of 1 - momentum are lost in bfloat16.
    self.assertTrue(like('float32', f.variables))
    train = functools.partial(f.apply, train=True, rngs=KEY)
    y, _, variables = jax.eval_shape(train, f.params, f.variables, IMAGES)
    self.assertEqual(y.dtype, jnp.bfloat16)
    chex.assert_trees_all_equal_dtypes(variables, f.variables)


class BuildTest(absltest.TestCase):
  def test_seeds(self):
    kernel = lambda seed: models.functional(  # noqa: E731
      models.build('mlp', seed=seed)
    ).params['head']['kernel']
    np.testing.assert_array_equal(kernel(3), kernel(3))
    np.testing.assert_array_equal(kernel(3), kernel(jax.random.key(3)))
    self.assertFalse(np.array_equal(kernel(3), kernel(4)))

  def test_same_as_the_module(self):
    model = models.build('mlp')
    f = models.functional(model)
    got, _, _ = f.apply(f.params, f.variables, IMAGES)
    np.testing.assert_array_equal(got, model(jnp.asarray(IMAGES))[0])

  def test_built_under_jit(self):
    init = jax.jit(lambda: models.functional(models.build('mlp')).params)
    chex.assert_trees_all_close(
      init(), models.functional(models.build('mlp')).params, rtol=1e-5
    )

  def test_unknown_name_lists_the_models(self):
    with self.assertRaisesRegex(
      ValueError, "'functional'; .*'mlp', 'resnet', 'vit'"
    ):
      models.build('functional')


if __name__ == '__main__':
  absltest.main()
