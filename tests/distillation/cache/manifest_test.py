"""A cache says whose it is, and is refused by others."""

import dataclasses
import json

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from jaxopt_compress.disk import sealed
from jaxopt_compress.distillation import cache
from jaxopt_compress.distillation.cache import manifest as manifest_lib

MADE = cache.Manifest(
  model='m', data='d', vocabulary=128_000, k=64, examples=10, positions=(4, 2),
  shard=4,
)  # fmt: skip


class ManifestTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.dir = tmp_path

  def test_sizes(self):
    self.assertEqual(MADE.shards, 3)
    self.assertEqual(MADE.nbytes, 10 * 4 * 2 * 258)

  def test_what_is_written_is_read(self):
    sealed.write(self.dir / manifest_lib.NAME, dataclasses.asdict(MADE))
    self.assertEqual(manifest_lib.read(self.dir), MADE)
    self.assertEqual(manifest_lib.read(self.dir).digest, MADE.digest)

  def test_each_field_counts(self):
    for name, value in dataclasses.asdict(MADE).items():
      kinds = {str: 'other', int: 65, float: 2.0, bool: True, tuple: (3,)}
      other = dataclasses.replace(MADE, **{name: kinds[type(value)]})
      self.assertNotEqual(other.digest, MADE.digest)
      with self.assertRaises(ValueError) as caught:
        manifest_lib.check('/x', other, dataclasses.asdict(MADE))
      message = str(caught.exception)
      found = getattr(other, name)
      self.assertIn(
        f'its {name} is {found!r}, and {value!r} is expected', message
      )
    manifest_lib.check('/x', MADE, {'positions': [4, 2]})

  def test_a_field_that_is_none(self):
    with self.assertRaisesRegex(ValueError, "'modell'.*Did you mean 'model'"):
      manifest_lib.check('/x', MADE, {'modell': 'm'})

  @parameterized.parameters(
    (dict(examples=0), 'examples=0; at least 1'),
    (dict(shard=0), 'shard=0; at least 1'),
    (dict(model=''), 'model is empty.*fingerprint'),
    (dict(temperature=0.0), 'temperature=0.0; a number above 0'),
    (dict(temperature=float('nan')), 'temperature=nan'),
    (dict(k=0), 'k=0 entries of 128000 ids'),
  )
  def test_what_no_cache_can_be(self, change, message):
    with self.assertRaisesRegex(ValueError, message):
      dataclasses.replace(MADE, **change)

  def test_of_another_version(self):
    record = dataclasses.asdict(MADE) | {'version': 2}
    sealed.write(self.dir / manifest_lib.NAME, record)
    with self.assertRaisesRegex(ValueError, 'is of version 2.*reads version 1'):
      manifest_lib.read(self.dir)

  def test_that_somebody_edited(self):
    path = self.dir / manifest_lib.NAME
    sealed.write(path, dataclasses.asdict(MADE))
    record = json.loads(path.read_text()) | {'temperature': 4.0}
    path.write_text(json.dumps(record))
    with self.assertRaisesRegex(ValueError, 'is damaged.*Remove .*write the'):
      manifest_lib.read(self.dir)

  def test_that_is_not_there(self):
    with self.assertRaisesRegex(ValueError, 'is no cache: it has no manifest'):
      manifest_lib.read(self.dir)


if __name__ == '__main__':
  absltest.main()
