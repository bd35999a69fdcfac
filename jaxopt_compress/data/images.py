"""Images from files that users have: MNIST, CIFAR, npz, folders.

    load('mnist:train@/data/mnist')        idx files, gzipped or not
    load('cifar10:test@/data/cifar-10-batches-bin')
    load('npz@/data/cells.npz')            arrays `image` and `label`
    load('npz:train@/data/mnist.npz')      Keras's x_train and y_train
    load('folder:train@/data/flowers')     flowers/train/<class>/*.png

A source is a string, `format[:split]@path`, so that a config can hold it. The formats
are functions of this module.
"""

from collections.abc import Sequence
import gzip
import math
import pathlib
import zlib

import numpy as np

from jaxopt_compress.core import choices
from jaxopt_compress.data import archive
from jaxopt_compress.data import folders
from jaxopt_compress.data import slices

Dataset = dict[str, np.ndarray]
# What a served network has to be given, too.
FORM = {
  'axes': 'batch, height, width, channels',
  'values': [0, 1],
  'resize': 'scaled to cover the size, its middle cut out: ImageOps.fit, BILINEAR',
}


def load(
  source: str,
  *beside: str,
  size: int | Sequence[int] = (),
  channels: int = 0,
) -> Dataset:
  """Reads a source, `format[:split]@path`.

  Args:
    source: see the head of this module.
    *beside: sources of the other splits: the classes of those that are of one folder
      are numbered together.
    size, channels: of a folder, to what its images are brought; see `folders.read`.

  Returns:
    `image` [n, h, w, c] float32 in [0, 1] and `label` [n] int32, from 0.

  Raises:
    ValueError: a source of another form, a file or folder of another format, or
      labels that are no numbers of classes.
  """
  name, _, path = _parts(source)
  formats = dict(
    mnist=mnist, cifar10=cifar10, cifar100=cifar100, npz=npz, folder=folder
  )
  choices.one_of(f'The format of {source!r}', name, sorted(formats))
  form = {'size': size} if size else {}
  form |= {'channels': channels} if channels else {}
  if form and name != 'folder':
    raise ValueError(
      f'{source!r} has images of one form; {" and ".join(form)} can be said of a'
      ' folder alone. Leave it out.'
    )
  return formats[name](path, *_splits(source, *beside), **form)


def classes(source: str, *beside: str) -> list[str]:
  """The names of the classes of a folder; [] where a file has but their numbers.

  A part of a split, 'folder@/data/flowers[:80%]', has those of the whole.
  """
  source, *beside = (slices.read(s).whole for s in (source, *beside))
  name, _, path = _parts(source)
  splits = _splits(source, *beside)
  return folders.classes(path, *splits) if name == 'folder' else []


def left_out(source: str) -> list[str]:
  """What a folder has besides images of classes."""
  name, split, path = _parts(source)
  return folders.left_out(path, split) if name == 'folder' else []


def _splits(source, *beside):
  """The split of a source, and those of the sources beside it in a folder."""
  name, split, path = _parts(source)
  splits = [split]
  if name == 'folder':
    for other, more, where in map(_parts, beside):
      if other == name and pathlib.Path(where) == pathlib.Path(path):
        splits.append(more)
  return splits


def _parts(source):
  head, at, path = source.partition('@')
  name, _, split = head.partition(':')
  if not at:
    raise ValueError(
      f'{source!r} is not `format[:split]@path`. An example:'
      ' "cifar10:train@/data/cifar".'
    )
  return name, split, path


def mnist(directory: str, split: str) -> Dataset:
  """MNIST and data sets with its files: 'train-images-idx3-ubyte' and so on.

  Format: http://yann.lecun.com/exdb/mnist. With or without '.gz'.
  """
  prefix = _choose(split, {'train': 'train', 'test': 't10k'})
  images = idx(_find(directory, f'{prefix}-images-idx3-ubyte'))
  labels = idx(_find(directory, f'{prefix}-labels-idx1-ubyte'))
  return _dataset(images, labels, directory)


