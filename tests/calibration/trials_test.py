"""Repairs that help are kept, and the error of outputs is that of numpy."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.calibration import trials

_NAN = float('nan')


class KeepTest(parameterized.TestCase):
  # What is kept of repairs a, b and c, for the errors of each choice of them.
  @parameterized.named_parameters(
    ('all help', {'': 8, 'abc': 1, 'bc': 2, 'ac': 2, 'ab': 2}, 'abc'),
    ('none helps', {'': 1, 'abc': 8, 'a': 2, 'b': 2, 'c': 1}, ''),
    ('one harms a little', {'': 8, 'abc': 4, 'bc': 5, 'ac': 3, 'a': 4}, 'ac'),
    ('one harms much', {'': 5, 'abc': 9, 'a': 4, 'ab': 8, 'ac': 3}, 'ac'),
    ('only together', {'': 8, 'abc': 1, 'bc': 9, 'ac': 9, 'ab': 9}, 'abc'),
    ('one does nothing', {'': 8, 'abc': 4, 'bc': 4, 'c': 5, 'b': 5}, 'bc'),
    ('one overflows', {'': 5, 'abc': _NAN, 'a': 4, 'ab': _NAN, 'ac': 6}, 'a'),
    ('without one', {'': 9, 'abc': 4, 'bc': _NAN, 'ac': 5, 'ab': 5}, 'abc'),
  )
  def test_keeps(self, errors, want):
    asked = []

    def error(names):
      asked.append(names)
      return errors[names]

    kept, found = trials.keep(''.join, 'abc', error)
    self.assertEqual(kept, want)
    self.assertEqual(''.join(n for n in 'abc' if found[n].applied), want)
    self.assertLen(asked, 5)

  def test_nothing_to_judge_by(self):
    with self.assertRaisesRegex(ValueError, 'not finite before any repair'):
      trials.keep(''.join, 'ab', lambda names: _NAN)


class OutputErrorTest(absltest.TestCase):
  def test_against_numpy(self):
    def apply(p, x, y):
      return {'sum': x @ p + y, 'first': x, 'class': jnp.argmax(x, -1)}

    rng = np.random.default_rng(0)
    x, y, w, v = rng.normal(size=(4, 3, 3)).astype(np.float32)
    batches = [(x, y), {'x': y, 'y': x}]
    error = jc.calibration.output_error(apply, w, batches)
    total = sum(
      np.square(np.stack([a @ w + b, a])).sum() for a, b in ((x, y), (y, x))
    )
    apart = sum(np.square(a @ (v - w)).sum() for a in (x, y))
    self.assertAlmostEqual(error(v), apart / total, places=5)
    self.assertEqual(error(w), 0)

  def test_nothing_to_compare(self):
    for f, batches in (
      (lambda p, x: x, []),
      (lambda p, x: x, [jnp.ones((0, 3))]),
      (lambda p, x: x > 0, [jnp.ones(3)]),
    ):
      with self.assertRaisesRegex(ValueError, 'nothing to compare'):
        jc.calibration.output_error(f, {}, batches)


if __name__ == '__main__':
  absltest.main()
