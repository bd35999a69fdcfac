"""SIGTERM and Ctrl-C are noticed once, and the handlers of before come back."""

import gc
import os
import signal
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from jaxopt_compress.train import preemption

SIGNALS = signal.SIGTERM, signal.SIGINT


def _handlers():
  return [signal.getsignal(s) for s in SIGNALS]


class WatchTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # The tests themselves may run in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    self.addCleanup(signal.signal, signal.SIGINT, before)

  @parameterized.parameters(*SIGNALS)
  def test_asked(self, signum):
    before = _handlers()
    with preemption.Watch() as watch:
      self.assertFalse(watch.requested())
      os.kill(os.getpid(), signum)
      self.assertTrue(watch.requested())
      # Another one ends the process.
      self.assertEqual(signal.getsignal(signum), signal.SIG_DFL)
    self.assertEqual(_handlers(), before)

  @parameterized.parameters(*SIGNALS)
  def test_nothing_to_save(self, signum):
    def stop(*unused):
      gc.callbacks.remove(stop)
      os.kill(os.getpid(), signum)

    before = _handlers()
    # It does end a process in tests/launch/main_test.py.
    with mock.patch.object(preemption, 'leave') as leave:
      with preemption.Watch(saved=True):
        # Python drops what is raised in such a callback.
        gc.callbacks.append(stop)
        gc.collect()
    leave.assert_called_once_with(
      'Stopped; all stages are saved.', preemption.EXIT_CODE
    )
    self.assertEqual(_handlers(), before)

  def test_what_is_ignored_stays_so(self):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with preemption.Watch() as watch:
      os.kill(os.getpid(), signal.SIGINT)
      self.assertFalse(watch.requested())
      self.assertEqual(signal.getsignal(signal.SIGINT), signal.SIG_IGN)


if __name__ == '__main__':
  absltest.main()
