"""Allocations against numpy, written down from the papers."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.pruning import allocate
from jaxopt_compress.pruning import ranking
from jaxopt_compress.pruning import spec as spec_lib

Sparsity = spec_lib.Sparsity
MATRIX = uses_lib.Axes((-2,), (), (-1,))
CONV = uses_lib.Axes((-4, -3, -2), (), (-1,))
STACK = uses_lib.Axes((-2,), (-3,), (-1,))
SHAPES = {
  'conv': ((3, 3, 4, 8), CONV),
  'head': ((16, 3), MATRIX),
  'stack': ((3, 12, 20), STACK),
  'wide': ((20, 40), MATRIX),
}
AXES = {path: axes for path, (_, axes) in SHAPES.items()}


def leaves():
  rng = np.random.default_rng(0)
  found = {p: rng.standard_t(3, shape) for p, (shape, _) in SHAPES.items()}
  found['stack'] *= np.array([1.0, 0.1, 4.0])[:, None, None]
  return {p: jnp.abs(jnp.asarray(x, jnp.float32)) for p, x in found.items()}


def layers_of(scores):
  """Every layer by itself, as numpy: {name: [scores]}."""
  out = {}
  for path, s in scores.items():
    stack = s if path == 'stack' else s[None]
    out |= {(path, i): np.asarray(x, np.float64) for i, x in enumerate(stack)}
  return out


def kept_of(masks):
  return {name: int(m.sum()) for name, m in layers_of(masks).items()}


def erk(sizes, shapes, target, kernel=True):
  """Density of each layer, by the loop of RigL's sparse_utils.py."""
  dense = set()
  while True:
    raw, divisor, right = {}, 0.0, 0.0
    for name, shape in shapes.items():
      n = sizes[name]
      if name in dense:
        right -= math.floor(n * target)
      else:
        right += n - math.floor(n * target)
        used = shape if kernel else shape[-2:]
        raw[name] = sum(used) / np.prod(used)
        divisor += raw[name] * n
    scale = right / divisor
    top = max(raw.values())
    if scale * top <= 1:
      break
    dense |= {name for name, r in raw.items() if r == top}
  return {n: 1.0 if n in dense else scale * raw[n] for n in shapes}


def lamp(layers, kept):
  """How many of each layer are among the `kept` largest LAMP scores."""
  scores, owner = [], []
  for name, s in layers.items():
    squares = np.sort(s.ravel()) ** 2  # ascending
    scores.append(squares / np.cumsum(squares[::-1])[::-1])
    owner += [name] * s.size
  order = np.argsort(-np.concatenate(scores), kind='stable')[:kept]
  chosen = [owner[i] for i in order]
  return {name: chosen.count(name) for name in layers}


def owl(layers, target, outlier, spread):
  """Densities, from equal sizes in the paper to means weighted by size."""
  sizes = np.array([s.size for s in layers.values()])
  ratios = np.array([(s > outlier * s.mean()).mean() for s in layers.values()])
  scaled = (ratios - ratios.min()) / (ratios.max() - ratios.min()) * 2 * spread
  density = scaled - (scaled * sizes).sum() / sizes.sum() + 1 - target
  return dict(zip(layers, density, strict=True))


