"""Folders of images: one list of classes, pixels as they are, files that are not."""

import builtins
import io
import pathlib
import tempfile
from unittest import mock

from absl.testing import parameterized
import numpy as np
from PIL import Image

from jaxopt_compress.data import folders

RAMP = np.arange(0, 256, 4, np.uint8).reshape(8, 8)
WIDE = np.arange(0, 65_536, 1_024, np.uint16).reshape(8, 8)
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP.T], -1)


def _grey(mode):
  return Image.fromarray(RAMP).convert(mode)


def _colour(mode):
  return Image.fromarray(COLOUR).convert(mode)


def _see_through():
  image = _colour('RGBA')
  image.putpixel((0, 0), (1, 2, 3, 254))
  return image


def _half_a_turn():
  exif = Image.Exif()
  exif[0x0112] = 3  # Orientation.
  return exif


def _bytes(image, form='png', **options):
  stream = io.BytesIO()
  image.save(stream, form, **options)
  return stream.getvalue()


def _with(content, place, byte):
  return content[:place] + bytes([byte]) + content[place + 1 :]


class FoldersTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.root = pathlib.Path(directory)

  def write(self, name, content=None):
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_bytes(_grey('L')) if content is None else content)

  def labels(self, split, *beside):
    return folders.read(str(self.root), split, *beside)[1].tolist()

  @parameterized.named_parameters(
    ('alike', 'train/cat train/dog test/cat test/dog', [0, 1], [0, 1]),
    ('only_in_train', 'train/ape train/cat test/cat', [0, 1], [1]),
    ('only_in_test', 'train/cat test/ape test/cat', [1], [0, 1]),
    ('hidden', 'train/.checkpoints train/cat test/cat', [0], [0]),
    ('beside', 'train/cat test/cat __MACOSX/train .git/ape', [0], [0]),
    ('not_a_split', 'train/cat test/cat readme_pics/banner', [0], [0]),
  )
  def test_one_list_of_classes(self, names, train, test):
    for name in names.split():
      self.write(f'{name}/0.png')
    # Neither hidden files, nor others, nor folders without images make a class.
    for name in ('a/._0.png', 'a/.DS_Store', 'b/notes.txt'):
      self.write(f'train/{name}', b'')
    self.assertEqual(self.labels('train', 'test'), train)
    self.assertEqual(self.labels('test', 'train'), test)

  def test_what_is_not_read(self):
    for name in ('a/0.png', 'a/1.jfif', 'b/0.jfif', 'c/d/0.jfif', '0.png'):
      self.write(f'train/{name}')
    (self.root / 'train/e').mkdir()
    for name in ('.DS_Store', 'a/._0.png', '.old/notes.txt'):
      self.write(f'train/{name}')
    self.assertEqual(
      folders.left_out(str(self.root), 'train'),
      'train/0.png train/a/1.jfif train/b/0.jfif train/c/d train/e'.split(),
    )
    self.assertEqual(self.labels('train'), [0])

  def test_without_a_split(self):
    for name in ('dog/1.png', 'dog/0.PNG', 'cat/0.png', '.old/0.png'):
      self.write(name)
    self.assertEqual(folders.classes(str(self.root)), ['cat', 'dog'])
    self.assertEqual(self.labels(''), [0, 1, 1])

  @parameterized.named_parameters(
    ('grey', _bytes(_grey('L')), RAMP / 255),
    ('bit', _bytes(_grey('1')), np.asarray(_grey('1')) * 1.0),
    ('grey_and_opaque', _bytes(_grey('LA')), RAMP / 255),
    ('sixteen_bits', _bytes(Image.fromarray(WIDE)), WIDE / 65_535),
    ('colour', _bytes(_colour('RGB')), COLOUR / 255),
    ('opaque', _bytes(_colour('RGBA')), COLOUR / 255),
    (
      'palette',
      _bytes(_grey('L').convert('RGB').quantize(256)),
      np.stack([RAMP] * 3, -1) / 255,
    ),
    ('ink', _bytes(_colour('CMYK'), 'tiff'), COLOUR / 255),
    (
      'turned',
      _bytes(_grey('L'), exif=_half_a_turn()),
      RAMP[::-1, ::-1] / 255,
    ),
  )
  def test_pixels(self, content, want):
    self.write('a/0.png', content)
    [found], _ = folders.read(str(self.root))
    self.assertEqual(found.dtype, np.float32)
    np.testing.assert_allclose(found, want, atol=1e-6)

  @parameterized.named_parameters(
    ('transparent', _bytes(_see_through()), 'Paste it on a background'),
    ('cut', _bytes(_colour('RGB'))[:48], 'cannot be read as an image'),
    ('empty', b'', 'cannot be read as an image'),
    # The type of a number of its header says that it is a text.
    ('header', _with(_bytes(_grey('L'), 'tiff'), 72, 2), 'cannot be read as'),
    ('page', b'<html>', 'cannot be read as an image'),
    (
      'film',
      _bytes(
        _grey('L'), 'gif', save_all=True, append_images=[_grey('L').rotate(90)]
      ),
      'has 2 frames',
    ),
    (
      'wide',
      _bytes(Image.fromarray(WIDE.astype(np.int32)), 'tiff'),
      'pixels of 32 bits',
    ),
    (
      'other_size',
      _bytes(_grey('L').resize((4, 4))),
      r'\(4, 4\), .* have \(8, 8\)',
    ),
    ('other_channels', _bytes(_colour('RGB')), r'all to grey or to colours'),
  )
  def test_files_that_do_not_fit(self, content, message):
    self.write('a/0.png')
    self.write('a/1.png', content)
    with self.assertRaisesRegex(ValueError, f'a/1.png.*{message}'):
      folders.read(str(self.root))

  def test_folders_that_do_not_fit(self):
    with self.assertRaisesRegex(ValueError, 'There is no folder .*train'):
      folders.read(str(self.root), 'train')
    with self.assertRaisesRegex(ValueError, 'No images in .* each class'):
      folders.read(str(self.root))
    self.write('train/cat/0.png')
    self.write('train/cat/old/0.png')
    with self.assertRaisesRegex(ValueError, 'cat/old is a folder of images'):
      folders.read(str(self.root), 'train')

  @parameterized.parameters(
    (dict(size=4, channels=1), (4, 4)),
    (dict(size=(4, 6), channels=3), (4, 6, 3)),
    (dict(size=(8, 8), channels=3), (8, 8, 3)),
  )
  def test_one_form_for_all(self, asked, shape):
    self.write('a/0.png')
    self.write('a/1.jpg', _bytes(_colour('RGB').resize((5, 9)), 'jpeg'))
    found, _ = folders.read(str(self.root), **asked)
    self.assertEqual(found.shape, (2, *shape))
    self.assertBetween(found.min(), 0, 1)
    self.assertBetween(found.max(), 0, 1)

  def test_form_by_hand(self):
    # Twice as wide as high: its left and right quarter go, and pairs are averaged.
    stripes = np.repeat(np.uint8([0, 0, 40, 80, 120, 200, 0, 0]), 2)
    self.write('a/0.png', _bytes(Image.fromarray(np.stack([stripes] * 8))))
    [found], _ = folders.read(str(self.root), size=8)
    np.testing.assert_allclose(found[0] * 255, stripes[4:12], atol=1e-3)
    colours = np.zeros((2, 2, 3), np.uint8) + np.uint8([255, 0, 51])
    self.write('a/0.png', _bytes(Image.fromarray(colours)))
    [found], _ = folders.read(str(self.root), channels=1)
    np.testing.assert_allclose(found, 0.299 + 0.114 * 0.2, atol=1e-6)

  def test_no_such_form(self):
    self.write('a/0.png')
    for asked, message in (
      (dict(channels=2), 'channels=2; 1 for grey'),
      (dict(size=(4, 4, 3)), r'size=.4, 4, 3.; .height, width'),
      (dict(size=0), 'size=0'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        folders.read(str(self.root), **asked)

  def test_without_pillow(self):
    self.write('dog/0.png')
    true_import = builtins.__import__

    def no_pillow(name, *args, **kwargs):
      if name == 'PIL':
        raise ImportError(name)
      return true_import(name, *args, **kwargs)

    with mock.patch.object(builtins, '__import__', no_pillow):
      with self.assertRaisesRegex(ValueError, 'pip install pillow'):
        folders.read(str(self.root))
