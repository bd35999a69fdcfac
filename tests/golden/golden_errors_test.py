"""Errors of every format, granularity and range, against an oracle in numpy.

Two matrices [120, 96]: a layer of a network trained on handwritten digits (64-120-
96-10, 92% of the digits that it had not seen; float16), and draws from a normal.
Groups of 32 and blocks of 16 do not divide 120. Figures are relative root mean
square errors, by the oracle.

A code is right when no number of the format is nearer to x / scale + zero than its
own, but for the last bits of that sum: the library multiplies by reciprocals in
float32, as XLA would anyway, and the oracle divides in float64. So where x / scale
lies half way, the last bit decides; where it lies there exactly, `TiesTest` says.
"""

import functools
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import golden_oracle as oracle
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.quantization import formats
from jaxopt_compress.quantization import spec as spec_lib

_HERE = pathlib.Path(__file__).parent
LAYER = np.load(_HERE / 'digits_layer.npy').astype(np.float32)
NORMAL = np.random.RandomState(0).standard_normal((120, 96)).astype(np.float32)

# Size of a block along the contracted and the free axis, 0 for all.
SIZES = {'tensor': (0, 0), 'channel': (0, 1), 'g32': (32, 1), '16x16': (16, 16)}

# Of the layer and of the normal draws, for each of SIZES.
ERRORS = """
                 tensor         channel        g32            16x16
  binary   sym   .61784 .60570  .61173 .60308  .60539 .59505  .61357 .60449
  binary   asym  .61588 .60578  .60690 .59990  .59108 .58319  .61057 .60272
  ternary  sym   .45628 .43464  .44802 .43124  .43921 .42182  .45101 .43310
  ternary  asym  .45440 .43462  .44426 .43023  .42642 .41473  .44798 .43186
  int2     sym   .83778 .71428  .58088 .54085  .48830 .46589  .62734 .56502
  int2     asym  .98708 .75884  .52328 .49474  .39907 .38953  .59467 .53835
  int3     sym   .41136 .31723  .25250 .23394  .21125 .20163  .27702 .24180
  int3     asym  .38934 .31468  .22449 .21173  .17771 .17131  .25507 .22702
  int4     sym   .19293 .14799  .11835 .10946  .09899 .09375  .12897 .11459
  int4     asym  .18305 .14682  .10481 .09889  .08231 .08056  .11836 .10749
  int5     sym   .09308 .07143  .05717 .05270  .04789 .04529  .06234 .05519
  int5     asym  .08823 .07089  .05042 .04828  .03977 .03844  .05752 .05158
  int6     sym   .04555 .03530  .02834 .02619  .02351 .02261  .03074 .02713
  int6     asym  .04317 .03507  .02508 .02360  .01937 .01899  .02804 .02555
  int7     sym   .02276 .01742  .01394 .01287  .01161 .01116  .01521 .01343
  int7     asym  .02146 .01729  .01233 .01165  .00969 .00951  .01405 .01259
  int8     sym   .01124 .00871  .00697 .00646  .00581 .00555  .00754 .00675
  int8     asym  .01069 .00864  .00620 .00581  .00484 .00468  .00698 .00627
  e4m3     sym   .02656 .02657  .02585 .02552  .02374 .02378  .02594 .02619
  e4m3     asym  .02702 .02669  .02636 .02665  .02313 .02324  .02724 .02625
  e5m2     sym   .05257 .05266  .05057 .05141  .04694 .04825  .05178 .05202
  e5m2     asym  .05408 .05295  .05223 .05217  .04626 .04589  .05351 .05302
  e3m2     sym   .05257 .05266  .05057 .05141  .04694 .04825  .05178 .05202
  e3m2     asym  .05408 .05295  .05223 .05217  .04626 .04589  .05351 .05302
  e2m3     sym   .03084 .02877  .02643 .02645  .02395 .02411  .02707 .02699
  e2m3     asym  .03067 .02859  .02725 .02641  .02306 .02320  .02771 .02698
  e2m1     sym   .13569 .12008  .11069 .10760  .09928 .10077  .11389 .11083
  e2m1     asym  .13196 .11984  .11037 .10879  .09792 .09764  .11454 .11105
  nf4      sym   .13353 .11064  .09771 .09447  .08599 .08663  .10166 .09803
  nf4      asym  .13009 .11062  .09535 .09516  .08353 .08333  .09960 .09741
"""

# Scales that are powers of two, each of 32 entries, for each of RULES.
RULES = ('floor', 'rceil', 'even', 'compressed-tensors')
MX_ERRORS = """
           floor          rceil          even           compressed-tensors
  e4m3     .03008 .02916  .02635 .02665  .02839 .02780  .02635 .02665
  e5m2     .05380 .05367  .05243 .05274  .05243 .05274  .05243 .05274
  e3m2     .05380 .05367  .05243 .05274  .05243 .05274  .05243 .05274
  e2m3     .02830 .02849  .02830 .02848  .02810 .02836  .02810 .02836
  e2m1     .11714 .11508  .12059 .11477  .11400 .11185  .11400 .11185
  int8     .00806 .00821  .00812 .00826  .00810 .00824  .00935 .00886
"""

