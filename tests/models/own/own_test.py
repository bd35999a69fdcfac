"""Networks of a user's, taken apart: what must hold for every kind."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.models import own
from tests.models.own import networks

X = np.random.default_rng(0).normal(size=(6, 4)).astype('f')
LIKE = jax.ShapeDtypeStruct(X.shape, X.dtype)
KEY = jax.random.key(0)

# (make, keywords, names of parameters, names of variables, is random in training)
CASES = {
  'linen': (
    networks.Linen,
    dict(width=5),
    'BatchNorm_0/bias BatchNorm_0/scale Dense_0/bias Dense_0/kernel'
    ' Dense_1/bias Dense_1/kernel',
    'batch_stats/BatchNorm_0/mean batch_stats/BatchNorm_0/var',
    True,
  ),
  'linen_pair': (
    networks.LinenPair,
    {},
    'Dense_0/bias Dense_0/kernel Dense_1/bias Dense_1/kernel',
    '',
    True,
  ),
  'linen_of_a_function': (
    networks.linen_of_a_function,
    dict(classes=3),
    'layers_1/bias layers_1/kernel layers_3/bias layers_3/kernel',
    '',
    False,
  ),
  'nnx': (
    networks.Nnx,
    dict(in_features=4, num_classes=3),
    'first/bias first/kernel head/bias head/kernel norm/bias norm/scale',
    'norm/mean norm/var',
    True,
  ),
  'nnx_told': (
    networks.NnxTold,
    {},
    'first/bias first/kernel norm/bias norm/scale',
    'norm/mean norm/var',
    True,
  ),
  'tree': (networks.tree, dict(classes=3), 'weight', 'count', True),
}


@functools.cache
def made(name):
  make, keywords, *_ = CASES[name]
  parts = own.taken_apart(name, make, keywords, LIKE)
  # Eagerly, every operation would be compiled alone.
  apply = jax.jit(parts.apply, static_argnames='train')
  return apply, *jax.jit(parts.init)(KEY)


def names(tree):
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  keystr = functools.partial(jax.tree_util.keystr, simple=True, separator='/')
  return ' '.join(sorted(keystr(path) for path, _ in flat))


class OwnTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_parts(self, name):
    *_, params, variables, random = CASES[name]
    apply, *arrays = made(name)
    self.assertEqual([*map(names, arrays)], [params, variables])
    y, out, same = apply(*arrays, X)
    self.assertEqual(y.shape[0], 6)
    self.assertEqual(bool(out), name in ('linen_pair', 'nnx_told'))
    chex.assert_trees_all_equal(same, arrays[1])
    chex.assert_trees_all_equal(y, apply(*arrays, X)[0])
    one, other = (
      apply(*arrays, X, train=True, rngs=jax.random.key(seed))[0]
      for seed in (1, 2)
    )
    self.assertEqual(bool((one != other).any()), random)

  @parameterized.parameters(
    ('linen', 'batch_stats BatchNorm_0', 'Dense_0'),
    ('nnx', 'norm', 'first'),
    ('nnx_told', 'norm', 'first'),
  )
  def test_statistics_follow_the_batch_in_training_alone(
    self, name, norm, first
  ):
    apply, params, variables = made(name)
    changed = apply(params, variables, X, train=True, rngs=KEY)[2]
    for part in norm.split():
      changed = changed[part]
    h = np.float64(X) @ np.float64(params[first]['kernel'])
    # With a momentum of a half, from 0 and from 1.
    np.testing.assert_allclose(changed['mean'], h.mean(0) / 2, atol=1e-5)
    np.testing.assert_allclose(changed['var'], (1 + h.var(0)) / 2, atol=1e-5)

  def test_one_example_at_a_time(self):
    apply, params, variables = made('tree')
    expected = 2 * np.float64(X) @ np.float64(params['weight']).T
    y = apply(params, variables, X)[0]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)

  def test_weights_follow_the_key(self):
    parts = own.taken_apart('n', *CASES['nnx'][:2], LIKE)
    one, other = (
      parts.init(jax.random.key(seed))[0]['head']['kernel'] for seed in (0, 1)
    )
    self.assertTrue((one != other).any())

  def test_integers_are_looked_up(self):
    from flax import linen as nn

    like = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    parts = own.taken_apart(
      'n', nn.Embed, dict(num_embeddings=7, features=3), like
    )
    y = parts.apply(*parts.init(KEY), jnp.zeros((2, 5), jnp.int32))[0]
    self.assertEqual(y.shape, (2, 5, 3))


if __name__ == '__main__':
  absltest.main()