class AllocateTest(parameterized.TestCase):
  @parameterized.product(
    allocation=['erk', 'er'], target=[0.3, 0.6, 0.9, 0.99], ramp=[1.0]
  )
  def test_erdos_renyi(self, allocation, target, ramp):
    scores = leaves()
    spec = Sparsity(target, allocation=allocation)
    got = kept_of(ranking.masks(spec, scores, AXES, ramp))
    shapes = {n: x.shape for n, x in layers_of(scores).items()}
    sizes = {n: np.prod(shape) for n, shape in shapes.items()}
    want = erk(sizes, shapes, target, allocation == 'erk')
    for name, n in got.items():
      self.assertLessEqual(abs(n - want[name] * sizes[name]), 0.501, name)
    total = sum(sizes.values())
    self.assertLessEqual(
      abs(sum(got.values()) - total * (1 - target)), len(sizes) / 2
    )

  @parameterized.parameters(0.2, 0.5, 0.9, 0.97)
  def test_lamp(self, target):
    scores = leaves()
    masks = ranking.masks(Sparsity(target, allocation='lamp'), scores, AXES)
    layers = layers_of(scores)
    total = sum(s.size for s in layers.values())
    want = lamp(layers, total - round(total * target))
    self.assertEqual(kept_of(masks), want)
    for s, m in zip(layers.values(), layers_of(masks).values(), strict=True):
      kept, gone = s[m > 0], s[m == 0]
      self.assertGreater(kept.min(initial=np.inf), gone.max(initial=0))

  def test_lamp_of_zeros_and_ties(self):
    scores = {'a': jnp.array([[0.0, 0, 0, 4, 4, 4]]), 'b': jnp.zeros((1, 6))}
    axes = dict.fromkeys(scores, MATRIX)
    for target in (0.1, 0.5, 0.75, 0.9):
      got = ranking.masks(Sparsity(target, allocation='lamp'), scores, axes)
      kept = sum(int(m.sum()) for m in got.values())
      self.assertEqual(kept, 12 - round(12 * target))
      self.assertTrue(got['a'][0, 3])

  @parameterized.parameters((0.5, 3.0, 0.08), (0.7, 5.0, 0.1), (0.5, 1e9, 0.1))
  def test_owl(self, target, outlier, spread):
    scores = leaves()
    spec = Sparsity(target, allocation='owl', outlier=outlier, spread=spread)
    got = kept_of(ranking.masks(spec, scores, AXES))
    layers = layers_of(scores)
    if outlier == 1e9:  # no layer has any: all are alike
      want = dict.fromkeys(layers, 1 - target)
    else:
      want = owl(layers, target, outlier, spread)
    for name, s in layers.items():
      self.assertLessEqual(abs(got[name] - want[name] * s.size), 0.51, name)
    total = sum(s.size for s in layers.values())
    self.assertLessEqual(abs(sum(got.values()) - total * (1 - target)), 3)

  def test_owl_is_refused_where_a_layer_could_be_emptied(self):
    with self.assertRaisesRegex(ValueError, 'At most 0.05'):
      spec = Sparsity(0.9, allocation='owl', spread=0.08)
      ranking.masks(spec, leaves(), AXES)

  @parameterized.parameters('uniform', 'erk', 'er', 'owl', 'lamp')
  def test_shares_are_ramped(self, allocation):
    scores = leaves()
    spec = Sparsity(0.6, allocation=allocation)
    final = kept_of(ranking.masks(spec, scores, AXES))
    half = kept_of(ranking.masks(spec, scores, AXES, 0.5))
    for name, s in layers_of(scores).items():
      gone = s.size - final[name]
      self.assertLessEqual(abs(s.size - half[name] - gone / 2), 0.5)

  def test_a_function_of_the_users(self):
    def by_hand(layers, target):
      return {path: 0.5 if path == 'wide' else 0.0 for path in layers}

    scores = leaves()
    got = ranking.masks(Sparsity(0.2, allocation=by_hand), scores, AXES)
    self.assertEqual(int(got['wide'].sum()), 400)
    self.assertTrue(got['conv'].all())
    with self.assertRaisesRegex(ValueError, r"gave fractions for \['w'\]"):
      other = Sparsity(0.2, allocation=lambda layers, target: {'w': 0.5})
      ranking.masks(other, scores, AXES)

  def test_target_zero_keeps_all(self):
    for allocation in ('erk', 'er', 'lamp', 'uniform'):
      spec = Sparsity(0.0, allocation=allocation)
      got = ranking.masks(spec, leaves(), AXES)
      self.assertTrue(jax.tree.all(jax.tree.map(jnp.all, got)))

  def test_shapes_alone_are_enough_for_erk(self):
    x = allocate.Layers(jnp.ones((1, 1)), (0, 1), (4, 4), 1)
    self.assertEqual(allocate.erk({'a': x, 'b': x}, 0.5), {'a': 0.5, 'b': 0.5})


if __name__ == '__main__':
  absltest.main()
