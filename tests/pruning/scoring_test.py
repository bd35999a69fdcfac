"""What scores take beside weights, and what they rank."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.pruning import scoring
from jaxopt_compress.pruning import spec as spec_lib

Sparsity = spec_lib.Sparsity


def network(p, x):
  x = jax.lax.conv_general_dilated(
    x, p['conv'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  x = jnp.tanh(x).reshape(x.shape[0], -1) @ p['in']

  def layer(x, w):
    return jnp.tanh(x @ w), None

  x = jax.lax.scan(layer, x, p['scan'])[0]
  x = jnp.einsum('bd,dhk->bhk', x, p['heads'])
  return jnp.einsum('bhk,hkd->bd', x, p['merge'])


SHAPES = {
  'conv': (3, 3, 2, 4),
  'heads': (8, 2, 8),
  'in': (64, 8),
  'merge': (2, 8, 8),
  'scan': (3, 8, 8),
}
PARAMS = {
  path: jax.random.normal(key, shape)
  for key, (path, shape) in zip(
    jax.random.split(jax.random.key(0), 5), SHAPES.items(), strict=True
  )
}
X = jax.random.normal(jax.random.key(1), (5, 4, 4, 2))
USES = jc.uses(network)(PARAMS, X)
STATS = jc.observe(network, {'.*': jc.statistics.sum_squares()})(PARAMS, X)[1]


def met(path):
  """Squared activations that a weight meets, [layers, contracted entries], in numpy."""
  seen = []

  def product(x, w):
    seen.append(np.asarray(x))
    return x @ w

  p, x = PARAMS, np.pad(X, ((0, 0), (1, 1), (1, 1), (0, 0)))
  patches = np.stack(
    [x[:, i : i + 4, j : j + 4] for i in range(3) for j in range(3)], -2
  ).reshape(-1, 18)
  y = product(patches, np.reshape(p['conv'], (18, 4)))
  y = product(np.tanh(y).reshape(5, -1), p['in'])
  for w in p['scan']:
    y = np.tanh(product(y, w))
  y = product(y, np.reshape(p['heads'], (8, 16)))
  product(y, np.reshape(p['merge'], (16, 8)))
  squares = [np.square(x, dtype=np.float64).sum(0) for x in seen]
  parts = dict(conv=squares[:1], heads=squares[5:6], merge=squares[6:])
  parts |= {'in': squares[1:2], 'scan': squares[2:5]}
  return np.stack(parts[path])


def rows_of(path, x):
  """[layers, contracted, outputs]."""
  out = dict(conv=4, heads=16, merge=8, scan=8) | {'in': 8}
  layers = 3 if path == 'scan' else 1
  return np.asarray(x).reshape(layers, -1, out[path])


def wanda(w, squares, fraction, m=0):
  """Masks by the code of the paper: sort each output's metric, drop the first."""
  metric = np.abs(w) * np.sqrt(squares)[..., None]
  mask = np.ones(w.shape, bool)
  groups = m or w.shape[1]
  for begin in range(0, w.shape[1], groups):
    part = metric[:, begin : begin + groups]
    order = np.argsort(part, axis=1, kind='stable')
    gone = order[:, : int(groups * fraction)]
    np.put_along_axis(mask[:, begin : begin + groups], gone, False, 1)
  return mask


