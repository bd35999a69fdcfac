"""The MLP: its equation, its shapes."""

from absl.testing import absltest
from absl.testing import parameterized
import network_cases
import numpy as np

from jaxopt_compress import models


class MlpTest(parameterized.TestCase):
  def test_intermediates(self):
    got = network_cases.shapes('mlp', widths=(7, 5))
    want = dict(block0=(7,), block1=(5,), features=(5,), y=(10,))
    self.assertEqual(got, want)

  @parameterized.parameters(
    (dict(widths=(3,)), 64 * 3 + 3 + 3 * 10 + 10),
  )
  def test_num_params(self, kwargs, want):
    self.assertEqual(network_cases.num_params('mlp', **kwargs), want)

  def test_equation(self):
    f = models.functional(models.build('mlp', widths=(5,), activation='tanh'))
    layer, head = f.params['layers']['0'], f.params['head']
    h = np.tanh(
      network_cases.IMAGES.reshape(8, 64) @ layer['kernel']
      + layer['bias'][None]
    )
    want = h @ head['kernel'] + head['bias'][None]
    got, _, _ = f.apply(f.params, f.variables, network_cases.IMAGES)
    np.testing.assert_allclose(got, want, atol=1e-5)


if __name__ == '__main__':
  absltest.main()
