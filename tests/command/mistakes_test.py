"""Mistakes of a command line, each in one line that names it."""

import contextlib
import errno
import io
import pathlib
import sys
import tempfile

from absl import flags
from absl.testing import parameterized
from ml_collections import config_flags
import pytest

from jaxopt_compress.command import mistakes

GOOD = """
import ml_collections

def get_config(arg=''):
  assert arg in ('', 'small'), 'small or nothing'
  return ml_collections.ConfigDict(dict(seed=0, stage=dict(a=dict(steps=3))))
"""


# ml_collections loads files so.
@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
class MistakesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.file = pathlib.Path(directory) / 'good.py'

  def explained(self, *argv, config=GOOD, arg=''):
    """What is said of a command line, the file's name left out."""
    self.file.write_text(config)
    # A config is a fresh module in a process of its own.
    sys.modules.pop('config_config', None)
    argv = ['main', f'--config={self.file}{arg}', *argv]
    values = flags.FlagValues()
    found = config_flags.DEFINE_config_file(
      'config', flag_values=values, sys_argv=argv
    )
    try:
      values(argv)
      hasattr(found.value, 'keys')
    except Exception as e:
      text = mistakes.explain(e, argv)
      self.assertNotIn('\n', text)
      return text.replace(str(self.file), 'FILE')
    raise AssertionError('It was taken.')

  @parameterized.named_parameters(
    (
      'stage',
      '--config.stage.c.steps=3',
      "config.stage has no 'c'. It has a. Wh",
    ),
    (
      'option',
      '--config.stage.a.stpes=3',
      "config.stage.a has no 'stpes'. Did you mean 'steps'? It has steps.",
    ),
    (
      'top',
      '--config.sed=3',
      "config has no 'sed'. Did you mean 'seed'? It has seed, stage.",
    ),
    ('deep', '--config.seed.x=3', "config.seed has no 'x'. It has no keys."),
    ('type', '--config.seed=three', '--config.seed=three: invalid literal for'),
    ('flag', '--confg.seed=3', "Unknown command line flag 'confg.seed'"),
  )
  def test_flags(self, flag, message):
    self.assertIn(message, self.explained(flag))

  @parameterized.named_parameters(
    ('no_function', 'x = 1', 'FILE has no get_config(arg) to call: module'),
    (
      'no_argument',
      'def get_config():\n  return {}',
      'FILE has no get_config(arg) to call: get_config() takes 0 positional',
    ),
    ('syntax', '\n\ndef get_config(:', 'FILE, line 3: SyntaxError: invalid sy'),
    (
      'import',
      '\nimport nowhere_at_all',
      'FILE, line 2: ModuleNotFoundError: No module named',
    ),
    (
      'raises',
      'def get_config(arg):\n  return 1 / 0',
      'FILE, line 2: ZeroDivisionError: division by zero',
    ),
    (
      'value',
      'def get_config(arg):\n  return int(arg)',
      "FILE, line 2: ValueError: invalid literal for int() with base 10: 'x'",
    ),
    (
      'key',
      'def get_config(arg):\n  return dict(a=1)[arg]',
      'FILE, line 2: KeyError: x',
    ),
    (
      'file',
      'def get_config(arg):\n  return open("/nowhere/at/all")',
      'FILE, line 2: FileNotFoundError: [Errno 2] No such file',
    ),
  )
  def test_configs(self, config, message):
    self.assertStartsWith(self.explained(config=config, arg=':x'), message)

  def test_argument(self):
    self.assertEqual(
      self.explained(arg=':smal'),
      'FILE, line 5: AssertionError: small or nothing',
    )

  def test_said(self):
    self.assertEqual(mistakes.said(ValueError('a\n  b')), 'a b')
    self.assertEqual(mistakes.said(KeyError('a')), 'a')
    self.assertEqual(mistakes.said(MemoryError()), 'MemoryError')

  @parameterized.parameters(
    ('PIL', "No PIL. Run pip install 'jaxopt_compress[examples]'."),
    ('grain', "No grain. Run pip install 'jaxopt_compress[examples]'."),
    ('sklearn.datasets', "No sklearn.datasets. Run pip install 'jaxopt"),
    ('tensorboardX', "No tensorboardX. Run pip install 'jaxopt_compress[tens"),
    ('my_data', 'No my_data'),
  )
  def test_missing_modules(self, name, said):
    error = ModuleNotFoundError(f'No {name}', name=name)
    self.assertStartsWith(mistakes.said(error), said)

  def test_leave(self):
    error = io.StringIO()
    with contextlib.redirect_stderr(error), self.assertRaises(SystemExit) as e:
      mistakes.leave('What.', ValueError('why'))
    self.assertEqual(e.exception.code, 2)
    self.assertEqual(error.getvalue(), 'ValueError: why\nError: What.\n')

  @parameterized.parameters(
    OSError(errno.ENOSPC, 'No space left on device'),
    OSError(errno.EDQUOT, 'Disk quota exceeded'),
    OSError(errno.EFBIG, 'File too large'),
    ValueError("Failed: No space left on device [os_error_code='28']"),
    RuntimeError('I/O error: No space left on device (os error 28)'),
  )
  def test_full_disks(self, error):
    """However the library that wrote has put it."""
    work = self.file.parent / 'not' / 'there'
    text = mistakes.of_the_machine(error, str(work))
    self.assertRegex(
      text,
      rf'^(No space|Disk quota|File too).*: {work} has [\d,]+ bytes left. What',
    )
    try:
      try:
        raise error
      except Exception as e:
        raise RuntimeError('It could not be saved.') from e
    except RuntimeError as e:
      self.assertEqual(mistakes.of_the_machine(e, str(work))[:40], text[:40])

  def test_other_limits(self):
    memory = RuntimeError('RESOURCE_EXHAUSTED: Out of memory, 9 bytes.')
    text = mistakes.of_the_machine(memory, '/tmp')
    self.assertStartsWith(
      text, 'RESOURCE_EXHAUSTED: Out of memory, 9 bytes. Ch'
    )
    backend = RuntimeError("Unable to initialize backend 'tqu'.")
    text = mistakes.of_the_machine(backend, '/tmp')
    self.assertEndsWith(text, "'tqu'. Set JAX_PLATFORMS to one that is there.")
    self.assertEqual(mistakes.of_the_machine(ValueError('x'), '/tmp'), '')
