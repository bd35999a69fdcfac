"""Switched leaves compute what the forms do that are chosen, by one program."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.core import array
from jaxopt_compress.core import lift
from jaxopt_compress.quantization import quantize as quantize_lib
from jaxopt_compress.quantization import schemes
from jaxopt_compress.quantization import switches

_KEYS = [jax.random.key(i) for i in range(4)]
X = jax.random.normal(_KEYS[0], (6, 16)) + 0.5
W = jax.random.normal(_KEYS[1], (16, 16)) / 4
CONV = jax.random.normal(_KEYS[2], (3, 3, 4, 8))
IMAGE = jax.random.normal(_KEYS[3], (2, 6, 6, 4))
WORDS = ('int8, int8 token asym', 'int4 g8', 'int8 asym, int8 tensor')


def _conv(p, x):
  return lax.conv_general_dilated(
    x, p['w'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def _scan(p, x):
  return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p['w'])[0]


CASES = {
  'a product': (lambda p, x: x @ p['w'], W, X),
  'turned and cut': (lambda p, x: x @ p['w'].T[:, :8], W, X),
  'an einsum': (
    lambda p, x: jnp.einsum('bk,khd->bhd', x, p['w'].reshape(16, 4, 4)),
    W,
    X,
  ),
  'in a jit': (lambda p, x: jax.jit(jnp.dot)(x, p['w']), W, X),
  'an image': (_conv, CONV, IMAGE),
  'layers': (_scan, jnp.stack([W, W.T]), X),
  'layers by index': (
    lambda p, x: (x @ p['w'][0]) @ p['w'][1],
    jnp.stack([W, W.T]),
    X,
  ),
  'experts': (
    lambda p, x: jnp.einsum('bk,ekn->ebn', x, p['w']),
    jnp.stack([W, W.T]),
    X,
  ),
}


def _leaf(f, w, x):
  uses = jc.uses(f)({'w': w}, x)
  made = [schemes.scheme(words) for words in WORDS]
  forms = [quantize_lib.quantize_leaf('w', w, s, uses) for s in made]
  met = uses['w']
  experts = set().union(*(u.experts for u in met))
  stacked = set().union(*(u.stacked for u in met)) - experts
  return forms, switches.switched(w, forms, tuple(stacked))


def _run(f, leaf, x):
  ctx = lift.context(rule_for=switches.rule_for)
  return array.materialize(lift.run(ctx, f, ({'w': leaf}, x), {}))


class SwitchesTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_what_is_chosen_is_computed(self, name):
    f, w, x = CASES[name]
    forms, leaf = _leaf(f, w, x)
    shape = leaf.choice.act_scale.shape
    ones = jnp.ones(shape)
    run = jax.jit(lambda i, j: _run(f, leaf.chosen(i * ones, j * ones), x))
    np.testing.assert_allclose(run(0, 0), f({'w': w}, x), atol=1e-5)
    for i, form in enumerate(forms, 1):
      want = jc.lift(f)({'w': form}, x)
      np.testing.assert_allclose(run(i, i), want, atol=2e-5)
      weight = f({'w': form.materialize()}, x)
      np.testing.assert_allclose(run(i, 0), weight, atol=2e-5)
    self.assertEqual(run._cache_size(), 1)
    # The other operand alone, of a form that rounds it, and of one that does not.
    y = f({'w': w}, x)
    apart = jnp.abs(run(0, 1) - y).max() / jnp.abs(y).max()
    self.assertBetween(float(apart), 1e-5, 0.05)
    np.testing.assert_array_equal(run(0, 2), run(0, 0))

  def test_each_layer_chooses(self):
    f, w, x = CASES['layers']
    forms, leaf = _leaf(f, w, x)
    self.assertEqual(leaf.choice.act_scale.shape, (2, 1, 1))
    got = jax.jit(lambda i: _run(f, leaf.chosen(i, 0 * i), x))
    mixed = {'w': w.at[1].set(forms[0].materialize()[1])}
    np.testing.assert_allclose(got(jnp.float32([0, 1])), f(mixed, x), atol=2e-5)
    np.testing.assert_allclose(
      leaf.chosen(jnp.float32([0, 1]), jnp.zeros(2)).materialize(),
      mixed['w'],
      atol=1e-6,
    )

  def test_layers_side_by_side_are_dense(self):
    """A choice for each layer cannot round what they all meet."""
    w = jnp.stack([W, W.T])
    forms, _ = _leaf(*CASES['layers by index'][:1], w, X)
    leaf = switches.switched(w, forms, (-3,))
    leaf = leaf.chosen(jnp.float32([0, 1]), jnp.float32([1, 1]))
    f = CASES['experts'][0]
    mixed = w.at[1].set(forms[0].materialize()[1])
    got = jax.jit(lambda x: _run(f, leaf, x))(X)
    np.testing.assert_allclose(got, f({'w': mixed}, X), atol=2e-5)

  def test_describe(self):
    _, leaf = _leaf(*CASES['a product'])
    self.assertEqual(
      leaf.describe(),
      'float or int8 channel, int8 asym activations or int4 g8 or'
      ' int8 channel asym, int8 activations',
    )


if __name__ == '__main__':
  absltest.main()
