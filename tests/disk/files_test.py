"""A file is replaced as a whole, or not at all."""

import os
import pathlib
from unittest import mock

from absl.testing import absltest
import pytest

from jaxopt_compress.disk import files


class ReplaceTest(absltest.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.path = tmp_path / 'a.txt'

  def _names(self):
    return sorted(p.name for p in self.path.parent.iterdir())

  def test_the_new_content_takes_the_place_of_the_old(self):
    for content in ('old', b'new'):
      files.replace(str(self.path), content)
    self.assertEqual(self.path.read_text(), 'new')
    self.assertEqual(self._names(), ['a.txt'])
    self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o644)

  def test_a_failure_keeps_the_old_file(self):
    self.path.write_text('old')
    with mock.patch.object(os, 'fsync', side_effect=OSError('disk full')):
      with self.assertRaisesRegex(OSError, 'disk full') as caught:
        files.replace(self.path, 'half')
    self.assertIn('a.txt is as it was', caught.exception.__notes__[0])
    self.assertEqual(self.path.read_text(), 'old')
    self.assertEqual(self._names(), ['a.txt'])

  def test_of_a_link_what_it_points_to_is_replaced(self):
    self.path.write_text('old')
    link = self.path.with_name('link')
    link.symlink_to(self.path)
    files.replace(link, 'new')
    self.assertEqual(self.path.read_text(), 'new')
    self.assertTrue(link.is_symlink())

  def test_written_in_pieces(self):
    with files.replacing(self.path) as f:
      f.write(b'two')
      f.seek(0)
      f.write(b'T')
      self.assertFalse(self.path.exists())
    self.assertEqual(self.path.read_text(), 'Two')

  def test_what_a_killed_process_left_is_removed(self):
    self.path.write_text('old')
    with mock.patch.object(os, 'fsync', side_effect=OSError('killed')):
      with mock.patch.object(os, 'unlink'):  # as it has no time for it
        with self.assertRaisesRegex(OSError, 'killed'):
          files.replace(self.path, 'half')
    self.assertLen(self._names(), 2)
    files.remove_partial(self.path.parent, 'b.txt')
    self.assertLen(self._names(), 2)
    files.remove_partial(self.path.parent, 'a.txt')
    self.assertEqual(self._names(), ['a.txt'])
    files.remove_partial(self.path.parent)
    self.assertEqual(self._names(), ['a.txt'])
    files.remove_partial(pathlib.Path(self.path.parent, 'nowhere'))

  def test_what_is_being_written_is_not_removed(self):
    with files.replacing(self.path) as f:
      f.write(b'whole')
      files.remove_partial(self.path.parent)
    self.assertEqual(self.path.read_text(), 'whole')
    # Nor is a writer lost whose file is removed before it has its lock.
    with mock.patch.object(files.fcntl, 'flock'):
      with mock.patch.object(
        os, 'fstat', side_effect=[mock.Mock(st_nlink=n) for n in (0, 1)]
      ):
        handle, name = files._begin(self.path)
    os.close(handle)
    self.assertLen(self._names(), 3)
    self.assertIn(pathlib.Path(name).name, self._names())


if __name__ == '__main__':
  absltest.main()
