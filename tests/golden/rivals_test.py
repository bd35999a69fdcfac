"""What torchao and compressed-tensors make of the same numbers.

`record_rivals.py` wrote rivals.npz with torch 2.13.0, torchao 0.18.0 and
compressed-tensors 0.20.0. Once, on [128, 2048] of the same kind of numbers, 262,144
at ten magnitudes from 1e-6 to 1e3, what differed was:

                                     scales          codes
    torchao
      MX e4m3, e5m2, e2m3, e3m2,
      e2m1; floor, rceil, even       0 of 8,192      0         each of 15
      NVFP4, at 1, 0.02, 0.001       0 of 16,384     0         each of 3
      NVFP4, ten magnitudes          8,409           37,512    (a)
      NF4, at 0.02                   -               35        (b)
      the same, double quantisation  0 of 4,096      644       (b), (c)
    compressed-tensors
      MXFP8, MXFP6, MXFP4            0 of 8,192      0         each
      NVFP4, at 0.02                 0 of 16,384     0
      int4 g128 / int3 g128          to the last bit 658 / 591 (d)
      int8 channel                   to the last bit 49        (d)
      int4 g128 asym / int8 asym     to the last bit 0 / 2     zero points: 0
      fp8 channel / tensor           to the last bit 0

(a) torchao keeps block scales above 2^-6, the smallest normal e4m3; here they go
down to 2^-9, so that rows 1e5 times smaller than the largest are not lost as early.
(b) torchao writes the table of NF4 with four digits: all 35 lie between the middles
of the two tables.
(c) torchao rounds to codes under the exact scale; here under the one that is stored,
so that each code is the nearest in the end: relative RMS 0.09178, torchao's 0.09179.
(d) The largest entry of a group, where it is negative, is half way between the two
lowest numbers by construction (scale = absmax / 7.5), and the last bit of the scale
decides; all but one of these. The error is the same.
"""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
import record_rivals

import jaxopt_compress as jc

RIVALS = np.load(pathlib.Path(__file__).with_name('rivals.npz'))
LEVELS = record_rivals.matrix()


def quantized(x, spec):
  """A leaf of a weight [n_in, n_out], from [n_out, n_in]."""
  return jc.quantize({'kernel': jnp.asarray(x.T)}, [(r'kernel', spec)])[
    'kernel'
  ]


def rows(part):
  """[n_out, n_in], as the rivals have it; float8 as bits."""
  part = np.asarray(part).T
  return part.view(np.uint8) if part.dtype.itemsize == 1 else part


def nibbles(payload, low_first=True):
  """Two codes a byte to one."""
  pair = [payload & 15, payload >> 4]
  return np.stack(pair if low_first else pair[::-1], -1)


