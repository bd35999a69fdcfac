"""A report says on what it was made, and by which command."""

import os
import shlex
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import jax

from jaxopt_compress.report import provenance


class ProvenanceTest(absltest.TestCase):
  def test_this_process(self):
    found = provenance.environment()
    self.assertEqual(found['jax'], jax.__version__)
    self.assertEqual((found['backend'], found['devices']), ('cpu', 4))
    self.assertBetween(found['cores'], 1, os.cpu_count())

  def test_the_command_as_it_was_typed(self):
    argv = ['/opt/venv/bin/python', '-m', 'launch.main', '--config=a b.py']
    with mock.patch.object(sys, 'orig_argv', argv):
      command = provenance.environment()['command']
    self.assertEqual(command, "python -m launch.main '--config=a b.py'")
    self.assertEqual(shlex.split(command)[1:], argv[1:])

  def test_a_console_script_is_called_by_its_name(self):
    with tempfile.TemporaryDirectory() as folder:
      script = f'{folder}/jaxopt-compress'
      argv = ['/opt/venv/bin/python', script, '--config=digits']
      with open(script, 'w') as f:
        os.fchmod(f.fileno(), 0o755)
      with (
        mock.patch.object(sys, 'orig_argv', argv),
        mock.patch.dict(os.environ, PATH=folder),
      ):
        found = provenance.environment()['command']
      self.assertEqual(found, 'jaxopt-compress --config=digits')
      # Elsewhere on the machine its path is needed.
      with mock.patch.object(sys, 'orig_argv', argv):
        found = provenance.environment()['command']
      self.assertEqual(found, f'python {script} --config=digits')

  def test_how_a_page_is_opened(self):
    said = provenance.opens('/a b/r.html', {'SSH_CONNECTION': '1 2 3 4'})
    self.assertStartsWith(said, 'Report: /a b/r.html (one file: `scp ')
    self.assertIn(":/a b/r.html' .`", said)


if __name__ == '__main__':
  absltest.main()
