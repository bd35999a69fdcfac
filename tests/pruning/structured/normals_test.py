from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxopt_compress.pruning.structured import normals


class NormalsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('none', [1, 3, 0, 4]),
    ('mean', [0.5, 1.5, 0, 2]),
    ('max', [0.25, 0.75, 0, 1]),
    ('l2', np.array([1, 3, 0, 4]) / np.sqrt(26)),
    ('lamp', [1 / 8, 3 / 7, 0, 1]),
    ('gaussian', np.array([-1, 1, -2, 2]) / np.sqrt(10 / 3)),
  )
  def test_values(self, name, want):
    normal = getattr(normals, name)
    x = np.array([1.0, 3.0, 0.0, 4.0])
    np.testing.assert_allclose(normal(x), want)
    # Of any shape, and of no information.
    np.testing.assert_allclose(normal(x.reshape(2, 2)).ravel(), want)
    for same in (np.zeros(3), np.zeros(1), np.ones(1)):
      self.assertTrue(np.isfinite(normal(same)).all())


if __name__ == '__main__':
  absltest.main()
