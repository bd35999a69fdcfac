"""Files of arrays that are damaged, or that promise more than they hold."""

import io
import pathlib
import tempfile
import zipfile

from absl.testing import parameterized
import numpy as np

from jaxopt_compress.data import archive


def _array(shape, held):
  """An array that says `shape` and holds `held` bytes."""
  stream = io.BytesIO()
  header = dict(descr='|u1', fortran_order=False, shape=shape)
  np.lib.format.write_array_header_1_0(stream, header)
  return stream.getvalue() + bytes(held)


class ArchiveTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(directory) / 'x.npz'

  def refuses(self, message, names=('x',)):
    with self.assertRaisesRegex(ValueError, message):
      archive.read(self.path, names)

  @parameterized.parameters(np.savez, np.savez_compressed)
  def test_read(self, save):
    # A good compressor makes a thousandth of zeros.
    x, y = np.zeros((1_000, 1_000)), np.asfortranarray(np.ones((2, 3), '>i2'))
    save(self.path, x=x, y=y, more=np.array([None]))
    found = archive.read(self.path, ['x', 'y'])
    np.testing.assert_array_equal(found['x'], x)
    np.testing.assert_array_equal(found['y'], y)

  def test_names(self):
    np.savez(self.path, images=1)
    self.refuses("no array 'image', only .*Did you mean 'images'", ['image'])

  @parameterized.parameters(
    ((10**6, 10**6, 10**6), '1000000000000000000 bytes, and has 12'),
    ((2**62, 2**62), 'bytes, and has 12'),
    ((3,), '3 bytes, and has 12'),
  )
  def test_shapes_are_not_believed(self, shape, message):
    with zipfile.ZipFile(self.path, 'w') as file:
      file.writestr('x.npy', _array(shape, held=12))
    self.refuses(message)

  @parameterized.parameters('(3, 4', '(True, 12)', '[3, 4]', '3 4', '{}')
  def test_headers_that_are_no_shape(self, shape):
    with zipfile.ZipFile(self.path, 'w') as file:
      raw = _array((1, 11), held=12)
      file.writestr('x.npy', raw.replace(b'(1, 11)', shape.encode()))
    self.refuses('no whole npz file')

  def test_members_that_are_no_arrays(self):
    with zipfile.ZipFile(self.path, 'w') as file:
      file.writestr('x', b'text')
      file.writestr('y.npy', _array((3,), held=3))
    self.refuses("no array 'x', only .'y'.")

  def test_sizes_are_not_believed(self):
    """Nor is what the file says of the unpacked size."""
    with zipfile.ZipFile(self.path, 'w') as file:
      file.writestr('x.npy', _array((2**30,), held=0))
      file.filelist[0].file_size = 2**30 + 128
    self.refuses('1073741824 bytes, and has')

  @parameterized.parameters(0, 10, 100, -3)
  def test_cut(self, end):
    np.savez(self.path, x=np.ones(9))
    self.path.write_bytes(self.path.read_bytes()[:end])
    self.refuses('no whole npz file')

  def test_damaged(self):
    np.savez(self.path, x=np.ones(9))
    raw = bytearray(self.path.read_bytes())
    raw[180] ^= 1
    self.path.write_bytes(raw)
    self.refuses('no whole npz file .Bad CRC')

  def test_objects(self):
    np.savez(self.path, x=np.array([None]))
    self.refuses('Object arrays cannot be loaded')
