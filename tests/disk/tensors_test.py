"""Files that the safetensors package reads, and files that nobody should."""

import json
import pathlib
import re
import sys

from absl.testing import absltest
from absl.testing import parameterized
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from jaxopt_compress.disk import tensors

ARRAYS = {
  'a/odd': np.arange(5, dtype=np.int8),
  'a/b.c': np.arange(32, dtype=np.float32).reshape(4, 8),
  '': np.array(2.5),
  'none': np.zeros((0, 3), np.float32),
  'half': np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3),
  '../../etc/passwd': np.array([True, False]),
}


def entry(dtype='U8', shape=(4,), data_offsets=(0, 4)):
  return {
    'dtype': dtype,
    'shape': list(shape),
    'data_offsets': list(data_offsets),
  }


# name -> (header, bytes of data, what is said of it).
HOSTILE = {
  'huge shape': (
    {'x': entry(shape=[2**40, 2**40], data_offsets=[0, 4])},
    4,
    'x of .* impossible shape',
  ),
  'product of 2^64': (
    {'x': entry(shape=[2**32, 2**32, 1], data_offsets=[0, 0])},
    0,
    'impossible shape',
  ),
  'huge and none': (
    {'x': entry(shape=[0, 2**70], data_offsets=[0, 0])},
    0,
    'impossible shape',
  ),
  'axes without end': (
    {'x': entry(shape=[1] * 99, data_offsets=[0, 1])},
    1,
    'no array',
  ),
  'negative': ({'x': entry(shape=[-2, -2])}, 4, 'no array'),
  'a fraction': ({'x': entry(shape=[4.0])}, 4, 'no array'),
  'true': ({'x': entry(shape=[True, 4])}, 4, 'no array'),
  'negative offset': ({'x': entry(data_offsets=[-4, 0])}, 4, 'no array'),
  'one offset': ({'x': entry(data_offsets=[4])}, 4, 'no array'),
  'backwards': ({'x': entry(data_offsets=[4, 0])}, 4, 'leave it -4 bytes'),
  'beyond the end': (
    {'x': entry(shape=[2**40], data_offsets=[0, 2**40])},
    4,
    'has 4 bytes of data, .* 1099511627776',
  ),
  'overlap': (
    {'x': entry(), 'y': entry(data_offsets=[2, 6])},
    6,
    'y starts at byte 2 .* overlap',
  ),
  'gap': (
    {'x': entry(), 'y': entry(data_offsets=[8, 12])},
    12,
    'y starts at byte 8',
  ),
  'more data': ({'x': entry()}, 9, 'has 9 bytes of data'),
  'dtype': ({'x': entry(dtype='O')}, 4, "'dtype': 'O'.* no array"),
  'dtype of a list': ({'x': entry(dtype=['U8'])}, 4, 'no array'),
  'no entry': ({'x': [1, 2]}, 4, 'no array'),
  'no table': ([1, 2], 4, 'no table'),
  'metadata': ({'__metadata__': {'a': 1}}, 0, 'not texts'),
  'a list of metadata': ({'__metadata__': []}, 0, 'not texts'),
}
# The same of headers that `json` does not write.
NO_JSON = {
  'cut off': (b'{"x":', 'no JSON'),
  'deep': (b'{"x":' + b'[' * 100_000, 'no JSON'),
  'twice': (
    b'{"x": %b, "x": %b}' % ((json.dumps(entry()).encode(),) * 2),
    "two entries 'x'",
  ),
  'not a number': (b'{"x": NaN}', 'NaN is no number'),
  'infinite': (b'{"x": 1e999}', '1e999 is no number'),
  'twice, of many': (
    b'{%b"z": 0, "z": 0}' % b''.join(b'"%d": 0,' % i for i in range(100_000)),
    "two entries 'z'",
  ),
  'no text': (b'\xff\xfe', 'no JSON'),
  'digits': (b'{"x": ' + b'9' * 10_000 + b'}', 'no JSON'),
}


class TensorsTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.path = tmp_path / 'x.safetensors'

  def write(self, arrays, metadata=None):
    tensors.write(self.path, arrays, arrays.__getitem__, metadata or {})

  def write_header(self, text, data=b''):
    self.path.write_bytes(len(text).to_bytes(8, 'little') + text + data)

  def read_all(self, how='read'):
    with tensors.opened(self.path) as file:
      file.check_header()
      return {name: np.array(getattr(file, how)(name)) for name in file.entries}

  def test_names_and_lengths_that_nobody_reads(self):
    with self.assertRaisesRegex(ValueError, '__metadata__.* is no name'):
      self.write({'__metadata__': np.ones(2)})
    self.assertFalse(self.path.exists())
    self.write_header(b'{"x": [' + b'[],' * 6_000_000 + b'0]}')
    with self.assertRaisesRegex(ValueError, '18000010.*at most 16777216'):
      self.read_all()
    with self.assertRaisesRegex(ValueError, 'Save the tree in several'):
      self.write({'x': np.ones(2)}, {'much': ' ' * (1 << 24)})

  @parameterized.parameters('read', 'mapped')
  def test_read_back_here_and_by_the_package(self, how):
    self.write(ARRAYS, {'said': 'by us'})
    for found in (self.read_all(how), safetensors.load_file(self.path)):
      self.assertEqual(set(found), set(ARRAYS))
      for name, x in ARRAYS.items():
        self.assertEqual(found[name].dtype, x.dtype)
        np.testing.assert_array_equal(found[name], x)

  def test_arrays_of_the_package_are_read(self):
    safetensors.save_file(ARRAYS, self.path, {'format': 'np'})
    with tensors.opened(self.path) as file:
      self.assertEqual(file.metadata, {'format': 'np'})
      for name, x in ARRAYS.items():
        np.testing.assert_array_equal(file.read(name), x)
      with self.assertRaisesRegex(ValueError, 'header is not what was written'):
        file.check_header()

  def test_where_arrays_lie(self):
    self.write(ARRAYS)
    with tensors.opened(self.path) as file:
      start = self.path.stat().st_size - max(
        e.end for e in file.entries.values()
      )
      self.assertEqual(start % 64, 0)
      self.assertEqual(file.entries['a/b.c'].begin % 64, 0)
      for e in file.entries.values():
        self.assertEqual(e.begin % e.dtype.itemsize, 0)
      # A CPU takes such memory as it is.
      self.assertEqual(file.read('a/odd').ctypes.data % 64, 0)

  def test_every_flipped_bit_is_noticed(self):
    self.write({'x': np.arange(3, dtype=np.int8), 'y': np.ones(2, np.float32)})
    content = self.path.read_bytes()
    for i in range(len(content)):
      flipped = bytearray(content)
      flipped[i] ^= 1 << i % 8
      self.path.write_bytes(flipped)
      with self.assertRaises(ValueError, msg=f'byte {i}'):
        self.read_all()
    # The last ones are of the array that has odd bytes, which is named.
    with self.assertRaisesRegex(ValueError, 'damaged: the numbers of x are'):
      self.read_all('mapped')

  def test_every_length_that_is_cut_off_is_noticed(self):
    self.write({'x': np.arange(3, dtype=np.int8)})
    content = self.path.read_bytes()
    for n in range(len(content)):
      self.path.write_bytes(content[:n])
      with self.assertRaises(ValueError, msg=f'{n} bytes'):
        self.read_all()

  @parameterized.named_parameters(*((k, *v) for k, v in HOSTILE.items()))
  def test_refused(self, header, n, message):
    self.write_header(json.dumps(header).encode(), bytes(n))
    with self.assertRaisesRegex(ValueError, f'(?s){message}'):
      self.read_all()

  @parameterized.named_parameters(*((k, *v) for k, v in NO_JSON.items()))
  def test_refused_as_no_json(self, text, message):
    self.write_header(text)
    with self.assertRaisesRegex(ValueError, message):
      self.read_all()

  @parameterized.parameters(0, 7, 2**63 - 1, 2**64 - 1, 200_000_000)
  def test_lengths_of_headers(self, n):
    # As long as it claims to be, but of holes: nothing is read of it.
    with open(self.path, 'wb') as f:
      f.write(n.to_bytes(8, 'little'))
      f.truncate(min(n, 300_000_000))
    with self.assertRaises(ValueError):
      self.read_all()

  def test_checksums(self):
    self.write({'x': np.ones(2)}, {'a': 'b'})
    text = self.path.read_bytes()[8:]
    for key in (b'crc32', b'sha256'):
      self.write_header(text[:-16].replace(key, b'c' * len(key)), text[-16:])
      with self.assertRaisesRegex(ValueError, 'damaged|0 checksums'):
        self.read_all()

  @pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
  def test_no_huge_pages_are_asked_for(self):
    x = np.arange(1 << 20, dtype=np.float64)
    self.write({'x': x})
    with tensors.opened(self.path) as file:
      found = file.read('x')
    np.testing.assert_array_equal(found, x)
    self.assertTrue(found.flags.writeable)
    self.assertEqual(found.ctypes.data % 64, 0)
    # numpy asks for pages but the first, which it has a part of.
    at = found.ctypes.data + found.nbytes // 2
    for line in pathlib.Path('/proc/self/smaps').read_text().splitlines():
      if bounds := re.match('([0-9a-f]+)-([0-9a-f]+) ', line):
        begin, end = (int(word, 16) for word in bounds.groups())
      elif line.startswith('VmFlags:') and begin <= at < end:
        self.assertNotIn('hg', line.split())

  def test_folders_are_told(self):
    with self.assertRaisesRegex(ValueError, 'is a folder.*jc.export.load'):
      with tensors.opened(pathlib.Path(self.path).parent):
        pass
    with self.assertRaises(FileNotFoundError):
      with tensors.opened(self.path):
        pass

  def test_a_reader_keeps_the_file_that_it_opened(self):
    self.write({'x': np.ones(2)})
    with tensors.opened(self.path) as file:
      self.write({'y': np.zeros(9)})
      np.testing.assert_array_equal(file.read('x'), np.ones(2))


if __name__ == '__main__':
  absltest.main()
