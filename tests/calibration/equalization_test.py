"""Equalised ranges against the equation; folded norms against the program."""

from absl.testing import absltest
import in_out
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress import models
from jaxopt_compress.core import rules

_RNG = np.random.default_rng(0)
_START = _RNG.bit_generator.state


def _w(*shape):
  return jnp.asarray(_RNG.normal(size=shape), jnp.float32)


def _mlp(p, x):
  h = jax.nn.relu(x @ p['a'] + p['c'])
  return jax.nn.relu(h @ p['b']) @ p['d']


def _resnet():
  """A network with statistics, and gains that differ from channel to channel."""
  f = models.functional(models.build('resnet', widths=(8, 16)))
  params = {'params': f.params, 'variables': f.variables}

  def spoil(path, x):
    if not path.endswith(('mean', 'var', 'bias', 'scale')):
      return x
    return jnp.asarray(np.exp(1.5 * _RNG.normal(size=x.shape)), x.dtype)

  apply = lambda p, x: f.apply(p['params'], p['variables'], x)[0]
  return apply, rules.map_named(spoil, params), _w(16, 8, 8, 1)


class _Case(absltest.TestCase):
  def setUp(self):
    super().setUp()
    # What a test draws does not depend on which ran before it in its process.
    _RNG.bit_generator.state = _START


class EqualizeTest(_Case):
  def test_two_layers_are_the_equation(self):
    f = lambda p, x: jax.nn.relu(x @ p['a'] + p['c']) @ p['b']
    p = {'a': _w(4, 6), 'b': _w(6, 3), 'c': _w(1, 6)}
    even, _ = jc.calibration.equalize(p, jc.analysis.rescalings(f)(p, _w(2, 4)))
    a, b = np.asarray(p['a']), np.asarray(p['b'])
    s = np.sqrt(np.abs(a).max(0) / np.abs(b).max(1))
    np.testing.assert_allclose(even['a'], a / s, rtol=1e-5)
    np.testing.assert_allclose(even['c'], np.asarray(p['c']) / s, rtol=1e-5)
    np.testing.assert_allclose(even['b'], b * s[:, None], rtol=1e-5)

  def test_deep_chain_ends_where_all_ranges_agree(self):
    p = {'a': _w(4, 6), 'c': _w(1, 6), 'b': _w(6, 5), 'd': _w(5, 3)}
    p['a'] = p['a'] * jnp.exp(_w(1, 6) * 2)
    p['b'] = p['b'] * jnp.exp(_w(1, 5) * 2)
    x = _w(8, 4)
    even, _ = jc.calibration.equalize(
      p, jc.analysis.rescalings(_mlp)(p, x), sweeps=100
    )
    reach = lambda w, axis: np.abs(np.asarray(w)).max(axis)
    np.testing.assert_allclose(
      reach(even['a'], 0), reach(even['b'], 1), rtol=1e-2
    )
    np.testing.assert_allclose(
      reach(even['b'], 0), reach(even['d'], 1), rtol=1e-2
    )
    np.testing.assert_allclose(_mlp(even, x), _mlp(p, x), rtol=1e-4, atol=1e-4)

  def test_int8_per_tensor_survives_uneven_channels(self):
    apply, params, x = _resnet()
    freedoms = jc.analysis.rescalings(apply)(params, x)
    folded, gains = jc.calibration.fold_norms(params, freedoms)
    self.assertLen(gains, 6)
    # The same function, with factors on its channels that a network may well have.
    uneven = freedoms.without_gains()
    uneven = uneven.apply(folded, 1.5 * _RNG.normal(size=uneven.num))
    even, _ = jc.calibration.equalize(uneven, freedoms)
    want = apply(params, x)
    error = {}
    for name, tree in dict(folded=folded, uneven=uneven, even=even).items():
      close = 1e-4 * np.abs(want).max()
      np.testing.assert_allclose(apply(tree, x), want, atol=close)
      rules_ = [
        (r'params/.*/kernel', jc.schemes.Spec('int8', 'tensor')),
        ('.*', None),
      ]
      q = jc.quantize(tree, rules_, jc.uses(apply)(tree, x))
      error[name] = float(jnp.abs(jc.lift(apply)(q, x) - want).mean())
    self.assertLess(error['even'], error['uneven'] / 3)
    self.assertLess(error['even'], 1.2 * error['folded'])

  def test_only_channels_that_help_move(self):
    p = {'a': _w(4, 6), 'c': _w(1, 6), 'b': _w(6, 5), 'd': _w(5, 3)}
    # Wide channels between a and b, which one scale suits badly.
    spread = jnp.exp(_w(1, 6) * 2)
    p |= {'a': p['a'] * spread, 'c': p['c'] * spread, 'b': p['b'] / spread.T}
    freedoms = jc.analysis.rescalings(_mlp)(p, _w(2, 4))
    error = jc.calibration.output_error(_mlp, p, [_w(32, 4)])
    rules_ = [('a|b', jc.schemes.Spec('int4', 'tensor')), ('c|d', None)]

    def rounded(tree):
      return error(jc.quantize(tree, rules_, uses=in_out.IN_OUT))

    even, trials = jc.calibration.equalize(p, freedoms, rounded)
    self.assertEqual(set(trials), {'a - b', 'b - d'})
    self.assertTrue(trials['a - b'].applied)
    least = min(rounded(p), rounded(jc.calibration.equalize(p, freedoms)[0]))
    self.assertLessEqual(rounded(even), least)
    # An error that nothing lowers leaves all as it was.
    same, trials = jc.calibration.equalize(p, freedoms, lambda tree: 1.0)
    self.assertFalse(any(t.applied for t in trials.values()))
    jax.tree.map(np.testing.assert_array_equal, same, p)

  def test_zero_channel_stays(self):
    p = {'a': _w(4, 6), 'c': _w(1, 6), 'b': _w(6, 5), 'd': _w(5, 3)}
    p['a'] = p['a'].at[:, 2].set(0)
    even, _ = jc.calibration.equalize(
      p, jc.analysis.rescalings(_mlp)(p, _w(2, 4))
    )
    self.assertTrue(all(np.isfinite(v).all() for v in even.values()))
    np.testing.assert_array_equal(even['c'][0, 2], p['c'][0, 2])

  def test_nothing_to_equalise(self):
    f = lambda p, x: jax.nn.gelu(x @ p['a']) @ p['b']
    p = {'a': _w(4, 6), 'b': _w(6, 3)}
    with self.assertRaisesRegex(ValueError, 'nothing\\s+to equalise'):
      jc.calibration.equalize(p, jc.analysis.rescalings(f)(p, _w(2, 4)))

  def test_not_finite(self):
    p = {'a': _w(4, 6), 'c': _w(1, 6), 'b': _w(6, 5), 'd': _w(5, 3)}
    p['b'] = p['b'].at[0, 0].set(np.nan)
    with self.assertRaisesRegex(ValueError, 'b has entries'):
      jc.calibration.equalize(p, jc.analysis.rescalings(_mlp)(p, _w(2, 4)))


