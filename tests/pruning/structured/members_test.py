from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxopt_compress.pruning.structured import members


class MembersTest(parameterized.TestCase):
  @parameterized.parameters(
    ('mean', [2, 3]), ('sum', [4, 6]), ('max', [3, 5]), ('first', [1, 5])
  )
  def test_values(self, name, want):
    x = np.array([[1.0, 5.0], [3.0, 1.0]])
    self.assertEqual(getattr(members, name)(x).tolist(), want)


if __name__ == '__main__':
  absltest.main()