class TorchaoTest(parameterized.TestCase):
  @parameterized.product(format=record_rivals.FLOATS, rule=record_rivals.RULES)
  def test_microscaling(self, format, rule):
    spec = jc.schemes.Spec(format, 'group', 32, scale='e8m0', rule=rule)
    q = quantized(LEVELS, spec)
    scales = dict(
      zip(record_rivals.RULES, RIVALS[f'mx_{format}.scale'], strict=True)
    )
    np.testing.assert_array_equal(rows(q.scale), scales[rule])
    if rule == 'floor':
      codes = RIVALS[f'mx_{format}.codes']
      codes = nibbles(codes) if format == 'e2m1' else codes
      np.testing.assert_array_equal(rows(q.codes), codes.reshape(10, 256))

  def test_nvfp4(self):
    x = record_rivals.matrix(levels=False)
    q = quantized(x, jc.NVFP4.weight)
    np.testing.assert_array_equal(rows(q.scale), RIVALS['nvfp4.scale'])
    np.testing.assert_allclose(
      q.global_scale.ravel()[0], RIVALS['nvfp4.global'], rtol=2e-7
    )
    codes = nibbles(RIVALS['nvfp4.codes']).reshape(10, 256)
    np.testing.assert_array_equal(rows(q.codes), codes)

  def test_nf4_codes(self):
    """They differ only between the middles of the two tables."""
    x = record_rivals.matrix(64, levels=False)
    q = quantized(x, jc.schemes.Spec('nf4', 'group', 64))
    ours = rows(q.codes)
    theirs = nibbles(RIVALS['nf4.codes'], low_first=False).reshape(ours.shape)
    middles = [
      (t[1:] + t[:-1]) / 2
      for t in (np.array(q.numbers_format.table), RIVALS['nf4.table'])
    ]
    scaled = x / np.asarray(q.scale).T.repeat(64, -1)
    at = ours != theirs
    self.assertLess(at.sum(), 10)
    lower = np.minimum(ours, theirs)
    for value, code in zip(scaled[at], lower[at], strict=True):
      low, high = sorted(m[code] for m in middles)
      self.assertBetween(value, low - 1e-6, high + 1e-6)

  def test_nf4_double_quantisation(self):
    x = record_rivals.matrix(64, levels=False)
    q = quantized(x, jc.schemes.NF4.weight)
    scale = RIVALS['nf4.scale'].reshape(64, 4)
    np.testing.assert_array_equal(rows(q.scale).view(np.int8), scale)
    np.testing.assert_allclose(
      q.global_scale.ravel(), 1 / RIVALS['nf4.factor'], rtol=1e-6
    )
    np.testing.assert_allclose(
      q.global_offset.ravel()[0], RIVALS['nf4.mean'], rtol=1e-6
    )
    scale = scale.reshape(-1) / RIVALS['nf4.factor'] + RIVALS['nf4.mean']
    theirs = nibbles(RIVALS['nf4.codes'], low_first=False).reshape(-1, 64)
    theirs = RIVALS['nf4.table'][theirs] * scale[:, None]
    error = lambda y: np.sqrt(((y.reshape(x.shape) - x) ** 2).mean())
    ours = np.asarray(q.materialize()).T
    self.assertLess(error(ours), error(theirs))
    self.assertGreater(error(ours), 0.999 * error(theirs))


class CompressedTensorsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('mxfp8', 'e4m3'), ('mxfp6', 'e2m3'), ('mxfp4', 'e2m1')
  )
  def test_its_rule_for_powers_of_two(self, name, format):
    spec = jc.schemes.Spec(
      format, 'group', 32, scale='e8m0', rule='compressed-tensors'
    )
    scale = quantized(LEVELS, spec).scale.astype(jnp.float32)
    np.testing.assert_array_equal(scale.T, RIVALS[f'{name}.scale'])

  @parameterized.named_parameters(
    ('int4', 'int4', jc.schemes.Spec('int4', 'group', 128)),
    ('int4_asym', 'int4_asym', jc.schemes.Spec('int4', 'group', 128, False)),
    ('int8', 'int8', jc.schemes.Spec('int8')),
    ('int8_asym', 'int8_asym', jc.schemes.Spec('int8', symmetric=False)),
    ('fp8', 'fp8', jc.schemes.Spec('e4m3')),
  )
  def test_numbers(self, name, spec):
    q = quantized(LEVELS, spec)
    scale = np.asarray(q.scale).T
    np.testing.assert_allclose(
      scale, RIVALS[f'{name}.scale'].reshape(scale.shape), rtol=2e-7
    )
    if not spec.symmetric:
      zero = RIVALS[f'{name}.zero'].reshape(scale.shape)
      np.testing.assert_array_equal(q.zero.T, zero)
    theirs = RIVALS[f'{name}.numbers']
    if not spec.numbers.integer:
      np.testing.assert_array_equal(rows(q.codes), theirs)
      return
    ours, theirs = np.asarray(q.numbers).T, theirs.view(np.int8)
    at = ours != theirs
    self.assertFalse(at.any() and not spec.symmetric)
    # Half way between the two lowest numbers, where absmax / 7.5 puts it.
    groups = np.abs(LEVELS).reshape(*scale.shape, -1)
    largest = (groups == groups.max(-1, keepdims=True)).reshape(at.shape)
    self.assertTrue(largest[at].all())
    lowest = int(spec.numbers.lowest)
    self.assertContainsSubset({*ours[at], *theirs[at]}, {lowest, lowest + 1})


if __name__ == '__main__':
  absltest.main()
