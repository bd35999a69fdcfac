"""What the operand that a weight meets becomes."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.quantization import activation
from jaxopt_compress.quantization import formats
from jaxopt_compress.quantization import spec as spec_lib

X = jax.random.normal(jax.random.key(0), (3, 5, 8))


class ActivationTest(parameterized.TestCase):
  @parameterized.parameters(
    ('int8', (3, 5, 1)),
    ('int8 tensor', (1, 1, 1)),
    ('int8 g4', (3, 5, 2)),
  )
  def test_what_shares_a_scale(self, words, shape):
    q = activation.quantize(X, spec_lib.parse(words, 'token'), (2,), 2)
    self.assertEqual(q.scale.shape, shape)
    step = np.asarray(q.scale).max()
    np.testing.assert_allclose(q.materialize(), X, rtol=0, atol=0.51 * step)

  def test_a_given_range_clips(self):
    act = spec_lib.Spec('int8', 'tensor', static=True)
    scale = jnp.full((1, 1, 1), 0.01)
    q = activation.with_range(X, act, scale, None)
    want = np.clip(np.asarray(X), -1.28, 1.27)
    np.testing.assert_allclose(q.materialize(), want, rtol=0, atol=0.0051)

  def test_nan_is_kept(self):
    act = spec_lib.Spec('int8', 'tensor', static=True)
    x = X.at[1, 2, 3].set(jnp.nan)
    q = activation.with_range(x, act, jnp.ones((1, 1, 1)), None)
    self.assertTrue(bool(jnp.isnan(q.materialize()).all()))

  @parameterized.parameters(
    ('int8', 'bfloat16', True),
    ('e4m3', 'bfloat16', True),
    ('nf4', 'bfloat16', False),
    ('nf4', 'float32', True),
    ('int8', 'float8_e4m3fn', False),
    ('int8', 'int32', False),
  )
  def test_holds_numbers(self, name, dtype, want):
    got = activation.holds_numbers(formats.FORMATS[name], jnp.dtype(dtype))
    self.assertEqual(got, want)


if __name__ == '__main__':
  absltest.main()