def idx(path: str | pathlib.Path) -> np.ndarray:
  """An array in the idx format: two zeros, dtype, rank, sizes, then the data."""
  raw = pathlib.Path(path).read_bytes()
  if raw[:2] == b'\x1f\x8b':
    try:
      raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as e:
      raise ValueError(f'{path} is damaged ({e}). Download it again.') from e
  # The third byte codes the dtype, big-endian; the fourth is the rank.
  dtypes = {8: 'u1', 9: 'i1', 11: '>i2', 12: '>i4', 13: '>f4', 14: '>f8'}
  if len(raw) < 4 or raw[:2] != b'\0\0' or raw[2] not in dtypes:
    raise ValueError(
      f'{path} is no idx file: it begins with {raw[:4].hex()!r}, not with 0000'
      ' and a type. Was an error page downloaded in its place?'
    )
  dtype, rank = np.dtype(dtypes[raw[2]]), raw[3]
  sizes, body = raw[4 : 4 + 4 * rank], raw[4 + 4 * rank :]
  # Sizes that are cut off fit no body; products of those that are not may be large.
  shape = tuple(np.frombuffer(sizes[: len(sizes) // 4 * 4], '>u4').tolist())
  want = math.prod(shape) * dtype.itemsize
  if len(shape) != rank or len(body) != want:
    raise ValueError(
      f'{path} says that it holds {shape}, {want} bytes, and has {len(body)}.'
      ' Download it again.'
    )
  array = np.frombuffer(body, dtype).reshape(shape)
  return array.astype(dtype.newbyteorder('='))


def cifar10(directory: str, split: str) -> Dataset:
  """CIFAR-10, binary: a label and 3x32x32 bytes for each image.

  Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html.
  """
  train = [f'data_batch_{i}.bin' for i in range(1, 6)]
  names = _choose(split, {'train': train, 'test': ['test_batch.bin']})
  return _cifar(directory, names, num_labels=1)


def cifar100(directory: str, split: str) -> Dataset:
  """CIFAR-100, binary: two labels for each image; the fine one is taken."""
  names = _choose(split, {'train': ['train.bin'], 'test': ['test.bin']})
  return _cifar(directory, names, num_labels=2)


def _cifar(directory: str, names: Sequence[str], num_labels: int) -> Dataset:
  # A record is its labels, then 32 x 32 bytes of red, of green and of blue.
  size = num_labels + 3 * 32 * 32
  parts = []
  for name in names:
    path = _find(directory, name)
    raw = np.frombuffer(path.read_bytes(), np.uint8)
    if not len(raw) or len(raw) % size:
      raise ValueError(
        f'{path} has {len(raw)} bytes, which is no multiple of {size}, a'
        ' record. Is it the binary version, and complete?'
      )
    parts.append(raw.reshape(-1, size))
  records = np.concatenate(parts)
  # Channels come first in the file and last here; the last label is the fine one.
  images = records[:, num_labels:].reshape(-1, 3, 32, 32)
  return _dataset(
    images.transpose(0, 2, 3, 1), records[:, num_labels - 1], directory
  )


def npz(path: str, split: str = '') -> Dataset:
  """Arrays of an npz file: image and label, or x_<split> and y_<split>."""
  names = (f'x_{split}', f'y_{split}') if split else ('image', 'label')
  file = pathlib.Path(path)
  found = archive.read(_find(file.parent, file.name), names)
  return _dataset(*(found[name] for name in names), path)


def folder(
  directory: str, split: str = '', *beside: str, **form: int | Sequence[int]
) -> Dataset:
  """One folder a class, numbered together with the splits beside; see `folders`."""
  return _dataset(*folders.read(directory, split, *beside, **form), directory)


def augment(
  batch: Dataset,
  rng: np.random.Generator,
  *,
  shift: int = 2,
  flip: bool = False,
) -> Dataset:
  """Shifts each image by whole pixels, filling with zeros, and may mirror it.

  Args:
    batch: `image` [n, h, w, c]; other entries are passed on.
    rng: consumed.
    shift: at most this many pixels in each direction.
    flip: whether half of the images are mirrored, left to right.

  Returns:
    The batch with new images; the same for the same state of `rng`.
  """
  images = batch['image']
  n, height, width, _ = images.shape
  padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
  top, left = rng.integers(0, 2 * shift + 1, (2, n, 1, 1))
  rows = top + np.arange(height)[None, :, None]
  columns = left + np.arange(width)[None, None, :]
  # One gather with broadcast indices [n, h, 1] and [n, 1, w] crops every image at its
  # own place.
  shifted = padded[np.arange(n)[:, None, None], rows, columns]
  # Drawn in any case, so that `flip` changes no other random number.
  mirrored = rng.random((n, 1, 1, 1)) < 0.5
  if flip:
    shifted = np.where(mirrored, shifted[:, :, ::-1], shifted)
  return {**batch, 'image': shifted}


def _choose(split, choices):
  if split not in choices:
    raise ValueError(f'No split {split!r}; there are {sorted(choices)}.')
  return choices[split]


def _find(directory: str | pathlib.Path, name: str) -> pathlib.Path:
  """The file, or the file with '.gz' at its end."""
  directory = pathlib.Path(directory)
  for path in (directory / name, directory / f'{name}.gz'):
    if path.is_file():
      return path
  there = sorted(p.name for p in directory.glob('*'))[:10]
  raise ValueError(f'No file {name} in {directory}; there are {there}.')


def _dataset(images, labels, where) -> Dataset:
  if labels.ndim != 1 or images.shape[:1] != labels.shape or not images.size:
    raise ValueError(
      f'{where} has images {images.shape} and labels {labels.shape}. There must'
      ' be one label, a number, for each image.'
    )
  if images.ndim == 3:
    images = images[..., None]
  if images.ndim != 4:
    raise ValueError(
      f'{where} has images {images.shape}; [n, height, width, channels] or [n,'
      ' height, width] is expected.'
    )
  if images.dtype == np.uint8:
    images = images.astype(np.float32) / np.float32(255)
  elif not (
    np.issubdtype(images.dtype, np.floating)
    and images.min() >= 0
    and images.max() <= 1
  ):
    numbers = images.dtype.kind in 'biuf'
    span = f' from {images.min()} to {images.max()}' if numbers else ''
    raise ValueError(
      f'{where} has images of {images.dtype}{span}. Save them as uint8, or as'
      ' floats in [0, 1].'
    )
  return {'image': images.astype(np.float32), 'label': _numbers(labels, where)}


def _numbers(labels, where):
  """Labels as int32, if each of them is the number of a class."""
  wrong = range(len(labels))
  if labels.dtype.kind in 'biuf':
    # NaN and what is too large become other numbers, and are told by that.
    with np.errstate(invalid='ignore'):
      numbers = labels.astype(np.int32)
    wrong = np.flatnonzero((numbers != labels) | (numbers < 0))
  if not len(wrong):
    return numbers
  raise ValueError(
    f'{where}: label {wrong[0]} is {labels[wrong[0]].item()!r}, which is no number'
    f' of a class ({len(wrong)} of {len(labels)} are none). Number the classes 0,'
    ' 1, 2, ... and save whole numbers.'
  )
