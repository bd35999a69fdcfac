"""A file is what was written, or it is refused by name."""

import dataclasses
import shutil

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from jaxopt_compress.distillation import cache
from jaxopt_compress.distillation.cache import shards

MADE = cache.Manifest(
  model='m', data='d', vocabulary=9, k=2, examples=5, positions=(3,), shard=4
)


def codes(shard):
  shape = len(shards.examples(MADE, shard)), 3, MADE.codec.nbytes
  rng = np.random.default_rng(shard)
  return rng.integers(0, 256, shape, np.uint8)


class ShardsTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.dir = tmp_path
    for shard in range(2):
      shards.write(self.dir, MADE, shard, codes(shard))
    self.path = shards.path(self.dir, 0)

  def test_what_is_written_is_read(self):
    self.assertEqual(
      [list(shards.examples(MADE, i)) for i in (0, 1)], [[0, 1, 2, 3], [4]]
    )
    for shard in range(2):
      got = shards.read(self.dir, MADE, shard)
      np.testing.assert_array_equal(got, codes(shard))
    # 4 examples of 3 positions of 7 bytes, and the digest.
    self.assertEqual(self.path.stat().st_size, 4 * 3 * 7 + 32)
    self.assertEqual(self.path.name, 'shard-000000.bin')

  @parameterized.parameters(0, 40, 83, 84, 115)
  def test_any_bit_that_changes(self, byte):
    content = bytearray(self.path.read_bytes())
    content[byte] ^= 1
    self.path.write_bytes(content)
    self._refused('does not have the sha256 that it states')

  def test_a_file_that_is_cut_off(self):
    self.path.write_bytes(self.path.read_bytes()[:-1])
    self._refused('has 115 bytes, not 116')

  def test_an_empty_file(self):
    self.path.write_bytes(b'')
    self._refused('cannot be read')

  def test_a_file_that_is_gone(self):
    self.path.unlink()
    self._refused('cannot be read')

  def test_another_file_of_this_cache(self):
    made = dataclasses.replace(MADE, examples=8)
    shards.write(self.dir, made, 1, np.concatenate([codes(1)] * 4))
    shutil.copy(shards.path(self.dir, 1), self.path)
    self._refused('does not have the sha256', made)

  def test_a_file_of_another_cache(self):
    other = dataclasses.replace(MADE, model='other')
    shards.write(self.dir, other, 0, codes(0))
    self._refused('does not have the sha256')

  def _refused(self, problem, made=MADE):
    message = f'shard-000000.bin {problem}.*Delete this file and run the writer'
    with self.assertRaisesRegex(cache.CorruptShard, message):
      shards.read(self.dir, made, 0)


if __name__ == '__main__':
  absltest.main()
