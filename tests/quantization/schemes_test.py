"""Schemes and presets by name and in words."""

from absl.testing import absltest
from absl.testing import parameterized

import jaxopt_compress as jc
from jaxopt_compress.quantization import schemes


class SchemeTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('act', dict(act=8), 'act=8; give a jc.schemes.Spec'),
    ('no weight', dict(weight=None), 'weight=None'),
    (
      'static weight',
      dict(weight=jc.schemes.Spec('int8', 'tensor', static=True)),
      'for act',
    ),
    (
      'stochastic activations',
      dict(grad='e5m2', act='int8'),
      'integers with integers',
    ),
  )
  def test_refused_schemes(self, options, says):
    with self.assertRaisesRegex(ValueError, says):
      jc.Scheme(**options)

  def test_words(self):
    got = schemes.scheme('int4 g128 asym bfloat16 mse, int8 tensor')
    self.assertEqual(
      got,
      jc.Scheme(
        jc.schemes.Spec(
          'int4', 'group', 128, symmetric=False, scale='bfloat16', range='mse'
        ),
        act=jc.schemes.Spec('int8', 'tensor'),
      ),
    )
    self.assertEqual(schemes.scheme('int8, int8 asym'), jc.W8A8)
    for words, says in (
      ('int4 g', "a word of 'int4 g' is 'g'"),
      ('int4 asymm', "Did you mean 'asym'"),
      ('int8, int8, int8, int8', '4 parts'),
      ('', 'is no scheme'),
    ):
      with self.assertRaisesRegex(ValueError, says):
        schemes.scheme(words)

  def test_by_name(self):
    self.assertIs(schemes.scheme('W4A16'), jc.W4A16)
    self.assertIs(schemes.scheme('W8A8 '), jc.W8A8)
    self.assertIsNone(schemes.scheme(None))
    with self.assertRaisesRegex(ValueError, "Did you mean 'W8A16'"):
      schemes.scheme('W8A61')
    with self.assertRaisesRegex(ValueError, 'is no scheme'):
      schemes.scheme(['W8A8'])

  @parameterized.parameters(
    ('w8a8', 'W8A8'),
    ('w4a16', 'W4A16'),
    ('fp8', 'FP8'),
    ('fp4', 'NVFP4|MXFP4'),
    ('INT4 g32', 'int4'),
    ('itn8 g32, int8', 'int8'),
    ('int16', 'int'),
    ('w8a8, int8', 'W8A8'),
  )
  def test_guess(self, words, want):
    with self.assertRaisesRegex(ValueError, f"Did you mean '({want})"):
      schemes.scheme(words)

  @parameterized.parameters(
    ('W4A16 g32', 'int4 g128 bfloat16'),
    ('W8A8, int8', 'int8 channel, int8 token asym'),
    ('MXFP4 floor', 'e2m1 g32 mx even, e2m1 g32 mx even'),
  )
  def test_presets_stand_alone(self, words, its_words):
    with self.assertRaisesRegex(
      ValueError, f"which stand alone.*'{its_words}'"
    ):
      schemes.scheme(words)
    preset = schemes.PRESETS[words.replace(',', ' ').split()[0]]
    self.assertEqual(schemes.scheme(its_words), preset)

  @parameterized.parameters('int8,', 'int8, , int8')
  def test_nothing_beside_a_comma(self, words):
    with self.assertRaisesRegex(ValueError, 'nothing before or after a comma'):
      schemes.scheme(words)


if __name__ == '__main__':
  absltest.main()
