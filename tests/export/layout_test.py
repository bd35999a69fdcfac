"""A directory takes the place of another whole, or not at all."""

import os
from unittest import mock

from absl.testing import absltest
import export_cases
import numpy as np

from jaxopt_compress import export
from jaxopt_compress.export import layout


class LayoutTest(export_cases.ExportTestCase):
  def setUp(self):
    super().setUp()
    export.save(
      self.folder,
      export_cases.apply,
      export_cases.params(),
      export_cases.inputs(2),
    )

  def test_a_failure_keeps_the_export_that_was_there(self):
    before = (self.folder / 'manifest.json').read_text()

    def fails(p, x):
      raise RuntimeError('no')

    with self.assertRaisesRegex(RuntimeError, 'no'):
      export.save(
        self.folder, fails, export_cases.params(), export_cases.inputs(2)
      )
    with mock.patch.object(layout, 'sync', side_effect=OSError('disk full')):
      with self.assertRaisesRegex(OSError, 'disk full'):
        export.save(
          self.folder,
          export_cases.apply,
          export_cases.params(),
          export_cases.inputs(2),
        )
    self.assertEqual((self.folder / 'manifest.json').read_text(), before)
    self.assertEqual(os.listdir(self.root), ['model'])
    export.load(self.folder)

  def test_an_export_put_aside_by_a_crash_comes_back(self):
    self.folder.rename(self.root / '.model.old')

    def fails(p, x):
      raise RuntimeError('no')

    with self.assertRaisesRegex(RuntimeError, 'no'):
      export.save(
        self.folder, fails, export_cases.params(), export_cases.inputs(2)
      )
    self.assertEqual(os.listdir(self.root), ['model'])
    export.load(self.folder)

  def test_replaces_an_export_and_nothing_else(self):
    export.save(self.folder, lambda p, x: 2 * x, {}, export_cases.inputs(2))
    self.assertEqual(
      export.load(self.folder)(export_cases.inputs(2)).shape, (2, 256)
    )
    (self.root / 'home').mkdir()
    (self.root / 'home' / 'thesis.tex').touch()
    with self.assertRaisesRegex(ValueError, 'is no export'):
      export.save(
        self.root / 'home',
        export_cases.apply,
        export_cases.params(),
        export_cases.inputs(2),
      )
    self.assertEqual(os.listdir(self.root / 'home'), ['thesis.tex'])

  def test_a_link_is_followed(self):
    link = self.root / 'link'
    link.symlink_to(self.folder)
    for i in (2, 3):
      export.save(link, lambda p, x, i=i: i * x, {}, export_cases.inputs(2))
    self.assertEqual(sorted(os.listdir(self.root)), ['link', 'model'])
    self.assertEqual(link.readlink(), self.folder)
    ones = np.ones((2, 256), np.float32)
    self.assertEqual(float(export.load(self.folder)(ones)[0, 0]), 3)

  def test_an_empty_name_is_not_the_current_folder(self):
    with self.assertRaisesRegex(ValueError, 'empty name'):
      export.save('', export_cases.apply, {}, export_cases.inputs(2))


if __name__ == '__main__':
  absltest.main()
