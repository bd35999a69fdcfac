"""One run at a time in a workdir that is fit for it."""

import errno
import fcntl
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import parameterized
import pytest

from jaxopt_compress.train import workdir

HOLD = """
import fcntl, sys
lock = open(sys.argv[1], 'a+')
fcntl.flock(lock, fcntl.LOCK_EX)
lock.write('process 7 on elsewhere')
print('held', flush=True)
sys.stdin.read()
"""


class WorkdirTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.work = tmp_path / 'a' / 'work'

  def _open(self, stages=()):
    with workdir.opened(self.work, stages):
      pass

  @parameterized.parameters('', ' ')
  def test_an_empty_name_is_not_the_current_folder(self, name):
    with pytest.raises(ValueError, match='workdir is empty. Set it with'):
      workdir.absolute(name)

  def test_where_it_could_be_made(self):
    workdir.check_can_be_made(self.work)
    self.assertFalse(self.work.exists())
    top = self.work.parents[1]
    (top / 'file').write_text('')
    with pytest.raises(
      ValueError, match=f'made in {top}/file, which is no fol'
    ):
      workdir.check_can_be_made(top / 'file' / 'work')
    with pytest.raises(ValueError, match='made in /proc, which is no folder'):
      workdir.check_can_be_made(pathlib.Path('/proc/work'))
    error = PermissionError(errno.EACCES, 'Permission denied')
    with mock.patch.object(tempfile, 'TemporaryFile', side_effect=error):
      with pytest.raises(
        ValueError, match=f'made in {top}, which is no folder'
      ):
        workdir.check_can_be_made(self.work)

  def test_a_second_run_is_refused(self):
    who = f'process {os.getpid()} on {socket.gethostname()}, since 20'
    with workdir.opened(self.work):
      with pytest.raises(ValueError, match=f'work is in use by {who}.*Wait'):
        self._open()
      with workdir.opened(self.work.parent):  # another one is free
        pass
      # The text locks nothing, and is not needed.
      (self.work / 'lock').write_text('')
      with pytest.raises(ValueError, match='in use by another run'):
        self._open()
    self._open()

  def test_the_lock_of_a_killed_process_is_gone(self):
    self.work.mkdir(parents=True)
    process = subprocess.Popen(
      [sys.executable, '-c', HOLD, self.work / 'lock'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
    )
    with process:
      self.assertEqual(process.stdout.readline(), b'held\n')
      with pytest.raises(ValueError, match='in use by'):
        self._open()
      process.kill()
    self._open()

  def test_a_file_system_without_locks(self):
    error = OSError(errno.ENOLCK, 'No locks available')
    with mock.patch.object(fcntl, 'flock', side_effect=error):
      with self.assertLogs('absl', 'WARNING') as logs:
        self._open()
    self.assertIn('cannot be locked (No locks available)', logs.output[0])

  def test_what_is_in_the_way(self):
    self.work.mkdir(parents=True)
    (self.work / 'report.json').mkdir()
    with pytest.raises(ValueError, match='report.json is a folder, and a file'):
      self._open()
    (self.work / 'report.json').rmdir()
    (self.work / 'stages').write_text('')
    with pytest.raises(ValueError, match='stages is a file, and a folder'):
      self._open()
    (self.work / 'stages').unlink()
    self._open()

  @parameterized.parameters('checkpoints/b', 'stages/b', 'stages/b.partial')
  def test_what_is_in_the_way_of_a_stage(self, name):
    path = self.work / name
    path.parent.mkdir(parents=True)
    path.write_text('')
    self._open()
    with pytest.raises(ValueError, match=f'{path} is a file, and a folder'):
      self._open(['a', 'b'])
    path.unlink()
    path.symlink_to('nowhere')
    with pytest.raises(ValueError, match=f'{path} is a link to nowhere, and'):
      self._open(['a', 'b'])
    path.unlink()
    path.mkdir()
    self._open(['a', 'b'])

  def test_not_a_folder(self):
    self.work.parent.write_text('a file')
    with pytest.raises(ValueError, match='work cannot be read and written'):
      self._open()

  def test_leftovers_of_a_killed_run_are_removed(self):
    (self.work / 'plots').mkdir(parents=True)
    for folder in (self.work, self.work / 'plots'):
      pathlib.Path(folder, '.report.md.x1.partial').write_text('half')
      pathlib.Path(folder, 'mine.partial').write_text('whole')
    self._open()
    left = sorted(p.name for p in self.work.rglob('*partial'))
    self.assertEqual(left, ['mine.partial', 'mine.partial'])
