"""SIGTERM is noticed once, and the handler of before comes back."""

import os
import signal

from absl.testing import absltest
import pytest

from jaxopt_compress.train import preemption


class WatchTest(absltest.TestCase):
  def test_asked(self):
    before = signal.getsignal(signal.SIGTERM)
    with preemption.Watch() as watch:
      self.assertFalse(watch.requested())
      os.kill(os.getpid(), signal.SIGTERM)
      self.assertTrue(watch.requested())
      # Another one ends the process.
      self.assertEqual(signal.getsignal(signal.SIGTERM), signal.SIG_DFL)
    self.assertEqual(signal.getsignal(signal.SIGTERM), before)

  def test_nothing_to_save(self):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(preemption.Preempted) as e:
      with preemption.Watch(saved=True):
        os.kill(os.getpid(), signal.SIGTERM)
    self.assertEqual(e.value.code, preemption.EXIT_CODE)
    self.assertEqual(str(e.value), 'Stopped; all stages are saved.')
    self.assertEqual(signal.getsignal(signal.SIGTERM), before)


if __name__ == '__main__':
  absltest.main()
