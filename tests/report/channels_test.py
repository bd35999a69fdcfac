"""Which channels of a plan went, as records and strips."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.report import channels


class ChannelsTest(parameterized.TestCase):
  def test_records_of_what_changes(self):
    f = lambda p, x: ((x @ p['a']) @ p['b']) @ p['c']  # noqa: E731
    p = {'a': jnp.ones((2, 4)), 'b': jnp.ones((4, 3)), 'c': jnp.ones((3, 2))}
    structure = jc.structure(f)(p, jnp.ones((1, 2)))
    plan = jc.Plan(
      structure, {'a:-1': [1, 2], 'b:-1': np.arange(3)}, {'a:-1': 3}
    )
    (record,) = channels.groups(plan)
    self.assertEqual((record.name, record.asked), ('a:-1', 3))
    self.assertEqual((record.before, record.after), (4, 2))
    self.assertEqual(record.kept, (0.0, 1.0, 1.0, 0.0))
    self.assertEqual(record.leaves, 2)

  def test_rows_of_their_own(self):
    rows = np.array([[0, 1], [1, 2]])
    np.testing.assert_array_equal(channels._kept(rows, 4), [0.5, 1, 0.5, 0])

  @parameterized.parameters(
    ([1, 0], 32, '█·'),
    ([1.0, 0.1, 0.5, 0.9, 0.0], 32, '█░▒▓·'),
    ([1] * 6 + [0] * 6, 4, '██··'),
    ([1, 0, 1, 0], 2, '▒▒'),
    ([1], 32, '█'),
  )
  def test_strips(self, kept, width, want):
    self.assertEqual(channels.strip(kept, width), want)


if __name__ == '__main__':
  absltest.main()
