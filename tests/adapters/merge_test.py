"""Adapters that are merged: dense, rounded again, and how far off."""

from absl.testing import absltest
from absl.testing import parameterized
import adapting
import in_out
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.quantization import qarray


class MergeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    leaf, self.dense = adapting.leaf((8, 6), (-2,))
    self.tree = {'w': leaf, 'bias': jnp.ones(6)}

  def test_dense(self):
    merged, errors = jc.adapters.merge_lora(self.tree)
    self.assertFalse(jc.is_compressed(merged['w']))
    adapting.close(merged['w'], self.dense)
    self.assertEqual(list(errors), ['w'])
    self.assertEqual(float(errors['w'].rounding), 0)
    base = np.asarray(self.tree['w'].base.materialize())
    norm = np.linalg.norm
    np.testing.assert_allclose(
      errors['w'].update, norm(self.dense - base) / norm(self.dense), rtol=1e-5
    )

  def test_rounded_again(self):
    rules = [('w', jc.W8A16), ('.*', None)]
    merged, errors = jc.adapters.merge_lora(self.tree, rules, in_out.IN_OUT)
    self.assertIsInstance(merged['w'], qarray.QArray)
    again = np.asarray(merged['w'].materialize())
    norm = np.linalg.norm
    want = norm(again - self.dense) / norm(self.dense)
    self.assertBetween(want, 1e-4, 1e-2)
    np.testing.assert_allclose(errors['w'].rounding, want, rtol=1e-3)

  def test_nothing_to_merge(self):
    with self.assertRaisesRegex(ValueError, 'No leaf.*has an adapter'):
      jc.adapters.merge_lora({'w': jnp.ones((8, 6))})

  def test_freeze_keeps_the_adapters(self):
    frozen = jc.freeze(self.tree)['w']
    self.assertIsInstance(frozen, jc.adapters.LoRA)
    np.testing.assert_array_equal(
      frozen.materialize(), self.tree['w'].materialize()
    )


if __name__ == '__main__':
  absltest.main()
