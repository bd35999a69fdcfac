"""Folders of image files: one folder a class, with names for its labels.

    flowers/train/<class>/*.png       a split is a folder beside the other splits
    flowers/test/<class>/*.png

A class is a folder that has an image in one of the splits that are used together, so
that one name is one label in all of them. What is hidden (`.ipynb_checkpoints`, `._0.png`) is nobody's data.
"""

from collections.abc import Sequence
import pathlib

import numpy as np

_ENDINGS = '.png .jpg .jpeg .bmp .gif .webp .tif .tiff .ppm .pgm'.split()


def classes(directory: str, *splits: str) -> list[str]:
  """The names of the classes; label i is the i-th of them.

  Args:
    directory: the folder of the splits, or of the classes without a split.
    splits: the names of folders in it that are used together.
  """
  roots = [pathlib.Path(directory) / split for split in splits or ('',)]
  found = {p.name for r in roots for p in _folders(r) if any(_files(p))}
  return sorted(found)


def read(
  directory: str,
  split: str = '',
  *beside: str,
  size: int | Sequence[int] = (),
  channels: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
  """The images of a split and the numbers of their classes.

  Needs Pillow. Images keep their size and their channels, grey, or red, green and blue,
  where nothing else is said.

  Args:
    directory: the folder of the splits, or of the classes without a split.
    split: the name of a folder in it.
    beside: further splits, whose classes are numbered with those of this one.
    size: (height, width) to which they are brought, or one number for both: each is
      scaled to cover that much, and its middle is cut out.
    channels: 1 makes all of them grey, 3 gives all of them colours.

  Returns:
    [n, h, w] or [n, h, w, 3] float32 in [0, 1], and [n] int.

  Raises:
    ValueError: no images, or some that are damaged, moving, see-through, not of one
      shape or deeper in folders than their class; the message names the file.
  """
  root = pathlib.Path(directory) / split
  size = _pair(size)
  if channels not in (0, 1, 3):
    raise ValueError(
      f'channels={channels}; 1 for grey or 3 for colours is expected.'
    )
  pictures, labels = [], []
  for label, name in enumerate(classes(directory, split, *beside)):
    if deeper := [p for p in _folders(root / name) if any(_files(p))]:
      raise ValueError(
        f'{deeper[0]} is a folder of images within a class. Move its images to'
        f' {root / name}, or choose the folder of the classes.'
      )
    for file in sorted(_files(root / name)):
      pictures.append(_in_form(_picture(file), size, channels))
      labels.append(label)
      if pictures[-1].shape != pictures[0].shape:
        raise ValueError(
          f'{file} has the shape {pictures[-1].shape}, and the images before it'
          f' have {pictures[0].shape}. Bring all to one size, and all to grey or'
          ' to colours: size=(64, 64) and channels=3 do both here.'
        )
  if not root.is_dir():
    raise ValueError(f'There is no folder {root}. Check the path.')
  if not pictures:
    raise ValueError(
      f'No images in {root}. It needs a folder for each class, with files'
      f' ending in {", ".join(_ENDINGS)}.'
    )
  return np.stack(pictures), np.array(labels)


def _pair(size):
  both = (size, size) if isinstance(size, int) else tuple(size)
  if both and (
    len(both) != 2 or not all(type(n) is int and n > 0 for n in both)
  ):
    raise ValueError(
      f'size={size!r}; (height, width) in pixels, or one number, is expected.'
    )
  return both


def _in_form(picture, size, channels):
  """[h, w] or [h, w, 3] in another size, and grey or in colours."""
  grey = picture.ndim == 2
  if channels == 1 and not grey:
    # Luminance as ITU-R 601 weights it, and Pillow.
    picture = picture @ np.array([0.299, 0.587, 0.114], np.float32)
  if channels == 3 and grey:
    picture = np.stack([picture] * 3, -1)
  if not size or picture.shape[:2] == size:
    return picture
  from PIL import Image
  from PIL import ImageOps

  def resized(plane):
    # Between neighbours, so that nothing leaves [0, 1]; Pillow counts width first.
    image = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(
      ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)
    )

  if picture.ndim == 2:
    return resized(picture)
  return np.stack([resized(plane) for plane in np.moveaxis(picture, -1, 0)], -1)


def left_out(directory: str, split: str = '') -> list[str]:
  """What lies in a split and is not read, hidden files aside.

  Returns:
    Paths within `directory`: of files that are no images or in no class, of folders in
    a class, and of classes that are empty.
  """
  root = pathlib.Path(directory) / split
  found = [p for p in _visible(root) if not p.is_dir()]
  for folder in _folders(root):
    images, inside = set(_files(folder)), list(_visible(folder))
    found += [p for p in inside if p not in images] if inside else [folder]
  return sorted(p.relative_to(directory).as_posix() for p in found)


def _folders(root):
  return [p for p in _visible(root) if p.is_dir()]


def _files(root):
  return (p for p in _visible(root) if p.suffix.lower() in _ENDINGS)


def _visible(root):
  return (p for p in root.glob('*') if not p.name.startswith('.'))


def _picture(path: pathlib.Path) -> np.ndarray:
  """[h, w] or [h, w, 3] float32 in [0, 1], as a viewer shows it."""
  try:
    from PIL import Image  # Only folders need it.
    from PIL import ImageOps
  except ImportError as e:
    raise ValueError(
      'Reading image files needs Pillow: pip install pillow. Or save the images'
      ' as one npz file.'
    ) from e
  try:
    with Image.open(path) as image:
      # A phone's MPO is a photograph with its previews; other frames are a film.
      frames = 1 if image.format == 'MPO' else getattr(image, 'n_frames', 1)
      image = ImageOps.exif_transpose(image)
  except Exception as e:  # Of what is damaged, Pillow raises many kinds.
    raise ValueError(
      f'{path} cannot be read as an image ({e}). Replace it or leave it out.'
    ) from e
  if frames > 1:
    raise ValueError(
      f'{path} has {frames} frames, of which an example has one. Save those that'
      ' are wanted as files of their own.'
    )
  if image.has_transparency_data:
    if np.asarray(image.convert('RGBA'))[..., 3].min() < 255:
      raise ValueError(
        f'{path} is transparent in places, and what is behind them is not said.'
        ' Paste it on a background first.'
      )
  if image.mode.startswith('I;16'):
    return np.asarray(image, np.float32) / np.float32(2**16 - 1)
  if image.mode in ('I', 'F'):
    raise ValueError(
      f'{path} has pixels of 32 bits, whose range is not said. Save it with 8 or'
      ' 16 bits.'
    )
  grey = image.mode in ('1', 'L', 'LA', 'La')
  pixels = np.asarray(image.convert('L' if grey else 'RGB'))
  return pixels / np.float32(255)
