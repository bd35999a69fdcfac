"""Files that users have, written small by the test and read back."""

import gzip
import pathlib
import struct
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from jaxopt_compress import data

images = data.images


def idx_bytes(array, code=8):
  head = bytes([0, 0, code, array.ndim])
  head += b''.join(struct.pack('>i', n) for n in array.shape)
  return head + array.tobytes()


class ImagesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.root = pathlib.Path(directory)
    self.rng = np.random.default_rng(0)

  def pixels(self, *shape):
    return self.rng.integers(0, 256, shape, np.uint8)

  @parameterized.parameters('', '.gz')
  def test_mnist(self, ending):
    pack = gzip.compress if ending else bytes
    pixels, labels = self.pixels(3, 28, 28), np.array([7, 2, 1], np.uint8)
    for name, array in (('images-idx3', pixels), ('labels-idx1', labels)):
      path = self.root / f't10k-{name}-ubyte{ending}'
      path.write_bytes(pack(idx_bytes(array)))
    got = images.load(f'mnist:test@{self.root}')
    self.assertEqual(got['image'].shape, (3, 28, 28, 1))
    self.assertEqual(got['image'].dtype, np.float32)
    np.testing.assert_allclose(got['image'][..., 0] * 255, pixels, atol=1e-4)
    self.assertEqual(got['label'].tolist(), [7, 2, 1])
    self.assertEqual(got['label'].dtype, np.int32)

  @parameterized.parameters((11, '>i2'), (12, '>i4'), (13, '>f4'), (14, '>f8'))
  def test_idx_types_are_big_endian(self, code, dtype):
    path = self.root / 'array'
    want = np.array([[1, 2, -3]], dtype)
    path.write_bytes(idx_bytes(want, code))
    got = images.idx(path)
    np.testing.assert_array_equal(got, want)
    self.assertTrue(got.dtype.isnative)

  @parameterized.parameters(
    (b'<html>', 'no idx file: it begins with .3c68746d'),
    (b'', 'no idx file'),
    (bytes([0, 0, 8, 1, 0, 0, 0, 5, 1]), r'holds \(5,\), 5 bytes, and has 1'),
    (bytes([0, 0, 8, 2, 0, 0, 0]), r'holds \(\), 1 bytes, and has 0'),
    (bytes([0, 0, 8, 4, *[128, 0, 0, 0] * 4]), 'bytes, and has 0'),
    (gzip.compress(bytes(99))[:-9], 'is damaged .* Download'),
  )
  def test_bad_idx(self, raw, message):
    path = self.root / 'array'
    path.write_bytes(raw)
    with self.assertRaisesRegex(ValueError, message):
      images.idx(path)

  def test_cifar10(self):
    red = np.zeros((1, 3, 32, 32), np.uint8)
    red[0, 0, 0, 1] = 255  # Planes come first in the file, channels last here.
    for i in range(1, 6):
      path = self.root / f'data_batch_{i}.bin'
      path.write_bytes(bytes([i]) + red.tobytes())
    got = images.load(f'cifar10:train@{self.root}')
    self.assertEqual(got['image'].shape, (5, 32, 32, 3))
    self.assertEqual(got['image'][0, 0, 1].tolist(), [1.0, 0.0, 0.0])
    self.assertEqual(got['image'].sum(), 5)
    self.assertEqual(got['label'].tolist(), [1, 2, 3, 4, 5])

  def test_cifar100_takes_the_fine_label(self):
    record = bytes([3, 77]) + self.pixels(3072).tobytes()
    (self.root / 'test.bin').write_bytes(record * 2)
    got = images.load(f'cifar100:test@{self.root}')
    self.assertEqual(got['label'].tolist(), [77, 77])

  def test_cifar_of_the_wrong_size(self):
    (self.root / 'test_batch.bin').write_bytes(bytes(3074))
    with self.assertRaisesRegex(ValueError, '3074 bytes, .* multiple of 3073'):
      images.cifar10(str(self.root), 'test')

  @parameterized.parameters(
    ('npz@', 'image', 'label', (4, 5, 6)),
    ('npz:train@', 'x_train', 'y_train', (4, 5, 6, 3)),
  )
  def test_npz(self, head, image, label, shape):
    path = self.root / 'file.npz'
    pixels = self.pixels(*shape)
    np.savez(path, **{image: pixels, label: np.arange(4)})
    got = images.load(f'{head}{path}')
    want = pixels.reshape(4, 5, 6, -1) / 255
    np.testing.assert_allclose(got['image'], want, atol=1e-6)
    self.assertEqual(got['label'].tolist(), [0, 1, 2, 3])

  @parameterized.parameters(
    (dict(image=np.ones((2, 3, 3))), 'no array .label., only ..image'),
    (dict(image=np.ones((2, 3, 3)), label=np.ones(3)), r'labels \(3,\)'),
    (dict(image=np.ones((2, 3, 3)), label=np.ones((2, 10))), 'one label, a'),
    (dict(image=np.ones((2, 9)), label=np.ones(2)), r'images \(2, 9\)'),
    (dict(image=1.0, label=np.ones(2)), r'images \(\) and labels'),
    (dict(image=np.ones((2, 0, 3)), label=np.ones(2)), r'images \(2, 0, 3\)'),
    (dict(image=np.full((2, 1, 1), 'x'), label=[0, 1]), 'images of <U1. Save'),
    (dict(image=np.ones((0, 3, 3)), label=np.ones(0)), r'images \(0, 3, 3\)'),
    (
      dict(image=np.full((1, 3, 3), 9.0), label=np.ones(1)),
      'images of float64 from 9.0 to 9.0. Save them',
    ),
    (dict(image=np.ones((1, 3, 3), int), label=np.ones(1)), 'images of int64'),
  )
  def test_bad_npz(self, arrays, message):
    path = self.root / 'file.npz'
    np.savez(path, **arrays)
    with self.assertRaisesRegex(ValueError, message):
      images.npz(str(path))

  @parameterized.parameters(
    ([0.7, 1, 2], 'label 0 is 0.7, which'),
    ([0, np.nan, 1], 'label 1 is nan'),
    ([0, np.inf, 1], 'label 1 is inf'),
    ([0, 2.0**33 + 1, 1], 'label 1 is 8589934593.0'),
    ([0, 2**40, 1], 'label 1 is 1099511627776'),
    ([0, -1, -1], r'label 1 is -1, .* \(2 of 3 are none\)'),
    (['cat', 'dog', 'cat'], "label 0 is 'cat'"),
    ([1j, 0, 0], 'label 0 is 1j'),
  )
  def test_labels_that_are_no_classes(self, labels, message):
    path = self.root / 'file.npz'
    np.savez(path, image=self.pixels(3, 2, 2), label=labels)
    with self.assertRaisesRegex(ValueError, message):
      images.npz(str(path))

  @parameterized.parameters([[True, False]], [[1.0, 0.0]], [np.uint64([1, 0])])
  def test_whole_labels_of_other_types(self, labels):
    path = self.root / 'file.npz'
    np.savez(path, image=self.pixels(2, 2, 2), label=labels)
    label = images.npz(str(path))['label']
    self.assertEqual((label.tolist(), label.dtype), ([1, 0], np.int32))

  def test_a_folder_is_brought_to_one_form(self):
    for i, shape in enumerate([(4, 6), (9, 7, 3), (5, 5)]):
      file = self.root / 'abc'[i % 2] / f'{i}.png'
      file.parent.mkdir(exist_ok=True)
      Image.fromarray(np.zeros(shape, np.uint8)).save(file)
    source = f'folder@{self.root}'
    found = images.load(source, size=4, channels=3)
    self.assertEqual(found['image'].shape, (3, 4, 4, 3))
    with self.assertRaisesRegex(ValueError, 'size=.64, 64. and channels=3'):
      images.load(source)
    with self.assertRaisesRegex(
      ValueError, 'size and channels can be said of a'
    ):
      images.load('npz@x.npz', size=4, channels=3)

  def test_classes(self):
    for name in ('train/dog', 'test/cat'):
      (self.root / name).mkdir(parents=True)
      Image.fromarray(self.pixels(4, 6)).save(self.root / name / '0.png')
    pair = f'folder:train@{self.root}', f'folder:test@{self.root}/'
    self.assertEqual(images.classes(*pair), ['cat', 'dog'])
    # Of a part of a split, those of the whole.
    parts = f'{pair[0]}[:80%]', f'{pair[0]}[80%:]'
    self.assertEqual(images.classes(*parts), ['dog'])
    self.assertEqual(images.classes(pair[0], f'npz:test@{self.root}'), ['dog'])
    self.assertEqual(images.classes('cifar10:test@/data'), [])
    got = images.load(*pair)
    self.assertEqual(got['image'].shape, (1, 4, 6, 1))
    self.assertEqual(got['label'].tolist(), [1])

  @parameterized.parameters(
    ('mnist:train', 'is not `format'),
    ('imagenet@/x', "cifar100', 'folder', 'mnist', 'npz'"),
    ('cifar10@/x', "No split ''; there are .'test', 'train'"),
    ('mnist:test@/nowhere', 'No file t10k-images-idx3-ubyte in /nowhere'),
    ('npz@/nowhere/x.npz', 'No file x.npz in /nowhere'),
  )
  def test_bad_sources(self, source, message):
    with self.assertRaisesRegex(ValueError, message):
      images.load(source)


class AugmentTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    image = np.arange(1.0, 10.0).reshape(1, 3, 3, 1).repeat(40, 0)
    self.batch = {'image': image, 'label': np.arange(40)}

  def augment(self, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    return images.augment(self.batch, rng, **kwargs)['image'][..., 0]

  def test_nothing_moves(self):
    got = self.augment(shift=0)
    np.testing.assert_array_equal(got, self.batch['image'][..., 0])

  def test_shifts_are_whole_pixels(self):
    seen = {tuple(x.ravel().astype(int)) for x in self.augment(shift=1)}
    self.assertLen(seen, 9)
    self.assertIn((5, 6, 0, 8, 9, 0, 0, 0, 0), seen)  # Up and to the left.
    self.assertIn((0, 0, 0, 1, 2, 3, 4, 5, 6), seen)  # Down.

  def test_flips_half(self):
    rows = {tuple(x[0].astype(int)) for x in self.augment(shift=0, flip=True)}
    self.assertEqual(rows, {(1, 2, 3), (3, 2, 1)})

  def test_same_state_same_images(self):
    np.testing.assert_array_equal(self.augment(1), self.augment(1))
    self.assertFalse(np.array_equal(self.augment(1), self.augment(2)))


if __name__ == '__main__':
  absltest.main()