class FoldNormsTest(_Case):
  def test_gains_become_one(self):
    apply, params, x = _resnet()
    folded, gains = jc.calibration.fold_norms(
      params, jc.analysis.rescalings(apply)(params, x)
    )
    leaves = dict(rules.named_leaves(folded))
    for path in gains:
      var = leaves[path.replace('params/', 'variables/')[:-5] + 'var']
      np.testing.assert_allclose(
        leaves[path] / np.sqrt(var + 1e-5), np.ones(var.shape), rtol=1e-5
      )

  def test_negative_and_zero_gains(self):
    f = lambda p, x: ((x @ p['w']) - p['m']) * p['g']
    p = {'w': _w(4, 3), 'm': _w(1, 3), 'g': jnp.array([[-2.0, 0.0, 4.0]])}
    x = _w(5, 4)
    folded, _ = jc.calibration.fold_norms(p, jc.analysis.rescalings(f)(p, x))
    np.testing.assert_allclose(folded['g'], [[-1.0, 0.0, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(f(folded, x), f(p, x), rtol=1e-5, atol=1e-5)

  def test_abstract_parameters(self):
    f = lambda p, x: (x @ p['w']) * p['g']
    p = {'w': _w(4, 3), 'g': _w(1, 3)}
    like = jax.eval_shape(lambda: p)
    freedoms = jc.analysis.rescalings(f)(like, _w(2, 4))
    with self.assertRaisesRegex(ValueError, 'What g multiplies by'):
      jc.calibration.fold_norms(p, freedoms)

  def test_layer_norm_says_so(self):
    f = models.functional(models.build('vit'))
    apply = lambda p, x: f.apply(p, f.variables, x)[0]
    with self.assertRaisesRegex(ValueError, 'No gain of a norm follows'):
      jc.calibration.fold_norms(
        f.params, jc.analysis.rescalings(apply)(f.params, _w(2, 8, 8, 1))
      )


if __name__ == '__main__':
  absltest.main()
