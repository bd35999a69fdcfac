"""Whatever happens to a record on disk is noticed when it is read."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from jaxopt_compress.disk import sealed

RECORD = {'name': 'model', 'loss': 0.1, 'widths': (8, 16), 'none': None}


class SealedTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.path = tmp_path / 'record.json'
    sealed.write(self.path, RECORD)

  def test_round_trip(self):
    found = sealed.read(self.path)
    self.assertEqual(found.pop('sha256'), sealed.seal(RECORD)['sha256'])
    self.assertEqual(found, {**RECORD, 'widths': [8, 16]})

  def test_the_layout_of_the_file_is_free(self):
    self.path.write_text(json.dumps(sealed.read(self.path), sort_keys=True))
    sealed.read(self.path)

  def test_every_flipped_bit(self):
    content = self.path.read_bytes()
    found = sealed.read(self.path)
    for i in range(len(content)):
      for bit in (1, 32):  # 32 turns a space, which means nothing, into NUL
        flipped = bytearray(content)
        flipped[i] ^= bit
        self.path.write_bytes(flipped)
        with pytest.raises(sealed.Damaged, match='record.json is damaged'):
          self.fail(f'{i}: {sealed.read(self.path)} is not {found}')

  @parameterized.named_parameters(
    ('missing', lambda path: path.unlink(), r'is missing\.$'),
    ('empty', lambda path: path.write_text(''), 'is no JSON'),
    ('cut_off', lambda path: path.write_text('{"name": '), 'is no JSON'),
    ('deep', lambda path: path.write_text('[' * 100_000), 'is no JSON'),
    ('binary', lambda path: path.write_bytes(b'\xff\xfe\x00'), 'is no JSON'),
    ('a_list', lambda path: path.write_text('[]'), 'that it states'),
    ('unsealed', lambda path: path.write_text('{"a": 1}'), 'that it states'),
    (
      'a_folder',
      lambda path: (path.unlink(), path.mkdir()),
      r'cannot be read \(Is a directory\)',
    ),
  )
  def test_damage(self, damage, message):
    damage(self.path)
    with pytest.raises(sealed.Damaged, match=f'record.json.*{message}'):
      sealed.read(self.path)

  def test_files(self):
    digest = sealed.sha256(self.path)
    sealed.check(self.path, digest)
    self.path.write_text('')
    with pytest.raises(sealed.Damaged, match=f'is e3b0.*expected {digest[:9]}'):
      sealed.check(self.path, digest)
    self.path.unlink()
    with pytest.raises(sealed.Damaged, match='record.json is missing'):
      sealed.check(self.path, digest)


if __name__ == '__main__':
  absltest.main()
