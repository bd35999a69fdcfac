"""How the zeros of a rule are shared among its leaves.

    uniform    the same fraction of each
    erk, er    by shape: thin layers stay denser than wide ones
    owl        by outliers: layers with many of them stay denser
    lamp       by one threshold over scores that layers have in common

Each is a function of what is known of the leaves, `{path: Layers}`, and of the target.
It returns for each leaf the fraction of its units that go: a number, an array with one
for each stacked layer (shaped as the leaf, with size 1 on the axes of a layer), or a
`counts.Count` of how many. So does a function of the user's. The zeros of all are those
of the target, to one weight a layer.
"""

import functools
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.pruning import counts
from jaxopt_compress.pruning import select


class Layers(NamedTuple):
  """One leaf, which may be a stack of layers.

  Attributes:
    scores: of its units (weights, blocks, neurons).
    axes: of `scores` that make up one layer, counted from the front.
    shape: of one layer, in weights.
    number: how many layers are stacked.
  """

  scores: jax.Array
  axes: tuple[int, ...]
  shape: tuple[int, ...]
  number: int

  @property
  def size(self) -> int:
    """Weights of all layers."""
    return math.prod(self.shape) * self.number


Leaves = dict[str, Layers]
Fraction = float | jax.Array | counts.Count


def uniform(layers: Leaves, target: float) -> dict[str, Fraction]:
  """The target in each leaf.

  >>> uniform({'w': Layers(jnp.ones(4), (0,), (4,), 1)}, 0.5)
  {'w': 0.5}
  """
  return dict.fromkeys(layers, target)


def erk(
  layers: Leaves, target: float, *, power: float = 1.0
) -> dict[str, Fraction]:
  """Erdős-Rényi-Kernel: the density of a layer is e (sum of shape / product)^power.

  e is such that all leaves together have the target. Where that gives a layer more
  than it has, it stays dense and the others share the rest. Evci et al. 2020 (RigL),
  https://arxiv.org/abs/1911.11134, section 3, item 1, and Mocanu et al. 2018. FLOPs
  are not preserved: on a ResNet-50 ERK costs about twice as many as `uniform`.

  Args:
    layers: of the rule; only their shapes count.
    target: fraction of zeros of all leaves together.
    power: 0 is uniform, 1 is ERK.

  >>> wide = Layers(jnp.ones((1, 1)), (0, 1), (100, 100), 1)
  >>> thin = Layers(jnp.ones((1, 1)), (0, 1), (100, 10), 1)
  >>> {p: round(f, 3) for p, f in erk({'thin': thin, 'wide': wide}, 0.8).items()}
  {'thin': 0.219, 'wide': 0.858}
  """
  raw = {path: _thin(x.shape) ** power for path, x in layers.items()}
  return _by_density(layers, raw, target)


def er(
  layers: Leaves, target: float, *, power: float = 1.0
) -> dict[str, Fraction]:
  """Erdős-Rényi: as `erk`, of the last two axes (in, out) alone.

  Mocanu et al. 2018 (SET), https://arxiv.org/abs/1707.04780, eq. 1.

  >>> conv = Layers(jnp.ones((1, 1)), (0, 1), (3, 3, 8, 8), 1)
  >>> er({'a': conv, 'b': conv}, 0.5)
  {'a': 0.5, 'b': 0.5}
  """
  raw = {path: _thin(x.shape[-2:]) ** power for path, x in layers.items()}
  return _by_density(layers, raw, target)


def _thin(shape):
  """Neurons over connections; an empty layer has neither."""
  return sum(shape) / max(math.prod(shape), 1)


def _by_density(layers, raw, target):
  """Densities in proportion to `raw`, none above 1."""
  dense = set()
  # In whole weights of each layer, as RigL's own code counts them.
  wanted = sum(
    x.size - x.number * math.floor(target * math.prod(x.shape))
    for x in layers.values()
  )
  while len(dense) < len(layers):
    rest = {p: x for p, x in layers.items() if p not in dense}
    left = wanted - sum(layers[p].size for p in dense)
    scale = left / sum(raw[p] * x.size for p, x in rest.items())
    # A layer that is dense takes less than its part, so the others' parts grow.
    full = {p for p in rest if scale * raw[p] > 1}
    if not full:
      return {p: 0.0 if p in dense else 1 - scale * raw[p] for p in layers}
    dense |= full
  return dict.fromkeys(layers, 0.0)  # only at target 0


