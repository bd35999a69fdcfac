"""Which layer starts from which, drawn; - starts from nothing."""

from absl.testing import absltest
from absl.testing import parameterized

from jaxopt_compress.distillation import layers as layers_lib


class LayerMapTest(parameterized.TestCase):
  @parameterized.parameters(
    # target, source, layers, expected
    (3, 3, 'uniform', '0 1 2'),
    (3, 3, 'last', '0 1 2'),
    (2, 6, 'uniform', '0 5'),
    (3, 12, 'uniform', '0 6 11'),
    (1, 4, 'uniform', '0'),
    (4, 2, 'uniform', '0 0 1 1'),
    (5, 2, 'uniform', '0 0 0 1 1'),
    (2, 4, 'first', '0 1'),
    (2, 4, 'last', '2 3'),
    (4, 2, 'first', '0 1 - -'),
    (4, 2, 'last', '- - 0 1'),
  )
  def test_layer_map(self, n, m, layers, expected):
    got = layers_lib.layer_map(n, m, layers)
    drawn = ' '.join('-' if i is None else str(i) for i in got)
    self.assertEqual(drawn, expected)

  def test_unknown_choice(self):
    with self.assertRaisesRegex(ValueError, "layers='middle'"):
      layers_lib.layer_map(2, 4, 'middle')


class StartsTest(parameterized.TestCase):
  def test_lists_in_lists(self):
    target = [f'{i}/{j}/w' for i in range(2) for j in range(1)]
    source = [f'{i}/{j}/w' for i in range(3) for j in range(2)]
    found, skipped = layers_lib.starts(target, source, 'last')
    self.assertEqual(found, {'0/0/w': '1/1/w', '1/0/w': '2/1/w'})
    self.assertEqual(skipped, {'0/0/w', '0/1/w', '1/0/w', '2/0/w'})

  def test_a_layer_that_starts_from_nothing_has_no_lists_to_match(self):
    found, skipped = layers_lib.starts(
      ['0/0', '1/0', '1/1'], ['0/0', '0/1'], 'first'
    )
    self.assertEqual(found, {'0/0': '0/0', '1/0': None, '1/1': None})
    self.assertEqual(skipped, {'0/1'})

  def test_what_is_no_list_keeps_its_name(self):
    found, skipped = layers_lib.starts(['a/1', 'b'], ['a/1', 'a/2', 'c'])
    self.assertEqual(found, {'a/1': 'a/1', 'b': 'b'})
    self.assertEqual(skipped, set())


if __name__ == '__main__':
  absltest.main()
