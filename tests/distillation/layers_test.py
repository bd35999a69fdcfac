"""Which layer starts from which, drawn; - starts from nothing."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

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
    target = {f'{i}/{j}/w': 0 for i in range(2) for j in range(1)}
    source = {f'{i}/{j}/w': 0 for i in range(3) for j in range(2)}
    found, skipped = layers_lib.starts(target, source, 'last')
    self.assertEqual(found, {'0/0/w': '1/1/w', '1/0/w': '2/1/w'})
    self.assertEqual(skipped, {'0/0/w', '0/1/w', '1/0/w', '2/0/w'})

  def test_a_layer_that_starts_from_nothing_has_no_lists_to_match(self):
    found, skipped = layers_lib.starts(
      {'0/0': 0, '1/0': 0, '1/1': 0}, {'0/0': 0, '0/1': 0}, 'first'
    )
    self.assertEqual(found, {'0/0': '0/0', '1/0': None, '1/1': None})
    self.assertEqual(skipped, {'0/1'})

  def test_what_is_no_list_keeps_its_name(self):
    found, skipped = layers_lib.starts(
      {'a/1': 0, 'b': 0}, {'a/1': 0, 'a/2': 0, 'c': 0}
    )
    self.assertEqual(found, {'a/1': 'a/1', 'b': 'b'})
    self.assertEqual(skipped, set())

  @parameterized.parameters(
    'blocks/{}/w',
    'layer_{}/w',
    'block{}/w',
    'encoder/layers_{}/attention/w',
    'transformer.h.{}.attn.w',
    'model/h.{}/w',
    'layer_0{}',
    'Block_1_{}/w',
  )
  def test_how_layers_are_named(self, name):
    first = 1 if name.startswith('block{') else 0
    target, source = (
      {name.format(i + first): np.ones(2) for i in range(n)} for n in (2, 4)
    )
    got = layers_lib.starts({**target, 'norm0': 0}, {**source, 'norm0': 0})
    starts = {
      name.format(i + first): name.format(i * 3 + first) for i in (0, 1)
    }
    skipped = {name.format(i + first) for i in (1, 2)}
    self.assertEqual(got, ({**starts, 'norm0': 'norm0'}, skipped))

  @parameterized.parameters(
    # layers of other shapes, of other leaves, with a gap
    ({'Dense_0/w': 2, 'Dense_1/w': 3}, {'Dense_0/w': 2}),
    ({'Block_0/w': 2, 'Block_1/w': 2, 'Block_1/b': 2}, {'Block_0/w': 2}),
    ({'l0': 2, 'l2': 2}, {'l0': 2}),
  )
  def test_what_is_numbered_and_no_stack(self, source, target):
    source, target = (
      {k: np.ones(n) for k, n in paths.items()} for paths in (source, target)
    )
    for a, b in ((source, target), (target, source)):
      self.assertEqual(layers_lib.starts(a, b), ({p: p for p in a}, set()))

  def test_layers_beyond_the_tenth_are_in_order(self):
    target = {'l_0': 0, 'l_1': 0}
    source = {f'l_{i}': 0 for i in range(12)}
    found, _ = layers_lib.starts(target, source)
    self.assertEqual(found, {'l_0': 'l_0', 'l_1': 'l_11'})


if __name__ == '__main__':
  absltest.main()
