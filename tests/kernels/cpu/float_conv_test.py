"""Convolutions of floats of the library against loops in numpy, on every path."""

from absl.testing import absltest
import conv_oracle as oracle
import fuzz_draws
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels.cpu import conv
from jaxopt_compress.kernels.cpu import native


def setUpModule():
  if not native.available():
    raise absltest.unittest.SkipTest('The CPU kernels were not built here.')


def _two(low, high):
  return st.tuples(*[st.integers(low, high)] * 2)


_DILATIONS = st.sampled_from(((1, 1), (1, 1), (2, 1), (1, 3), (2, 2)))


def _finished(finish, y, bias, other):
  """The results of a convolution with what is done with them, in float64."""
  return {
    'bias': y + bias,
    'other': y + other,
    'curve': y / (1 + np.exp(-y)),
    'after': y * bias + bias,
    'floor': np.maximum(y, 0),
  }.get(finish, y)


class FloatConvTest(absltest.TestCase):
  @fuzz_draws.examples
  @hypothesis.given(
    seed=fuzz_draws.SEEDS,
    features=st.integers(1, 3),
    own=st.sampled_from((1, 2, 3, 5, 16, 17)),
    n=st.sampled_from((1, 3, 8, 16, 17, 31, 32, 33, 65)),
    apart=st.booleans(),
    images=st.integers(0, 3),
    sizes=st.tuples(st.integers(0, 9), st.integers(0, 33)),
    window=_two(1, 5),
    strides=_two(1, 3),
    lhs_dilation=_DILATIONS,
    rhs_dilation=_DILATIONS,
    padding=st.tuples(_two(0, 3), _two(0, 3)),
    x_type=st.sampled_from(('float32', jnp.bfloat16)),
    finish=st.sampled_from(('', 'bias', 'floor', 'other', 'curve', 'after')),
  )
  def test_fuzz(
    self,
    seed,
    features,
    own,
    n,
    apart,
    images,
    sizes,
    window,
    x_type,
    finish,
    **geometry,
  ):
    rng = np.random.default_rng(seed)
    if apart:  # n is how often each of the channels is met
      features, own, n = own * features, 1, 1 + n % 2
    channels, columns = features * own, features * n
    x = jnp.asarray(rng.normal(size=(images, *sizes, channels)), x_type)
    w = rng.normal(size=(*window, own, columns)).astype(np.float32)
    windows = conv.Windows(window, **geometry)
    shape = images, *windows.count(*sizes), columns
    bias = rng.normal(size=columns).astype(np.float32)
    other = rng.normal(size=shape).astype(np.float32)
    groups = 0 if apart else features
    how = native.Finish(
      bias=_bias(bias, groups) if finish == 'bias' else None,
      other=jnp.asarray(other) if finish == 'other' else None,
      curve='silu' if finish == 'curve' else '',
      floor=0.0 if finish == 'floor' else -np.inf,
      after=_after(bias, groups) if finish == 'after' else None,
    )
    got = {
      path: conv.float_conv(
        x,
        _laid_out(w, groups),
        how,
        windows=windows,
        n=columns if apart else n,
        feature_groups=groups,
        path=path,
      )
      for path in native.paths()
    }
    for y in got.values():
      self.assertEqual(y.shape, shape)
    if 0 in shape:
      return
    x = np.asarray(x, np.float64)
    y = oracle.convolve(x, w, feature_groups=features, **geometry)
    size = oracle.convolve(abs(x), abs(w), feature_groups=features, **geometry)
    y = _finished(finish, y, bias, other)
    if finish == 'after':
      size = size * np.abs(bias)
    for path, found in got.items():
      error = np.abs(found - y) / (size + 1)
      self.assertLess(error.max(), 2e-6, path)

  def test_stacks(self):
    rng = np.random.default_rng(0)
    x = jnp.float32(rng.normal(size=(2, 3, 5, 6, 8)))
    w = rng.normal(size=(2, 3, 3, 8, 20)).astype(np.float32)
    laid = jnp.stack([_laid_out(one, 1) for one in w])
    windows = conv.Windows((3, 3))
    run = lambda x, w: conv.float_conv(x, w, windows=windows, n=20)
    for y, weight in (
      (jax.vmap(run)(x, laid), w),
      (jax.vmap(run, (0, None))(x, laid[0]), w[:1].repeat(2, 0)),
    ):
      for i in range(2):
        expected = oracle.convolve(np.float64(x[i]), weight[i])
        self.assertLess(oracle.distance(y[i], expected), 1e-6)

  def test_many_tasks(self):
    rng = np.random.default_rng(0)
    x = jnp.float32(rng.normal(size=(2, 40, 33, 16)))
    w = rng.normal(size=(3, 3, 16, 40)).astype(np.float32)
    windows = conv.Windows((3, 3), padding=((1, 1), (1, 1)))
    y = conv.float_conv(x, _laid_out(w, 1), windows=windows, n=40)
    expected = oracle.convolve(np.float64(x), w, padding=((1, 1), (1, 1)))
    self.assertLess(oracle.distance(y, expected), 1e-6)

  def test_a_nan_is_in_its_windows_alone(self):
    x = np.zeros((1, 6, 6, 4), np.float32)
    x[0, 0, 0, 0] = np.nan
    w = np.ones((3, 3, 4, 5), np.float32)
    windows = conv.Windows((3, 3))
    y = conv.float_conv(jnp.asarray(x), _laid_out(w, 1), windows=windows, n=5)
    self.assertTrue(np.isnan(y[0, 0, 0]).all())
    self.assertTrue(np.isfinite(y[0, 1:]).all())

  def test_wrong_operands_are_refused(self):
    x, w = jnp.ones((1, 5, 5, 4)), np.ones((3, 3, 4, 5), np.float32)
    with self.assertRaisesRegex(Exception, 'shapes do not fit'):
      conv.float_conv(x, _laid_out(w, 1), windows=conv.Windows((2, 3)), n=5)
    with self.assertRaisesRegex(Exception, 'do not divide'):
      conv.float_conv(
        x,
        jnp.ones((3, 1, 12, 16)),
        windows=conv.Windows((3, 3)),
        n=5,
        feature_groups=3,
      )


def _bias(bias, groups):
  return jnp.asarray(bias.reshape((groups, 1, -1) if groups > 1 else (1, -1)))


def _after(p, groups):
  return jnp.repeat(_bias(p, groups), 2, -2)


def _laid_out(w, groups):
  """[height, width, channels, features] as the library has it."""
  w = w.reshape(-1, w.shape[-1])
  if not groups:
    return layout.to_float_taps(jnp.asarray(w))
  by_group = w.reshape(len(w), groups, -1).swapaxes(0, 1)
  return layout.to_float_panels(jnp.asarray(by_group if groups > 1 else w))


if __name__ == '__main__':
  absltest.main()