# Scales of scales: NVFP4, and NF4 with double quantisation.
NESTED = {
  'e2m1 g16 nv': ((16, 1), 'e4m3', (0.09311, 0.09501)),
  'nf4 g64 dq': ((64, 1), 'int8', (0.09256, 0.09073)),
}


def rows(table):
  """(words, pairs) of each line of a table of pairs of figures."""
  for line in table.strip().splitlines()[1:]:
    cells = line.split()
    words = [c for c in cells if not c.startswith('.')]
    figures = [float(c) for c in cells if c.startswith('.')]
    yield words, list(zip(figures[::2], figures[1::2], strict=True))


@functools.partial(jax.jit, static_argnums=1)
def _quantized(w, spec):
  q = jc.quantize({'kernel': w}, [(r'kernel', spec)])['kernel']
  return q, q.numbers, q.materialize()


def scale_and_zero(q, shape):
  """float64, one an entry, from the arrays of a leaf."""

  def wide(part, blocks):
    part = np.asarray(part, np.float64)
    for axis in (-2, -1):
      part = part.repeat(dict(blocks).get(axis, 1), axis)
    return np.broadcast_to(part[: shape[0], : shape[1]], shape)

  scale = wide(q.scale, q.blocks)
  if q.global_scale is not None:
    scale = scale * wide(q.global_scale, q.global_blocks)
  if q.global_offset is not None:
    scale = scale + wide(q.global_offset, ())
  return scale, 0 * scale if q.zero is None else wide(q.zero, q.blocks)


def assert_nearest(numbers, x, grid):
  """No number of the grid is nearer to x, but for the last bits of x."""
  slack = 4e-7 * (np.abs(x) + np.abs(grid).max())
  clipped = np.clip(x, grid[0], grid[-1])
  distance = np.abs(oracle.nearest(x, grid) - clipped)
  excess = np.abs(numbers - clipped) - distance - slack
  assert excess.max() <= 0, (excess.max(), numbers[excess > 0][:5])


class ErrorsTest(parameterized.TestCase):
  def check(self, words, size, storage, rule, errors):
    """Scales, zero points, numbers, meaning and error of both matrices."""
    spec = spec_lib.parse(words)
    grid = oracle.NUMBERS[spec.format]
    how = (spec.format, size, spec.symmetric, storage, rule)
    for w, expected in zip((LAYER, NORMAL), errors, strict=True):
      q, numbers, value = _quantized(jnp.asarray(w), spec)
      numbers = np.asarray(numbers, np.float64)
      w = w.astype(np.float64)
      self.assert_scales(q, w, how)
      scale, zero = scale_and_zero(q, w.shape)
      assert_nearest(numbers, w / scale + zero, grid)
      np.testing.assert_allclose(
        value, (numbers - zero) * scale, rtol=3e-7, atol=1e-7 * scale.max()
      )
      figure = oracle.error(w, oracle.quantized(w, *how))
      self.assertAlmostEqual(figure, expected, delta=6e-6)
      self.assertAlmostEqual(oracle.error(w, value), figure, delta=2e-5)

  def assert_scales(self, q, w, how):
    format, size, symmetric, storage, _ = how
    want, center = oracle.scales(w, *how)
    scale, zero = scale_and_zero(q, w.shape)
    want_all = oracle.spread(want, size, w.shape)
    if storage == 'e8m0':
      np.testing.assert_array_equal(scale, want_all)
    else:
      np.testing.assert_allclose(scale, want_all, rtol=1e-6)
    self.assertEqual(q.scale.dtype.itemsize, 4 if storage == 'float32' else 1)
    if symmetric:
      self.assertIsNone(q.zero)
      return
    exact = oracle.zero_point(center, want, format)
    exact = oracle.spread(exact, size, w.shape)
    self.assertEqual(q.zero.dtype == jnp.int8, oracle.whole_zero(format))
    if oracle.whole_zero(format):
      assert_nearest(zero, exact, oracle.NUMBERS[format])
    else:
      np.testing.assert_allclose(zero, exact, atol=1e-6 * np.abs(exact).max())

  @parameterized.named_parameters(
    (' '.join(words), words, errors) for words, errors in rows(ERRORS)
  )
  def test_every_granularity(self, words, errors):
    format, range_ = words
    for (granularity, size), pair in zip(SIZES.items(), errors, strict=True):
      with self.subTest(granularity):
        asym = ' asym' * (range_ == 'asym')
        words = f'{format} {granularity}{asym}'
        self.check(words, size, 'float32', 'floor', pair)

  @parameterized.named_parameters(
    (words[0], words[0], errors) for words, errors in rows(MX_ERRORS)
  )
  def test_powers_of_two(self, format, errors):
    for rule, pair in zip(RULES, errors, strict=True):
      with self.subTest(rule):
        self.check(f'{format} g32 mx {rule}', (32, 1), 'e8m0', rule, pair)

  @parameterized.parameters(*NESTED)
  def test_scales_of_scales(self, words):
    size, storage, errors = NESTED[words]
    self.check(words, size, storage, 'floor', errors)


