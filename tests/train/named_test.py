"""Names of a user's own things, and what is said where they are wrong."""

import os
import pathlib
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from jaxopt_compress.train import named


class NamedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.root = pathlib.Path(directory)
    self.addCleanup(os.chdir, os.getcwd())
    self.addCleanup(sys.path.__setitem__, slice(None), sys.path[:])
    self.addCleanup(sys.modules.pop, 'mine_nets', None)
    os.chdir(self.root)
    self.write('mine_nets.py', 'from mine_parts import A\nclass Net: pass\n')
    self.write('mine_parts.py', 'class A:\n  B = 3\n')
    self.write('mine_broken.py', 'x = 1\ny = x.z\n')
    self.write('mine_lacks.py', 'import not_there\n')
    self.write('mine_syntax.py', 'x = (\n')

  def write(self, name, text):
    (self.root / name).write_text(text)

  def find(self, said):
    return named.find('config.x', said)

  def test_modules_and_files(self):
    self.assertEqual(self.find('mine_nets:Net').__name__, 'Net')
    of_file = self.find('./mine_nets.py:Net')
    self.assertIs(of_file, self.find(f'{self.root}/mine_nets.py:Net'))
    self.assertEqual(self.find('mine_nets.py:A.B'), 3)

  @parameterized.parameters(
    ('mine_nets:net', "mine_nets defines no 'net'. Did you mean 'Net'?"),
    ('mine_nest:Net', "no module 'mine_nest'. It is looked for in .*"),
    ('./nest.py:Net', 'no file ./nest.py in .*'),
    ('mine_broken:x', "fails .* AttributeError: 'int' .*mine_broken.py:2"),
    ('mine_broken.py:x', "fails .* AttributeError: 'int' .*broken.py:2"),
    ('mine_lacks:x', "ModuleNotFoundError: .*'not_there' .*lacks.py:1"),
    ('mine_syntax:x', r'SyntaxError: .*mine_syntax.py:1'),
    (':Net', "'module:name' or 'file.py:name' is expected"),
  )
  def test_mistakes(self, said, message):
    with self.assertRaisesRegex(ValueError, message):
      self.find(said)

  def test_the_digest_is_that_of_the_file(self):
    before = named.digest('mine_nets.py:Net')
    self.assertLen(before, 64)
    self.write('mine_nets.py', 'class Net: pass\n')
    self.assertNotEqual(named.digest('mine_nets.py:Net'), before)
    self.assertEqual(named.digest('sys:path'), '')


if __name__ == '__main__':
  absltest.main()
