"""What the operand that a weight meets becomes."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.quantization import activation
from jaxopt_compress.quantization import formats
from jaxopt_compress.quantization import schemes
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

  @parameterized.parameters(
    # rows, the largest error with a zero point over that without
    ('centred', 1.01),
    ('a norm with a shift', 0.9),
    ('after relu', 0.51),
    ('below zero', 0.51),
    ('one number', 1.0),
    ('one entry', 1.0),
    ('zeros', 1.0),
  )
  def test_a_zero_point_is_no_worse(self, rows, most):
    """Of W8A8: steps are at most as wide, and half as wide on one side of zero."""
    x = {
      'centred': X.at[..., 0].set(4.0).at[..., 1].set(-4.0),
      'a norm with a shift': X + jnp.linspace(0, 2, 8)[None, None],
      'after relu': jax.nn.relu(X),
      'below zero': -jnp.abs(X),
      'one number': jnp.full_like(X, 0.3),
      'one entry': jnp.zeros_like(X).at[..., 3].set(-7.0),
      'zeros': jnp.zeros_like(X),
    }[rows]
    errors, steps = [], []
    for symmetric in (False, True):
      act = spec_lib.Spec('int8', 'token', symmetric=symmetric)
      q = activation.quantize(x, act, (2,), 2)
      errors.append(float(jnp.abs(q.materialize() - x).max()))
      steps.append(np.asarray(q.scale))
    self.assertEqual(schemes.W8A8.act.symmetric, False)
    self.assertTrue((steps[0] <= steps[1] * (1 + 1e-6)).all())
    self.assertLessEqual(errors[0], most * errors[1] + 1e-6)

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
