"""What a stage is served as: packed, or as it is and why."""

from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress import kernels
from jaxopt_compress.kernels.cpu import native
from jaxopt_compress.train import serving


def _apply(params, x):
  return x @ params['w']


def _scale(params, variables, x):
  return params * x


class ServedTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    if not native.available():
      self.skipTest('the kernels were not built')
    self.params = {'w': jax.random.normal(jax.random.key(0), (64, 32))}
    self.x = jnp.ones((2, 64))
    self.uses = jc.uses(_apply)(self.params, self.x)

  def test_packed(self):
    q = jc.quantize(self.params, [('w', 'W8A8')], self.uses)
    served, said = serving.served(q, self.uses)
    self.assertIsInstance(served['w'], kernels.PackedArray)
    self.assertStartsWith(said, f'1 of 1 leaves, on {native.paths()[0]}; ')
    self.assertIn(f'{jc.nbytes(served):,} bytes as laid out', said)

  def test_nothing_is_compressed(self):
    served, said = serving.served(self.params, self.uses)
    self.assertIs(served, self.params)
    self.assertEqual(said, '')

  def test_nothing_can_be_packed(self):
    q = jc.quantize(self.params, [('w', 'e5m2')], self.uses)
    served, said = serving.served(q, self.uses)
    self.assertIs(served, q)
    self.assertStartsWith(said, 'NOT used; by XLA: w: e5m2 has no kernel')

  def test_other_mistakes_are_raised(self):
    mistake = ValueError('Nothing to pack: said by somebody else.')
    with mock.patch.object(kernels, 'pack', side_effect=mistake):
      with self.assertRaisesRegex(ValueError, 'somebody else'):
        serving.served(self.params, self.uses)


class DifferenceTest(absltest.TestCase):
  def test_says_how_far(self):
    said = serving.difference(_scale, 2.0, 2.25, {}, jnp.ones(3))
    self.assertEqual(said, 'outputs differ by at most 0.25 of 2')

  def test_too_far(self):
    for packed in (3.0, float('nan')):
      with self.assertRaisesRegex(RuntimeError, 'compute something else'):
        serving.difference(_scale, 2.0, packed, {}, jnp.ones(3))


if __name__ == '__main__':
  absltest.main()
