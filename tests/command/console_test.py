"""What the console script does before anything runs."""

import contextlib
import io
import sys
import tempfile
from unittest import mock

from absl.testing import parameterized

from jaxopt_compress import command
from jaxopt_compress.command import begin
from jaxopt_compress.command import console
from jaxopt_compress.command import shipped


class ConsoleTest(parameterized.TestCase):
  def _says(self, *words):
    """(exit code, stdout, stderr) of a command."""
    code, out, err = 0, io.StringIO(), io.StringIO()
    argv = ['jaxopt-compress', *words]
    with (
      mock.patch.object(sys, 'argv', argv),
      contextlib.redirect_stdout(out),
      contextlib.redirect_stderr(err),
    ):
      try:
        console.main()
      except SystemExit as e:
        code = e.code
    return code, out.getvalue(), err.getvalue()

  @parameterized.parameters('--help', '-h', 'help')
  def test_help(self, word):
    code, out, err = self._says('--config=digits', word)
    self.assertEqual((code, err), (0, ''))
    # One screen, which names whatever there is.
    self.assertLess(len(out.splitlines()), 50)
    self.assertLessEqual(max(map(len, out.splitlines())), 100)
    for name in (*shipped.names(), *begin.kinds()):
      self.assertRegex(out, rf'\b{name}\b')

  def test_nothing(self):
    code, out, err = self._says()
    self.assertEqual((code, out), (2, ''))
    self.assertEqual(err, console.page())

  def test_init(self):
    self.assertEqual(self._says('init', 'text')[1], begin.begin(['text']))
    code, out, err = self._says('init', 'txet')
    self.assertEqual((code, out), (2, ''))
    self.assertIn("Did you mean 'text'?", err)
    with tempfile.TemporaryDirectory() as folder:
      code, _, err = self._says('init', f'{folder}/no/where.py')
    self.assertEqual(code, 2)
    self.assertStartsWith(err, 'Error: [Errno 2] No such file')

  def test_missing_extra(self):
    # As if what the run imports could not be.
    vars(command).pop('run', None)
    with mock.patch.dict(sys.modules, {'jaxopt_compress.command.run': None}):
      code, _, err = self._says('--config=digits', '--workdir=/nowhere')
    self.assertEqual(code, 2)
    self.assertIn('jaxopt_compress.command.run', err)
