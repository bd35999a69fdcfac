"""Tests of the names of the top level: those of this release, and of the one before."""

import functools
import inspect
import warnings

from absl.testing import absltest
from absl.testing import parameterized

import jaxopt_compress as jc

# What everybody writes. The rest is one level down.
VERBS = """
  lift materialize explain uses hoist rules_for observe features quantize
  fake_quantize calibrate sensitivity
  prune sparsify structure importance select shrink grow widen
  chain freeze cast nbytes pack unpack save load
""".split()
NOUNS = """
  CompressedArray QArray PackedArray is_compressed Scheme Sparsity Compression Info
  Budget Plan W8A8 W8A16 W4A16 W4A8 FP8 NVFP4
""".split()
MODULES = """
  adapters analysis calibration core distillation export kernels modules parallel pruning
  quantization rules schemes statistics methods
""".split()


class NamesTest(parameterized.TestCase):
  def test_the_top_level(self):
    self.assertEqual(jc.__all__, sorted([*VERBS, *NOUNS, *MODULES]))
    self.assertEqual(dir(jc), jc.__all__)
    for name in MODULES:
      self.assertTrue(inspect.ismodule(getattr(jc, name)), name)
    for name in VERBS:
      self.assertTrue(inspect.isfunction(getattr(jc, name)), name)

  def test_nothing_else_is_public(self):
    # Rooms that somebody imported are there as well.
    rooms = {'command', 'data', 'disk', 'models', 'report', 'train'}
    public = {name for name in vars(jc) if not name.startswith('_')}
    self.assertEqual(public - rooms, set(jc.__all__))

  @parameterized.parameters(*jc._MOVED.items())
  def test_old_names_say_the_new_one(self, old, new):
    self.assertNotIn(old, jc.__all__)
    with self.assertWarnsRegex(DeprecationWarning, rf'jc\.{old} is jc\.{new} '):
      found = getattr(jc, old)
    with warnings.catch_warnings(action='error'):
      want = functools.reduce(getattr, new.split('.'), jc)
    self.assertIs(found, want)
    self.assertFalse(inspect.ismodule(found))
    self.assertIn(found.__name__ if callable(found) else old, (old, new))

  def test_a_typo_is_guessed(self):
    with self.assertRaisesRegex(AttributeError, "mean 'quantize'"):
      _ = jc.quantise
    with self.assertRaisesRegex(AttributeError, "mean 'sum_squares'"):
      _ = jc.sum_square
    self.assertFalse(hasattr(jc, 'train_step'))


if __name__ == '__main__':
  absltest.main()
