"""Handwritten digits: 1,797 real 8x8 images that come with scikit-learn.

Alpaydin and Kaynak 1998, https://archive.ics.uci.edu/dataset/80, the test part
of "Optical Recognition of Handwritten Digits". A fifth of each class is held out as
'test', and a tenth as 'validation', for choosing settings.
"""

import numpy as np

# What a served network has to be given, too.
FORM = {'axes': 'batch, height, width, channels', 'values': [0, 1]}
_BOUNDS = {'test': (0.0, 0.2), 'validation': (0.2, 0.3), 'train': (0.3, 1.0)}


def load(split: str, seed: int = 0) -> dict[str, np.ndarray]:
  """One split of the digits; the three are disjoint and stratified by class.

  Args:
    split: 'train', 'validation' or 'test', or several: 'train+validation'.
    seed: of the permutation that splits them.

  Returns:
    `image` [n, 8, 8, 1] float32 in [0, 1], and `label` [n] int32.

  Raises:
    ValueError: no such split.

  >>> load('test')['image'].shape, load('train+validation')['label'].shape
  ((359, 8, 8, 1), (1438,))
  """
  from sklearn import datasets  # Slow to import, and an optional extra.

  names = split.split('+')
  if unknown := [name for name in names if name not in _BOUNDS]:
    raise ValueError(
      f'No split {unknown[0]!r}; there are {sorted(_BOUNDS)}, joined by "+".'
    )
  digits = datasets.load_digits()
  indices = np.concatenate(
    [
      of_class
      for name in dict.fromkeys(names)
      for of_class in _indices(digits.target, *_BOUNDS[name], seed)
    ]
  )
  indices.sort()
  images = digits.images[indices, :, :, None] / 16.0
  return {
    'image': images.astype(np.float32),
    'label': digits.target[indices].astype(np.int32),
  }


def _indices(labels, begin, end, seed):
  """For each class, the share [begin, end) of its shuffled examples."""
  # Every split draws the same permutations, so their shares never overlap.
  rng = np.random.default_rng(seed)
  for label in range(10):
    order = rng.permutation(np.flatnonzero(labels == label))
    yield order[round(begin * len(order)) : round(end * len(order))]


def augment(
  batch: dict[str, np.ndarray],
  rng: np.random.Generator,
  *,
  shift: float = 0.5,
  rotate: float = 10.0,
  scale: float = 0.1,
  shear: float = 0.1,
) -> dict[str, np.ndarray]:
  """Moves each image by a small random affine map; outside it is zero.

  The pixel at p, from the centre, reads the image at  A p + t,  interpolated
  bilinearly, with A a rotation times a scaling times a shear. Each of the four is
  uniform between minus and plus its argument.

  Args:
    batch: `image` [n, h, w, c]; other entries are passed on.
    rng: consumed.
    shift: in pixels.
    rotate: in degrees.
    scale, shear: fractions.

  Returns:
    The batch with new images; the same for the same state of `rng`.
  """
  n, height, width, _ = batch['image'].shape
  draw = rng.uniform(-1.0, 1.0, (6, n))
  angle = np.deg2rad(rotate) * draw[0]
  cos, sin = np.cos(angle), np.sin(angle)
  tall, wide = 1.0 + scale * draw[1], 1.0 + scale * draw[2]
  slant = shear * draw[3]
  a = np.stack([cos * tall, -sin * wide, sin * tall, cos * wide], -1)
  a = a.reshape(n, 2, 2)
  # A shear adds a multiple of the first column to the second.
  a[:, :, 1] += slant[:, None] * a[:, :, 0]
  centre = np.array([height - 1, width - 1])[:, None] / 2.0
  pixels = np.indices((height, width)).reshape(2, -1) - centre
  points = a @ pixels + (centre + shift * draw[4:].T[:, :, None])
  image = _bilinear(batch['image'], points).reshape(batch['image'].shape)
  return {**batch, 'image': image}


def _bilinear(images, points):
  """Reads images [n, h, w, c] at points [n, 2, k]: [n, k, c]; outside is zero."""
  n, height, width, _ = images.shape
  # A border of zeros: a point outside is clipped to it, and its neighbour at + 1
  # still exists.
  padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
  size = np.array([height, width])[:, None]
  points = np.clip(points, -1.0, size) + 1.0
  corner = np.minimum(points.astype(int), size)
  fraction = (points - corner).astype(images.dtype)
  row, column = corner[:, 0], corner[:, 1]
  down, right = fraction[:, 0, :, None], fraction[:, 1, :, None]
  i = np.arange(n)[:, None]
  top = (1 - right) * padded[i, row, column]
  top += right * padded[i, row, column + 1]
  bottom = (1 - right) * padded[i, row + 1, column]
  bottom += right * padded[i, row + 1, column + 1]
  return (1 - down) * top + down * bottom
