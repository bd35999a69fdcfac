"""A file is replaced as a whole, or not at all."""

import os
import tempfile

from absl.testing import absltest

from jaxopt_compress.report import files


class ReplacedTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = folder.name

  def test_the_new_content_takes_the_place_of_the_old(self):
    path = f'{self.folder}/a.txt'
    for content in ('old', 'new'):
      with files.replaced(path) as temporary:
        self.assertEqual(os.path.dirname(temporary), self.folder)
        with open(temporary, 'w') as f:
          f.write(content)
    with open(path) as f:
      self.assertEqual(f.read(), 'new')
    self.assertEqual(os.listdir(self.folder), ['a.txt'])
    self.assertEqual(os.stat(path).st_mode & 0o777, 0o644)

  def test_a_failure_keeps_the_old_file(self):
    with open(f'{self.folder}/a.txt', 'w') as f:
      f.write('old')
    with self.assertRaisesRegex(OSError, 'disk full'):
      with files.replaced(f'{self.folder}/a.txt') as temporary:
        with open(temporary, 'w') as f:
          f.write('half')
        raise OSError('disk full')
    with open(f'{self.folder}/a.txt') as f:
      self.assertEqual(f.read(), 'old')
    self.assertEqual(os.listdir(self.folder), ['a.txt'])


if __name__ == '__main__':
  absltest.main()
