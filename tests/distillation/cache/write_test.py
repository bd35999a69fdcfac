"""A writer that is killed anywhere goes on, and asks for nothing twice."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from jaxopt_compress.distillation import cache
from jaxopt_compress.distillation.cache import shards

MADE = cache.Manifest(
  model='m', data='d', vocabulary=9, k=2, examples=10, positions=(3,), shard=4
)

# Writes until all of its second file is in a file of another name, and stays there.
KILLED = """
import os, sys, time
sys.path.insert(0, sys.argv[2])
import write_test
sync, calls = os.fsync, []

def fsync(handle):
  calls.append(handle)
  if len(calls) == 3:  # the manifest, the first file, the second
    print('half', flush=True)
    time.sleep(60)
  sync(handle)

os.fsync = fsync
write_test.write(sys.argv[1])
"""


def answers(indices):
  """Example i is sure of id i % 9, to one half."""
  first = np.broadcast_to(indices[:, None] % 9, (len(indices), 3))
  ids = np.stack([first, (first + 1) % 9], -1)
  half = np.log([0.5, 0.25])
  return ids, np.broadcast_to(half, ids.shape), np.full(first.shape, half[1])


def broken(indices, example):
  """NaN where this example is answered."""
  ids, log_probs, log_tail = answers(indices)
  return ids, np.where(indices == example, np.nan, log_probs.T).T, log_tail


def write(folder, *, manifest=MADE, answers=answers, batch_size=3, **how):
  cache.write(folder, manifest, answers, batch_size=batch_size, **how)


def contents(folder):
  return {p.name: p.read_bytes() for p in pathlib.Path(folder).iterdir()}


class WriteTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.dir = tmp_path / 'deep' / 'cache'
    self.asked = []

  def _answers(self, indices):
    self.asked.append(indices.tolist())
    return answers(indices)

  def test_batches_have_one_size_and_stay_in_their_file(self):
    write(self.dir, answers=self._answers)
    self.assertEqual(
      self.asked, [[0, 1, 2], [3, 3, 3], [4, 5, 6], [7, 7, 7], [8, 9, 9]]
    )
    got = cache.read(self.dir, data='d', vocabulary=9).take(np.arange(10))
    for name, x in zip(got, answers(np.arange(10)), strict=True):
      np.testing.assert_allclose(got[name], x, rtol=1e-3)

  @parameterized.parameters(1, 4, 100)
  def test_the_size_of_a_batch_changes_nothing(self, batch_size):
    write(self.dir, batch_size=batch_size)
    write(self.dir.parent / 'other')
    self.assertEqual(contents(self.dir), contents(self.dir.parent / 'other'))

  def test_only_what_is_missing_is_asked_for(self):
    write(self.dir)
    whole = contents(self.dir)
    write(self.dir, answers=self._answers)
    self.assertEqual(self.asked, [])
    shards.path(self.dir, 1).unlink()
    seen = []
    write(
      self.dir, answers=self._answers, progress=lambda x: seen.append(x) or x
    )
    self.assertEqual(seen, [[1]])
    self.assertEqual(self.asked, [[4, 5, 6], [7, 7, 7]])
    self.assertEqual(contents(self.dir), whole)

  def test_parts_are_disjoint_and_make_the_whole(self):
    for i in range(2):
      write(self.dir, answers=self._answers, part=(i, 2))
    self.assertLen(self.asked, 5)
    write(self.dir.parent / 'other')
    self.assertEqual(contents(self.dir), contents(self.dir.parent / 'other'))

  def test_killed_with_half_a_file(self):
    child = subprocess.Popen(
      [sys.executable, '-c', KILLED, self.dir, pathlib.Path(__file__).parent],
      stdout=subprocess.PIPE,
    )
    with child, child.stdout:
      self.assertEqual(child.stdout.readline(), b'half\n')
      child.send_signal(signal.SIGKILL)
    names = sorted(os.listdir(self.dir))
    self.assertStartsWith(names[0], '.shard-000001.bin.')
    self.assertEqual(names[1:], ['manifest.json', 'shard-000000.bin'])
    with self.assertRaisesRegex(
      ValueError, '2 of the 3 files .* missing, first shard-000001.*again'
    ):
      cache.read(self.dir, data='d', vocabulary=9)
    write(self.dir, answers=self._answers)
    self.assertLen(self.asked, 3)  # of the second and the third file
    write(self.dir.parent / 'other')
    self.assertEqual(contents(self.dir), contents(self.dir.parent / 'other'))

  def test_a_corrupted_file_is_named_and_made_again_alone(self):
    write(self.dir)
    whole, path = contents(self.dir), shards.path(self.dir, 1)
    path.write_bytes(b'\1' + path.read_bytes()[1:])
    found = cache.read(self.dir, data='d', vocabulary=9)
    found.take([0, 3, 9])
    for use in (lambda: found.take([0, 4]), found.check):
      with self.assertRaisesRegex(
        cache.CorruptShard, 'shard-000001.bin.*Delete'
      ):
        use()
    path.unlink()
    write(self.dir, answers=self._answers)
    self.assertLen(self.asked, 2)
    self.assertEqual(contents(self.dir), whole)

  def test_a_folder_of_another_cache(self):
    write(self.dir)
    other = dataclasses.replace(MADE, model='n', shard=2)
    message = "its model is 'm', and 'n' is expected; its shard is 4, and 2"
    with self.assertRaisesRegex(ValueError, message):
      write(self.dir, manifest=other)

  def test_a_folder_without_a_manifest(self):
    write(self.dir)
    (self.dir / 'manifest.json').unlink()
    with self.assertRaisesRegex(ValueError, r'shard-000000.bin.*no manifest'):
      write(self.dir)

  @parameterized.parameters(
    (dict(batch_size=0), 'batch_size=0'),
    (dict(part=(2, 2)), r'part=\(2, 2\)'),
    (
      dict(answers=lambda i: [x[:, 0] for x in answers(i)]),
      r'have positions \[3\], and by the manifest \[3, 3\]',
    ),
    (
      dict(answers=lambda i: [x * np.nan for x in answers(i)]),
      'The answer to example 0 is not finite',
    ),
    (dict(answers=lambda i: broken(i, 5)), 'answer to example 5 is not finite'),
    (
      dict(answers=lambda i: [x + (j == 1) for j, x in enumerate(answers(i))]),
      'examples 0 to 2: .*do not add up to 1',
    ),
  )
  def test_what_cannot_be_written(self, change, message):
    with self.assertRaisesRegex(ValueError, message):
      write(self.dir, **change)


if __name__ == '__main__':
  absltest.main()