def owl(
  layers: Leaves, target: float, *, outlier: float = 5.0, spread: float = 0.08
) -> dict[str, Fraction]:
  """Outlier-weighed: the density of a layer follows its ratio of outliers.

      D = part of the scores above `outlier` times their mean
      density = 1 - target + 2 spread (D' - mean D'),   D' = D scaled to [0, 1]

  Yin et al. 2023, https://arxiv.org/abs/2310.05175, section 3.2, with Wanda's scores,
  M = `outlier` and lambda = `spread`. Their mean is over layers of one size; here it is
  weighted by size, so that the target is met with layers of any.

  Args:
    layers: of the rule, each layer of a stack by itself.
    target: fraction of zeros of all leaves together.
    outlier: M of the paper, there 3 to 10.
    spread: lambda of the paper: no layer is further than twice that from the target.

  Raises:
    ValueError: `spread` could make a layer dense, or empty it.

  >>> scores = jnp.array([[9., 0, 0, 0, 0, 0, 0, 0], [1., 1, 1, 1, 1, 1, 1, 1]])
  >>> stack = {'w': Layers(scores, (1,), (8,), 2)}
  >>> owl(stack, 0.5, spread=0.1)['w'].round(3).tolist()
  [[0.4000000059604645], [0.6000000238418579]]
  """
  if not 0 <= 2 * spread <= min(target, 1 - target):
    raise ValueError(
      f'spread={spread} around target={target}: a layer is up to twice that from the'
      ' target, and would be dense or empty. At most'
      f' {min(target, 1 - target) / 2:.3g} is possible.'
    )
  # Of nothing there is no mean.
  empty = {path: target for path, x in layers.items() if not x.scores.size}
  layers = {path: x for path, x in layers.items() if path not in empty}
  if not layers:
    return empty
  ratios = {}
  for path, x in layers.items():
    mean = jnp.mean(x.scores, axis=x.axes, keepdims=True, dtype=jnp.float32)
    ratios[path] = jnp.mean(
      x.scores > outlier * mean, axis=x.axes, keepdims=True, dtype=jnp.float32
    )
  low = functools.reduce(jnp.minimum, [r.min() for r in ratios.values()])
  high = functools.reduce(jnp.maximum, [r.max() for r in ratios.values()])
  # Layers that are all alike have nothing to be told apart by.
  width = jnp.where(high > low, high - low, 1.0)
  scaled = {path: (r - low) / width for path, r in ratios.items()}
  total = sum(x.size for x in layers.values())
  mean = sum(
    scaled[path].mean() * (x.size / total) for path, x in layers.items()
  )
  return empty | {
    path: target - 2 * spread * (r - mean) for path, r in scaled.items()
  }


def lamp(layers: Leaves, target: float) -> dict[str, Fraction]:
  """Layer-adaptive: one threshold over s^2 / (sum of s^2 of those as large or larger).

  Lee et al. 2021, https://arxiv.org/abs/2010.07611, eq. 4, s the scores of the rule
  (magnitudes in the paper). Within a layer that ranks as s does, so all that it says is
  how many each layer keeps. Each keeps one at least, as its largest scores 1.

  The sums are found without sorting: for each bit of the threshold, by bisection for
  the s at which the layer reaches it. That is about a thousand passes over the
  weights, where other allocations take sixty.

  Args:
    layers: of the rule, with scores of 0 or more.
    target: fraction of zeros of all leaves together.

  >>> loud, soft = jnp.array([40., 30., 1.]), jnp.array([4., 3., 0.2])
  >>> leaves = {'a': Layers(loud, (0,), (3,), 1), 'b': Layers(soft, (0,), (3,), 1)}
  >>> [n.low.tolist() for n in lamp(leaves, 1 / 3).values()]
  [[1], [1]]
  """
  total = sum(math.prod(x.scores.shape) for x in layers.values())
  axes = tuple(x.axes for x in layers.values())
  kept = _by_lamp(
    [x.scores for x in layers.values()],
    counts.of(total - counts.portion(total, target)),
    axes,
  )
  sizes = [
    math.prod(x.scores.shape[a] for a in x.axes) for x in layers.values()
  ]
  return {
    path: counts.of(size - n)
    for path, size, n in zip(layers, sizes, kept, strict=True)
  }


@functools.partial(jax.jit, static_argnames='axes')
def _by_lamp(scores, kept, axes):
  """How many of each layer are among the `kept` of the largest LAMP scores."""
  sizes = [jnp.abs(s.astype(jnp.float32)) for s in scores]
  # The largest of a layer becomes 1, so that no square overflows.
  tops = [
    s.max(a, keepdims=True, initial=0) for s, a in zip(sizes, axes, strict=True)
  ]
  sizes = [s / jnp.where(t > 0, t, 1) for s, t in zip(sizes, tops, strict=True)]

  wide = sum(s.size for s in sizes) >= 2**31
  form = counts.of if wide else counts.narrow

  def number(bits):
    pairs = zip(sizes, axes, strict=True)
    return [form(_reaching(s, a, bits)) for s, a in pairs]

  return select.shares(number, jnp.dtype(jnp.uint32), form(kept))


# No LAMP score is above 1, and bits of other floats are not in their order.
_ONE = 0x3F800000


def _reaching(s, axes, threshold):
  """How many of each layer have LAMP scores from that on, which is bits of a float."""
  limit = lax.bitcast_convert_type(threshold, jnp.float32)

  def below(bits):
    """Whether a weight of this size would score less."""
    t = lax.bitcast_convert_type(bits, jnp.float32)
    larger = jnp.where(s >= t, jnp.square(s), 0)
    less = jnp.square(t) < limit * larger.sum(axes, keepdims=True)
    return less & (bits <= _ONE)

  shape = [1 if a in axes else n for a, n in enumerate(s.shape)]
  bits = select.largest(jnp.dtype(jnp.uint32), shape, below)
  last = lax.bitcast_convert_type(bits, jnp.float32)
  # The threshold 0 is reached by all, also by weights that are 0.
  reaches = (s > last) | (threshold == 0)
  return counts.count(reaches & (threshold <= _ONE), axes)
