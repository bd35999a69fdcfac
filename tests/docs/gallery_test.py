"""The gallery is written from what notebooks and configs say of themselves."""

import doctest
import pathlib
import tempfile

from absl.testing import absltest
import gallery
import nbformat

_ROOT = pathlib.Path(__file__).parents[2]


class GalleryTest(absltest.TestCase):
  def test_doctests(self):
    self.assertEqual(doctest.testmod(gallery).failed, 0)

  def test_a_table_and_flags(self):
    text = 'As in\n  seed   0\n  dense  9\nor --config.seed=1 and `--x`.'
    expected = 'As in\n```text\n  seed   0\n  dense  9\n```\nor `--config.seed=1` and `--x`.'
    self.assertEqual(gallery.prose(text), expected)

  def test_no_claim(self):
    with self.assertRaisesRegex(ValueError, 'x.py says no "Claim'):
      gallery.header('Title.\n\nCost: none', 'x.py')

  def test_no_picture(self):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('1')])
    with self.assertRaisesRegex(ValueError, 'x has no picture'):
      gallery.picture(book, 'x')

  def test_everything_is_in_it(self):
    with tempfile.TemporaryDirectory() as folder:
      gallery.write(pathlib.Path(folder))
      pages = {p.name: p.read_bytes() for p in pathlib.Path(folder).iterdir()}
    for path in (_ROOT / 'colabs').glob('*.ipynb'):
      self.assertTrue(pages[f'{path.stem}.png'].startswith(b'\x89PNG'))
      self.assertIn(f':link: {path.stem}\n', pages['index.md'].decode())
    for path in (_ROOT / 'configs').glob('*.py'):
      self.assertIn(f'\n## {path.name}\n', pages['experiments.md'].decode())


if __name__ == '__main__':
  absltest.main()
