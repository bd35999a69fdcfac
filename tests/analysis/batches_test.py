"""One rule says how a batch becomes arguments."""

import collections
import types

from absl.testing import absltest
from absl.testing import parameterized

from jaxopt_compress.analysis import batches

Pair = collections.namedtuple('Pair', 'x y')


class CallTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('one', 3, (3,), {}),
    ('tuple', (3, 4), (3, 4), {}),
    ('dict', {'x': 3, 'y': 4}, (), {'x': 3, 'y': 4}),
    ('mapping', types.MappingProxyType({'x': 3}), (), {'x': 3}),
    ('dict in a tuple', ({'x': 3},), ({'x': 3},), {}),
    ('tuple in a tuple', ((3, 4),), ((3, 4),), {}),
    ('list', [3, 4], ([3, 4],), {}),
    ('named tuple', Pair(3, 4), (Pair(3, 4),), {}),
    ('none', None, (None,), {}),
    ('nothing', (), (), {}),
  )
  def test_becomes(self, batch, args, kwargs):
    def f(*given, **named):
      return given, named

    self.assertEqual(batches.call(f, (1, 2), batch), ((1, 2, *args), kwargs))

  @parameterized.parameters(
    ({'x': 3}, r'\(batch\,\)', "keyword arguments ['x']"),
    ((3, 4), 'positional', '2 positional arguments'),
    (3, 'takes it whole', 'one argument'),
    ({1: 3}, 'keyword', 'keyword arguments [1]'),
  )
  def test_what_does_not_fit_is_explained(self, batch, step, what):
    def f(params, image, label, third):
      del params, image, label, third

    with self.assertRaises(TypeError) as caught:
      batches.call(f, (1,), batch)
    (note,) = caught.exception.__notes__
    self.assertIn(what, note)
    self.assertRegex(note, step)


if __name__ == '__main__':
  absltest.main()
