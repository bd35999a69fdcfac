"""Bytes to fill in: how many, by what they are replaced, and which are asked for."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxopt_compress.data import masked_text

TEXT = np.random.default_rng(0).integers(97, 123, 5000).astype(np.uint8)
MASK = masked_text.MASK


class MaskedTextTest(parameterized.TestCase):
  @parameterized.parameters(0.15, 0.5)
  def test_how_many_and_by_what(self, rate):
    label = TEXT[np.arange(4096) % len(TEXT)].reshape(16, 256)
    rng = np.random.default_rng(1)
    batch = masked_text.hide(label, TEXT, rng, rate)
    seen, asked = batch['tokens'], batch['mask']
    np.testing.assert_array_equal(batch['label'], label)
    np.testing.assert_array_equal(seen[~asked], label[~asked])
    self.assertAlmostEqual(asked.mean(), rate, delta=0.02)
    shown = asked & (seen != MASK)
    self.assertAlmostEqual((seen == MASK).sum() / asked.sum(), 0.8, delta=0.03)
    # Of the random bytes one in 26 is the one that was there.
    changed = (shown & (seen != label)).sum() / asked.sum()
    self.assertAlmostEqual(changed, 0.1 * 25 / 26, delta=0.03)
    self.assertTrue(np.isin(seen[shown], TEXT).all())

  def test_each_window_has_a_question(self):
    label = np.full((64, 3), 97)
    batch = masked_text.hide(label, TEXT, np.random.default_rng(0), 0.01)
    self.assertTrue(batch['mask'].any(-1).all())

  def test_windows_depend_on_the_step_alone(self):
    def get(seed, step):
      options = dict(batch_size=4, length=16, seed=seed)
      return masked_text.windows(TEXT, **options)[step]

    first, again, later, other = get(0, 3), get(0, 3), get(0, 4), get(1, 3)
    self.assertTrue(first.pop('input_mask').all())
    for name, x in first.items():
      self.assertEqual(x.shape, (4, 16))
      np.testing.assert_array_equal(x, again[name])
      self.assertFalse((x == later[name]).all())
      self.assertFalse((x == other[name]).all())
    whole = TEXT.tobytes()
    for row in first['label']:
      self.assertIn(bytes(row.astype(np.uint8)), whole)

  @parameterized.parameters(48, 50, 16)
  def test_held_out_bytes_are_in_one_window_each(self, n):
    text = TEXT[:n]
    # At this rate everything is asked for.
    batches = masked_text.eval_windows(
      text, batch_size=2, length=16, rate=1 - 1e-12
    )
    self.assertEqual({b['tokens'].shape for b in batches}, {(2, 16)})
    labels = [b['label'][b['mask']] for b in batches]
    np.testing.assert_array_equal(np.concatenate(labels), text)
    for b in batches:
      shown = b['tokens'] == b['label']
      self.assertTrue(shown[~b['mask']].all())

  def test_held_out_text_is_asked_for_the_same(self):
    first, again = (
      masked_text.eval_windows(TEXT, batch_size=8, length=64) for _ in range(2)
    )
    for a, b in zip(first, again, strict=True):
      for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    asked = sum(b['mask'].sum() for b in first)
    self.assertAlmostEqual(asked / len(TEXT), 0.15, delta=0.02)

  def test_errors(self):
    broken = np.append(TEXT, np.uint8(MASK))
    with self.assertRaisesRegex(ValueError, 'byte 255 at 5000'):
      masked_text.windows(broken, batch_size=2, length=8, seed=0)
    with self.assertRaisesRegex(ValueError, 'window has 9'):
      masked_text.eval_windows(TEXT[:8], batch_size=2, length=9)
    with self.assertRaisesRegex(ValueError, r'rate=1\.0'):
      masked_text.windows(TEXT, batch_size=2, length=8, seed=0, rate=1.0)[0]

  def test_the_standard_library(self):
    text = masked_text.load('test', only=r'json/.*|argparse\.py')
    self.assertIn(b'class ArgumentParser', text.tobytes())
    self.assertEqual(masked_text.vocabulary(text), 256)


if __name__ == '__main__':
  absltest.main()
