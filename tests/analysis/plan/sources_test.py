from absl.testing import absltest
import numpy as np

from jaxopt_compress.analysis.plan import sources
from jaxopt_compress.analysis.structure import structure


class SourcesTest(absltest.TestCase):
  def test_checked(self):
    group = structure.Group('a:-1', 4, least=2)
    locked = structure.Group('b:-1', 4, locked=('cumsum',))
    self.assertEqual(sources.checked(None, group, [3, 0]).tolist(), [3, 0])
    self.assertEqual(sources.checked(None, locked, range(4)).size, 4)
    for of, source, message in (
      (group, [], 'one at least'),
      (group, [[0, 1]], r'shape \(1, 2\)'),
      (group, [0.5, 1], 'not integers'),
      (group, [0, 4], 'channels 0 to 3'),
      (group, np.array([2, 2]), '1 are left, and the program takes 2'),
      (locked, [0, 1, 3], 'has to stay as it is: cumsum'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        sources.checked(None, of, source)


if __name__ == '__main__':
  absltest.main()
