"""What is in a file of times, and what becomes of it under many writers."""

import json
import multiprocessing
import os
from unittest import mock
import warnings

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from jaxopt_compress.kernels import measured


def _times(weight, rows=1):
  return {'cpu': {weight: {str(rows): {'xla': 1.0, 'avx2': 0.1}}}}


def _write_often(file, weight):
  for rows in range(1, 51):
    measured.add(file, _times(weight, rows))


def _nested(depth):
  return '[' * depth + ']' * depth


class MeasuredTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.file = tmp_path / 'a' / 'times.json'

  def _left_there(self):
    return {path.name for path in self.file.parent.iterdir()}

  def test_what_all_writers_wrote_is_there(self):
    measured.add(self.file, _times('a'))
    write = multiprocessing.get_context('fork').Process
    writers = [write(target=_write_often, args=(self.file, w)) for w in 'bc']
    with warnings.catch_warnings():
      # JAX warns of forks; these processes do not touch it.
      warnings.simplefilter('ignore')
      for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
      measured.read(self.file)  # raises of half a file
    for writer in writers:
      writer.join()
      self.assertEqual(writer.exitcode, 0)
    found = measured.read(self.file)['cpu']
    counts = {weight: len(rows) for weight, rows in found.items()}
    self.assertEqual(counts, {'a': 1, 'b': 50, 'c': 50})
    self.assertEqual(self._left_there(), {'times.json', '.times.json.lock'})

  def test_the_newer_time_counts(self):
    measured.add(self.file, _times('a'))
    newer = {'cpu': {'a': {'1': {'xla': 3.0}}}}
    measured.add(self.file, newer)
    self.assertEqual(measured.read(self.file), newer)

  def test_a_link_leads_to_the_file(self):
    measured.add(self.file, _times('a', rows=1))
    link = self.file.with_name('link.json')
    link.symlink_to(self.file)
    measured.add(link, _times('a', rows=2))
    self.assertTrue(link.is_symlink())
    self.assertLen(measured.read(self.file)['cpu']['a'], 2)

  def test_a_folder_is_refused(self):
    self.file.mkdir(parents=True)
    for use in (measured.read, lambda file: measured.add(file, _times('a'))):
      with self.assertRaisesRegex(ValueError, 'times.json is a folder'):
        use(self.file)

  def test_a_failure_leaves_the_file_that_was_there(self):
    measured.add(self.file, _times('a'))
    os.chmod(self.file, 0o640)
    for broken in ('fsync', 'chmod', 'replace'):
      failing = mock.patch.object(os, broken, side_effect=OSError('no room'))
      with failing, self.assertRaisesRegex(OSError, 'no room'):
        measured.add(self.file, _times('b'))
      self.assertEqual(measured.read(self.file), _times('a'))
      self.assertEqual(self._left_there(), {'times.json', '.times.json.lock'})
    measured.add(self.file, _times('b'))
    self.assertEqual(self.file.stat().st_mode & 0o777, 0o640)

  @parameterized.parameters(
    ('{', 'Expecting property name'),
    ('', 'Expecting value'),
    (b'\xff\xfe', 'Expecting value'),
    (_nested(100_000), 'recursion'),
    ('[1]', r'the whole file is \[1\], not an object'),
    ('null', 'the whole file is null'),
    ('{"cpu": 3}', 'cpu is 3, not an object'),
    ('{"cpu": {"w": []}}', r'cpu > w is \[\], not an object'),
    ('{"cpu": {"w": {"a": {}}}}', 'cpu > w > a: "a" is no number of rows'),
    ('{"cpu": {"w": {"-1": {}}}}', '"-1" is no number of rows'),
    ('{"cpu": {"w": {"0": {}}}}', '"0" is no number of rows'),
    ('{"cpu": {"w": {" 1": {}}}}', '" 1" is no number of rows'),
    ('{"cpu": {"w": {"1": {"xla": Infinity}}}}', 'xla is Infinity, not a time'),
    ('{"cpu": {"w": {"1": {"xla": 1e999}}}}', 'xla is Infinity, not a time'),
    ('{"cpu": {"w": {"1": {"xla": NaN}}}}', 'xla is NaN, not a time'),
    ('{"cpu": {"w": {"1": {"xla": true}}}}', 'xla is true, not a time'),
    ('{"cpu": {"w": {"1": {"xla": 0}}}}', 'xla is 0, not a time'),
    ('{"cpu": {"w": {"1": {"xla": -1}}}}', 'xla is -1, not a time'),
    ('{"cpu": {"w": {"1": {"xla": "1"}}}}', 'xla is "1", not a time'),
    ('{"cpu": {"w": {"1": {"xla": {}}}}}', 'xla is {}, not a time'),
    (
      '{"cpu": {"w": {"1": {"xla": 1' + 400 * '0' + '}}}}',
      r'10{36}\.\.\., not',
    ),
  )
  def test_what_is_no_time_is_refused(self, text, why):
    self.file.parent.mkdir()
    text = text if isinstance(text, bytes) else text.encode()
    self.file.write_bytes(text)
    for use in (measured.read, lambda file: measured.add(file, _times('a'))):
      with self.assertRaisesRegex(ValueError, why) as raised:
        use(self.file)
      self.assertIn(str(self.file), str(raised.exception))
      self.assertIn('Remove it, or name another', str(raised.exception))
    self.assertEqual(self.file.read_bytes(), text)

  def test_times_that_can_be_are_taken(self):
    self.file.parent.mkdir()
    times = {'cpu': {'w': {'1': {'xla': 2, 'avx2': 1e-4}}, 'v': {}}, 'gpu': {}}
    self.file.write_text(json.dumps(times))
    self.assertEqual(measured.read(self.file), times)


if __name__ == '__main__':
  absltest.main()