class ScoringTest(parameterized.TestCase):
  @parameterized.parameters(
    (Sparsity(0.5, score='wanda'), 0),
    (Sparsity(kind='n_m', n=2, m=4, score='wanda'), 4),
    (Sparsity(kind='n_m', n=1, m=2, score='wanda'), 2),
  )
  def test_wanda_is_the_papers(self, spec, m):
    rules = [('conv' if m == 4 else 'none', None), ('.*', spec)]
    rules = rules if m == 4 else rules[1:]
    pruned = jc.prune(PARAMS, rules, USES, input_squares=STATS)
    for path in SHAPES:
      if path == 'conv' and m:
        continue  # two input channels: groups of 2 run along them alone
      want = wanda(rows_of(path, PARAMS[path]), met(path), 0.5, m)
      np.testing.assert_array_equal(
        rows_of(path, pruned[path].mask), want, path
      )

  def test_gradients_squares_and_keys(self):
    g = jax.tree.map(lambda x: jnp.sin(9 * x), PARAMS)
    squares = jax.tree.map(jnp.square, g)
    cases = dict(
      taylor=('gradient', g, lambda w, g: (w * g) ** 2),
      first_order=('gradient', g, lambda w, g: w * g),
      movement=('gradient', g, lambda w, g: -w * g),
      fisher=('gradient_squares', squares, lambda w, f: w * w * f),
    )
    for score, (name, other, f) in cases.items():
      rules = [('in', Sparsity(0.75, score=score)), ('.*', None)]
      got = jc.prune(PARAMS, rules, USES, **{name: other})['in'].mask
      scores = np.asarray(f(PARAMS['in'], other['in']))
      np.testing.assert_array_equal(got, scores > np.quantile(scores, 0.75))

  def test_random_is_keyed_and_each_leaf_has_its_own(self):
    params = {'a': jnp.ones((8, 8)), 'b': jnp.ones((8, 8))}
    rules = [('.*', Sparsity(0.5, score='random'))]
    one, again, other = (
      jc.prune(params, rules, key=jax.random.key(i)) for i in (0, 0, 1)
    )
    np.testing.assert_array_equal(one['a'].mask, again['a'].mask)
    self.assertFalse((one['a'].mask == one['b'].mask).all())
    self.assertFalse((one['a'].mask == other['a'].mask).all())
    self.assertEqual(int(one['a'].mask.sum()), 32)

  def test_while_training_scores_are_told(self):
    params = {'w': jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    spec = Sparsity(0.5, score='movement', memory=1.0, begin=1, end=2)
    comp = jc.methods.gradual([('w', spec)])
    state = comp.init(params)
    self.assertTrue(state.masks['w'].all())
    update = jax.jit(comp.update)
    for step, g in ((1, [[5.0, -1], [-1, 1]]), (2, [[-9.0, -1], [-1, 1]])):
      state = update(state, params, jc.Info(step, {'w': jnp.array(g)}))
    # -w g summed: 4, 4, 6, -8.
    self.assertEqual(state.sums['w'].tolist(), [[4, 4], [6, -8]])
    self.assertEqual(state.masks['w'].tolist(), [[True, False], [True, False]])
    self.assertEqual(update._cache_size(), 1)

  def test_wanda_while_training(self):
    spec = Sparsity(0.5, score='wanda', begin=1, end=1)
    comp = jc.methods.gradual([('in', spec), ('.*', None)], USES)
    state = comp.init(PARAMS)
    wanted = comp.observes(PARAMS)
    self.assertEqual(list(wanted), ['in'])
    stats = jc.observe(network, wanted)(comp.apply(PARAMS, state), X)[1]
    state = comp.update(state, PARAMS, jc.Info(1, None, stats))
    want = wanda(rows_of('in', PARAMS['in']), met('in'), 0.5)
    np.testing.assert_array_equal(state.masks['in'], want[0])

  @parameterized.parameters(
    ({}, 'taylor', "takes 'gradient' beside the weights: pass gradient="),
    ({}, 'random', "takes 'key'.*a PRNG key"),
    (dict(gradients=0), 'taylor', "gradients= is given.*mean 'gradient'"),
    (dict(key=0), 'magnitude', 'take weights alone'),
    (dict(gradient={'v': 1.0}), 'taylor', 'gradient= has nothing for w'),
    (dict(gradient={'w': np.ones((3, 2))}), 'taylor', r'has shape \(3, 2\)'),
    (dict(gradient={'w': np.full((2, 2), np.nan)}), 'taylor', '^w of .taylor'),
  )
  def test_errors(self, others, score, message):
    rules = [('w', Sparsity(0.5, score=score))]
    with self.assertRaisesRegex(ValueError, message):
      jc.prune({'w': jnp.ones((2, 2))}, rules, **others)

  def test_a_score_of_another_shape_is_refused(self):
    spec = Sparsity(0.5, score=lambda x: x.sum(0))
    with self.assertRaisesRegex(ValueError, r'^w: the score.*shape \(2,\)'):
      jc.prune({'w': jnp.ones((2, 2))}, [('w', spec)])

  def test_what_an_update_lacks_is_named(self):
    comp = jc.methods.gradual([('w', Sparsity(0.5, score='taylor', end=3))])
    params = {'w': jnp.array([1.0, 2.0])}
    state = comp.init(params)  # nothing is masked yet: no gradient is needed
    with self.assertRaisesRegex(ValueError, "'gradient', of which an update"):
      comp.update(state, params, jc.Info(1))
    comp = jc.methods.gradual([('w', Sparsity(0.5, score='taylor'))])
    with self.assertRaisesRegex(ValueError, "takes 'gradient'"):
      comp.init(params)

  def test_a_statistic_of_another_weight_is_refused(self):
    stats = {'in': STATS['scan']}
    rules = [('in', Sparsity(0.5, score='wanda')), ('.*', None)]
    with self.assertRaisesRegex(
      ValueError, r'in: a statistic of shape \(3, 8\)'
    ):
      jc.prune(PARAMS, rules, USES, input_squares=stats)

  def test_zero_scores_are_below_all_others(self):
    for score, name, tiny in (
      ('taylor', 'gradient', 1e-16),
      ('taylor', 'gradient', 1e-25),
      ('fisher', 'gradient_squares', 1e-32),
      ('first_order', 'gradient', 1e-35),
    ):
      given = {'w': jnp.repeat(jnp.float32([0, tiny]), 4), 'v': jnp.zeros(2)}
      params = {'w': jnp.ones(8), 'v': jnp.array([100.0, 50.0])}
      rules = [('.*', Sparsity(0.5, score=score, scope='global'))]
      kept = jc.prune(params, rules, **{name: given})
      self.assertEqual(kept['w'].mask.tolist(), [False] * 4 + [True] * 4)

  def test_zero_scores_are_ranked_by_magnitude(self):
    got = scoring.settle(
      jnp.array([0.0, 2.0, 0.0]), jnp.array([3.0, 1.0, -4.0])
    )
    self.assertEqual(np.argsort(got).tolist(), [0, 2, 1])


if __name__ == '__main__':
  absltest.main()
