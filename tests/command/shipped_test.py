"""Configs by name, in a clone and in a wheel."""

import importlib.util
import os
import pathlib
import tempfile

from absl.testing import parameterized

from jaxopt_compress.command import shipped

ROOT = pathlib.Path(__file__).parents[2]


def packaged():
  """What setup.py would put into a wheel: `{path within it: file of the clone}`."""
  build_meta = importlib.util.find_spec('setuptools')
  assert build_meta, 'setuptools builds the wheel'
  from distutils import core  # setuptools provides it.

  before = os.getcwd()
  os.chdir(ROOT)
  try:
    made = core.run_setup('setup.py', stop_after='init')
    build = made.get_command_obj('build_py')
    build.ensure_finalized()
    found = {
      f'{package.replace(".", "/")}/{module}.py': file
      for package, module, file in build.find_all_modules()
    }
    for package, source, _, names in build.data_files:
      for name in names:
        found[f'{package.replace(".", "/")}/{name}'] = f'{source}/{name}'
    return made, found
  finally:
    os.chdir(before)


class ShippedTest(parameterized.TestCase):
  def test_a_wheel_carries_them_under_its_own_name(self):
    made, found = packaged()
    self.assertEqual(
      {p.partition('.')[0] for p in made.packages}, {'jaxopt_compress'}
    )
    for name in shipped.names():
      self.assertEqual(
        found[f'jaxopt_compress/configs/{name}.py'], f'configs/{name}.py'
      )
    for file in ('command/starts/images.py', 'kernels/cpu/source/job.h'):
      self.assertIn(f'jaxopt_compress/{file}', found)
    self.assertEqual(
      made.entry_points['console_scripts'],
      ['jaxopt-compress = jaxopt_compress.command.console:main'],
    )

  def test_in_a_clone(self):
    self.assertEqual(shipped.folder(), ROOT / 'configs')
    files = {p.stem for p in (ROOT / 'configs').glob('*.py')}
    self.assertEqual(shipped.names(), sorted(files))

  def test_path(self):
    with tempfile.NamedTemporaryFile(suffix='.py') as f:
      self.assertEqual(shipped.path(f'{f.name}:a:b'), f'{f.name}:a:b')
    digits = str(ROOT / 'configs/digits.py')
    self.assertEqual(shipped.path('digits'), digits)
    self.assertEqual(shipped.path('digits:runlocal'), f'{digits}:runlocal')

  @parameterized.parameters(
    (
      'digit',
      "no config 'digit'. Did you mean 'digits'? Shipped are born_again,",
    ),
    ('digits.py', "no config 'digits.py'. Did you mean 'digits'?"),
    ('configs/digit.py', "'configs/digit.py'. Did you mean 'digits'?"),
    ('mine', "no config 'mine'. Did you mean 'mine.py'?"),
    ('folder/min.py', "Did you mean 'folder/mine.py'?"),
    ('/nowhere/at/all.py', "'/nowhere/at/all.py'. Shipped are"),
    ('', "There is no config ''. Shipped are"),
  )
  def test_mistakes(self, word, message):
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
      os.chdir(folder)
      try:
        pathlib.Path('mine.py').touch()
        pathlib.Path('folder').mkdir()
        pathlib.Path('folder/mine.py').touch()
        with self.assertRaisesRegex(ValueError, 'jaxopt-compress init') as e:
          shipped.path(word)
      finally:
        os.chdir(before)
    self.assertIn(message, str(e.exception))
