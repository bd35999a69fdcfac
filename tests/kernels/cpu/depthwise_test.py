"""Convolutions that keep channels apart, on every instruction path, against numpy."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import conv_oracle as oracle
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels.cpu import conv
from jaxopt_compress.kernels.cpu import native

Act = native.Act
PATHS = native.paths()

# (image, window, how often each channel has outputs, and what differs from a window
# that moves by ones)
APART = {
  'one channel': ((2, 8, 8, 1), (3, 3), 1, dict(padding=((1, 1), (1, 1)))),
  'seven': ((1, 7, 5, 7), (2, 3), 1, dict(strides=(2, 1))),
  'five taps': ((2, 6, 7, 16), (5, 5), 1, dict(padding=((2, 2), (2, 2)))),
  'thirty-five': ((1, 4, 5, 35), (3, 3), 1, dict(padding=((0, 1), (1, 0)))),
  'twice': ((2, 5, 4, 20), (4, 2), 2, dict(strides=(1, 2))),
  'thrice': ((1, 5, 4, 3), (1, 4), 3, dict(padding=((0, 0), (3, 0)))),
  'apart': (
    (1, 5, 6, 33),
    (3, 2),
    1,
    dict(lhs_dilation=(2, 1), rhs_dilation=(1, 3), padding=((1, 0), (2, 2))),
  ),
}


def setUpModule():
  if not native.available():
    raise absltest.unittest.SkipTest('The CPU kernels were not built here.')


class DepthwiseTest(parameterized.TestCase):
  @parameterized.named_parameters((name, case) for name, case in APART.items())
  def test_codes_are_multiplied_exactly(self, case):
    x, w, quads, options = _apart(case)
    x = np.random.default_rng(1).integers(-128, 128, case[0]).astype(np.int8)
    wide = x.astype(np.int64)
    expected = oracle.convolve(wide, w.astype(np.int64), **options)
    for path in PATHS:
      y = _depthwise(
        x, quads, None, case, path, act=Act.CODES, out_dtype=jnp.int32
      )
      np.testing.assert_array_equal(y, expected, path)

  @parameterized.named_parameters(
    (name, name) for name in ('seven', 'five taps', 'twice', 'apart')
  )
  def test_numbers(self, name):
    case = APART[name]
    x, w, quads, options = _apart(case)
    n = w.shape[3]
    rng = np.random.default_rng(2)
    scale = rng.uniform(0.5, 1.5, (1, n)).astype(np.float32)
    zero = rng.integers(-3, 4, (1, n)).astype(np.int8)
    bias = rng.normal(0, 9, (1, n)).astype(np.float32)
    exact = (w - np.float64(zero)) * scale
    known = dict(
      zeros=jnp.asarray(zero), finish=native.Finish(bias=jnp.asarray(bias))
    )
    step = oracle.tie(x, exact)
    for path in PATHS:
      run = functools.partial(_depthwise, x, quads, scale, case, path, **known)
      y = run(act=Act.FLOAT)
      expected = oracle.convolve(np.float64(x), exact, **options) + bias[0]
      self.assertLess(oracle.distance(y, expected), 2e-6, path)
      for symmetric in (True, False):
        y = run(act=Act.DYNAMIC, symmetric=symmetric)
        expected = (
          oracle.convolve(oracle.rounded(x, symmetric), exact, **options)
          + bias[0]
        )
        off = np.abs(y - expected)
        self.assertLess(off.max(), 1.1 * step, path)
        self.assertLess(off.mean(), 0.02 * step, path)

  def test_bfloat16_and_a_range_that_is_given(self):
    case = APART['thirty-five']
    x, w, quads, options = _apart(case)
    scale = np.ones((1, 35), np.float32)
    codes = np.clip(np.round(x * np.float32(1 / 0.03)) - 7, -128, 127)
    y = _depthwise(
      x,
      quads,
      scale,
      case,
      act=Act.STATIC,
      scale=jnp.full((1, 1), 0.03),
      zero=jnp.full((1, 1), -7.0),
    )
    expected = oracle.convolve(
      (codes + 7) * 0.03, w.astype(np.float64), **options
    )
    self.assertLess(oracle.distance(y, expected), 1e-5)
    half = jnp.asarray(x, jnp.bfloat16)
    y = _depthwise(
      half, quads, scale, case, act=Act.FLOAT, out_dtype=jnp.bfloat16
    )
    expected = oracle.convolve(np.asarray(half, np.float64), w, **options)
    self.assertLess(oracle.distance(np.float64(y), expected), 2**-8)

  def test_an_image_with_nan_is_nan_and_no_other(self):
    case = APART['five taps']
    x, _, quads, _ = _apart(case)
    x[0, 0, 0, 0] = np.nan
    scale = np.ones((1, 16), np.float32)
    y = _depthwise(x, quads, scale, case, act=Act.DYNAMIC)
    self.assertTrue(np.isnan(y[0]).all())
    self.assertTrue(np.isfinite(y[1]).all())

  @parameterized.parameters(*PATHS)
  def test_one_image_is_as_among_many(self, path):
    """It is cut into strips, its columns into runs; others are not."""
    case = (16, 64, 33, 70), (5, 3), 1, dict(padding=((2, 2), (0, 1)))
    x, _, quads, _ = _apart(case)
    x[3, -1, -1, -1] = np.nan
    how = dict(scales=np.ones((1, 70), np.float32), case=case, path=path)
    many = _depthwise(x, quads, act=Act.DYNAMIC, symmetric=False, **how)
    for i in (0, 3):
      one = _depthwise(
        x[i : i + 1], quads, act=Act.DYNAMIC, symmetric=False, **how
      )
      np.testing.assert_array_equal(one[0], many[i])

  def test_what_follows(self):
    case = APART['seven']
    x, w, quads, options = _apart(case)
    scale = np.full((1, 7), 0.01, np.float32)
    expected = 0.01 * oracle.convolve(x.astype(np.float64), w, **options)
    other = np.random.default_rng(1).normal(size=expected.shape)
    finish = native.Finish(curve='silu', other=jnp.float32(other), floor=0.0)
    y = _depthwise(x, quads, scale, case, finish=finish, act=Act.FLOAT)
    bent = expected / (1 + np.exp(-expected))
    self.assertLess(oracle.distance(y, np.maximum(bent + other, 0)), 1e-5)


def _apart(case):
  shape, window, repeats, options = case
  rng = np.random.default_rng(0)
  w = rng.integers(-128, 128, (*window, 1, shape[3] * repeats)).astype(np.int8)
  quads = jax.jit(layout.to_quads)(w[:, :, 0])
  x = rng.normal(0.3, 1, shape).astype(np.float32)
  return x, w, quads, dict(options, feature_groups=shape[3])


def _depthwise(
  x,
  quads,
  scales,
  case,
  path='',
  zeros=None,
  finish=native.Finish(),
  out_dtype=jnp.float32,
  **rounding,
):
  return np.asarray(
    conv.depthwise(
      jnp.asarray(x),
      quads,
      None if scales is None else jnp.asarray(scales),
      zeros,
      native.Rounding(**rounding),
      finish,
      windows=conv.Windows(case[1], **case[3]),
      n=x.shape[3] * case[2],
      out_dtype=out_dtype,
      path=path,
    )
  )


if __name__ == '__main__':
  absltest.main()
