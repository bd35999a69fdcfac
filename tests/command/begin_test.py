"""What `init` writes: files that are whole, never another's, and run."""

import contextlib
import importlib.util
import os
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import parameterized
import numpy as np

from jaxopt_compress.command import begin
from jaxopt_compress.command import shipped
from jaxopt_compress.train import loop


def _images(folder):
  """Images of two classes, as cameras and scanners leave them: of any size and kind."""
  from PIL import Image

  for i in range(24):
    path = folder / ('cat', 'dog')[i % 2] / f'{i}.{("png", "jpg")[i % 3 == 0]}'
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (8 + i, 40 - i, *[3] * (i % 4 > 0))
    Image.fromarray(np.full(shape, 9 * i, np.uint8)).save(path)


def _config(file, arg):
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


class BeginTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.enterContext(contextlib.chdir(self.folder))

  @parameterized.parameters(*begin.kinds())
  def test_what_it_writes_passes_a_dry_run(self, kind):
    _images(pathlib.Path('my_images'))
    said = begin.begin([kind, 'mine.py'])
    self.assertIn('--config=mine.py', said)
    file = pathlib.Path('mine.py')
    text = file.read_text()
    self.assertIn('--config=mine.py --workdir', text)
    self.assertNotIn(f'{kind}.py', text)
    # Columns of 80 are read in any window.
    self.assertLessEqual(max(map(len, text.splitlines())), 88)
    # As the command does, so that a config finds what it defines.
    self.enterContext(mock.patch.object(sys, 'path', [self.folder, *sys.path]))
    self.addCleanup(sys.modules.pop, 'mine', None)
    config = _config(file, 'runlocal')
    # What a stranger copies chooses its step by neither the last one nor the test.
    self.assertIn(config.data.validation, (0.1, 'validation'))
    trained = [s for s in config.stage.values() if s.get('steps')]
    self.assertEqual({s.keep for s in trained}, {'best'})
    self.assertEqual(_config(file, '').stage.teacher.keep, 'best')
    loop.run(config, os.path.join(self.folder, 'work'), dry_run=True)
    self.assertFalse(os.path.exists('work'))

  def test_a_network_of_ones_own_has_no_widths(self):
    """What it is asked for is changed by :runlocal no further than it can be."""
    path = pathlib.Path(self.folder) / 'mine.py'
    text = begin.begin(['images'])
    for n, depth in (((64, 128), 2), ((32, 64), 1)):
      words = f'dict(widths={n}, depths={depth}, **sizes)'
      self.assertIn(words, text)
      text = text.replace(words, "dict(name='nets:MyNet')")
    path.write_text(text)
    models = _config(path, 'runlocal').models
    self.assertNotIn('widths', models.teacher)
    self.assertNotIn('widths', models.student)

  def test_prints(self):
    self.assertEqual(begin.begin([]), begin.begin(['images']))
    self.assertIn('TRAIN, TEST = ', begin.begin([]))
    self.assertIn('Claim: a student', begin.begin(['digits']))
    self.assertEqual(os.listdir(), [])

  @parameterized.parameters(*shipped.names())
  def test_its_command_needs_no_clone(self, name):
    begin.begin([name, 'mine.py'])
    for config, said in (
      (name, begin.begin([name])),
      ('mine.py', pathlib.Path('mine.py').read_text()),
    ):
      self.assertIn(f'Command: jaxopt-compress --config={config} --work', said)
      self.assertNotIn('launch.main', said)
      self.assertNotIn('=configs/', said)

  def test_a_file_called_like_a_kind_is_of_it(self):
    self.assertIn("text.py is written, from 'text'", begin.begin(['text.py']))
    self.assertIn("from 'images'", begin.begin(['images', 'arrays.py']))
    self.assertIn("from 'images'", begin.begin(['other.py']))

  def test_never_overwrites(self):
    pathlib.Path('mine.py').write_text('mine')
    with self.assertRaisesRegex(ValueError, 'mine.py is there, and stays'):
      begin.begin(['mine.py'])
    self.assertEqual(pathlib.Path('mine.py').read_text(), 'mine')

  @parameterized.parameters(
    (['imagse'], "'imagse' is no kind of config. Did you mean 'images'"),
    (['mine'], 'The name of a file to write ends in .py'),
    (['images', 'text'], 'init has the kinds images and text; one'),
    (['a.py', 'b.py'], 'init has the files a.py and b.py; one'),
  )
  def test_mistakes(self, words, message):
    with self.assertRaisesRegex(ValueError, message):
      begin.begin(words)
    self.assertEqual(os.listdir(), [])
