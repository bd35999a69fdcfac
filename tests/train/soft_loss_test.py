"""The loss between student and teacher, in words."""

from absl.testing import absltest

from jaxopt_compress.distillation import losses
from jaxopt_compress.train import soft_loss


class SoftLossTest(absltest.TestCase):
  def test_names(self):
    names = soft_loss.names()
    for name in ('kl', 'reverse_kl', 'mse'):
      self.assertIn(name, names)
    for name in ('agreement', 'distill', 'cross_entropy', 'mean'):
      self.assertNotIn(name, names)

  def test_read(self):
    soft = soft_loss.read('loss', 'mse')
    self.assertIs(soft.function, losses.mse)
    self.assertFalse(soft.takes('temperature'))
    self.assertEqual(soft.at(0, 5), {})
