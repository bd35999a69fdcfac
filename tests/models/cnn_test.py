"""The CNN: its shapes, and its equation on an image that the eye can check."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import network_cases
import numpy as np

from jaxopt_compress import models


class CnnTest(parameterized.TestCase):
  def test_intermediates(self):
    got = network_cases.shapes('cnn', widths=(3, 5), classes=4)
    want = dict(block0=(4, 4, 3), block1=(2, 2, 5), features=(5,), y=(4,))
    self.assertEqual(got, want)

  # Weights of the convolutions, two for each norm, and the head.
  @parameterized.parameters(
    (dict(widths=(3,)), 9 * 3 + 2 * 3 + 3 * 10 + 10),
  )
  def test_num_params(self, kwargs, want):
    self.assertEqual(network_cases.num_params('cnn', **kwargs), want)

  def test_each_stage_keeps_the_largest_of_four_pixels(self):
    f = models.functional(models.build('cnn', widths=(1,), classes=1))
    params = f.params
    # The kernel passes its centre on, the norm does nothing, the head sums.
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    params['convs']['0']['kernel'] = kernel
    params['head'] = {'kernel': jnp.ones((1, 1)), 'bias': jnp.zeros(1)}
    image = np.float32([[1, 2, -5, -6], [3, 4, -7, -8]])[None, :, :, None]
    y, out, _ = f.apply(params, f.variables, image)
    # relu(-5) is 0; a batch norm of mean 0 and variance 1 divides by sqrt(1 + e).
    np.testing.assert_allclose(out['block0'][0, :, :, 0], [[4, 0]], atol=1e-4)
    np.testing.assert_allclose(y, [[2]], atol=1e-4)


if __name__ == '__main__':
  absltest.main()
