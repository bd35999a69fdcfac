"""A report says on what it was made, and by which command."""

import os
import shlex
import sys
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


if __name__ == '__main__':
  absltest.main()