class TiesTest(parameterized.TestCase):
  """Where x / scale is exactly half way; powers of two make it so."""

  @parameterized.named_parameters(
    # The even integer; the even mantissa; the lower number of a table.
    ('int8', 'int8', [0.5, 1.5, 2.5, -0.5, -1.5], [0, 2, 2, 0, -2], 64),
    ('int4', 'int4', [0.5, 1.5, 6.5, 7.5, -7.5], [0, 2, 6, 7, -8], 7.5),
    ('int3', 'int3', [0.5, 1.5, 2.5, 3.5, -3.5], [0, 2, 2, 3, -4], 3.5),
    ('e2m1', 'e2m1', [0.25, 0.75, 1.25, 2.5, 5], [0, 1, 1, 2, 4], 6),
    ('e2m3', 'e2m3', [0.0625, 0.1875, 4.25, 4.75], [0, 0.25, 4, 5], 7.5),
    ('e3m2', 'e3m2', [9, 11, 13, -15], [8, 12, 12, -16], 28),
    ('e4m3', 'e4m3', [17, 19, 2**-10, 3 * 2**-10], [16, 20, 0, 2**-8], 448),
    ('e5m2', 'e5m2', [9, 11, 13, -15], [8, 12, 12, -16], 57344),
  )
  def test_half_way(self, format, x, want, largest):
    x = np.resize(np.array([*x, largest], np.float32), 32)
    q, numbers, _ = _quantized(
      jnp.asarray(x)[:, None],
      jc.schemes.Spec(format, 'group', 32, scale='e8m0'),
    )
    self.assertEqual(float(q.scale.astype(jnp.float32)[0, 0]), 1)
    np.testing.assert_array_equal(numbers[: len(want), 0], want)

  def test_past_the_positive_end(self):
    """absmax / 7.5 puts a largest entry of -a half way from -7 to -8.

    The last bit of the scale decides; the error is half a step either way.
    """
    w = NORMAL * np.sign(NORMAL[np.abs(NORMAL).argmax(0), np.arange(96)]) * -1
    _, numbers, _ = _quantized(jnp.asarray(w), jc.schemes.Spec('int4'))
    lowest = np.asarray(numbers)[np.abs(w).argmax(0), np.arange(96)]
    self.assertContainsSubset(set(lowest), {-7, -8})


class CastsTest(parameterized.TestCase):
  """Every float16 and every bfloat16, against ml_dtypes, to the bit."""

  @parameterized.named_parameters(
    ('e4m3', 'e4m3', ml_dtypes.float8_e4m3fn),
    ('e5m2', 'e5m2', ml_dtypes.float8_e5m2),
    ('e3m2', 'e3m2', ml_dtypes.float6_e3m2fn),
    ('e2m3', 'e2m3', ml_dtypes.float6_e2m3fn),
    ('e2m1', 'e2m1', ml_dtypes.float4_e2m1fn),
  )
  def test_casts(self, name, dtype):
    format = formats.FORMATS[name]
    patterns = np.arange(2**16, dtype=np.uint16)
    x = np.concatenate(
      [
        patterns.view(t).astype(np.float32)
        for t in (np.float16, ml_dtypes.bfloat16)
      ]
    )
    # XLA takes subnormal float32 for zero, of the same sign.
    x = x[np.isfinite(x) & ((np.abs(x) > 2.0**-126) | (x == 0))]
    want = np.clip(x, format.lowest, format.highest).astype(dtype)
    codes = np.asarray(jax.jit(format.round)(jnp.asarray(x)))
    np.testing.assert_array_equal(codes.view(np.uint8), want.view(np.uint8))
    numbers = np.asarray(jax.jit(format.numbers)(jnp.asarray(codes)))
    np.testing.assert_array_equal(numbers, want.astype(np.float32))


class RulesTest(parameterized.TestCase):
  """The exponent of a scale around the magnitudes where rules change it."""

  @parameterized.product(
    format=('e4m3', 'e5m2', 'e3m2', 'e2m3', 'e2m1', 'int8'), rule=RULES
  )
  def test_boundaries(self, format, rule):
    largest = oracle.NUMBERS[format][-1]
    at = np.float32([1, 1.25, 1.5, 1.75, 1.875, 1.9375, 1.984375, largest])
    at = np.concatenate([at * np.float32(2.0**k) for k in (-40, -3, 0, 9, 60)])
    near = [np.nextafter(at, np.float32(s)) for s in (0, np.inf)]
    reach = np.concatenate([at, *near])
    w = jnp.asarray(np.tile(reach, (2, 1)))
    q, _, _ = _quantized(
      w, jc.schemes.Spec(format, 'group', 32, scale='e8m0', rule=rule)
    )
    want = [oracle.power_of_two(r, format, rule) for r in reach.astype('f8')]
    np.testing.assert_array_equal(np.asarray(q.scale, np.float64)[0], want)


if __name__ == '__main__':
  absltest.main()
