"""Files whose checksums are right, and whose words are not: all are refused."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest
from safetensors import numpy as safetensors

import jaxopt_compress as jc
from jaxopt_compress.disk import tensors
from jaxopt_compress.export import trees


class HostileTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.path = tmp_path / 'net'

  def write(self, tree, leaves=()):
    said = {'tree': json.dumps(tree), 'leaves': json.dumps(leaves)}
    arrays = {'w': np.ones((2, 3), np.int8), 's': np.ones((1, 3), np.float32)}
    tensors.write(
      self.path,
      arrays,
      arrays.__getitem__,
      {'format': trees.FORMAT, **said},
    )

  leaf = dict(
    leaf='QArray',
    fields=dict(
      qvalue={'array': 'w'}, scale={'array': 's'}, zero=None,
      global_scale=None, global_offset=None, format='int8',
      dtype={'type': 'float32'},
    ),
  )  # fmt: skip

  def changed(self, **fields):
    return {**self.leaf, 'fields': {**self.leaf['fields'], **fields}}

  def test_right(self):
    self.write({'leaf': 0, 'shape': [2, 3]}, [self.leaf])
    np.testing.assert_array_equal(
      jc.load(self.path).materialize(), np.ones((2, 3))
    )

  @parameterized.named_parameters(
    ('no leaf', {'leaf': 0, 'shape': [2, 3]}, lambda t: [], 'IndexError'),
    ('the last', {'leaf': -1, 'shape': [2, 3]}, None, 'no number of one'),
    ('true', {'leaf': True, 'shape': [2, 3]}, None, 'no number of one'),
    ('shape', {'leaf': 0, 'shape': [2, 9]}, None, r'stands for \[2, 9\]'),
    ('huge', {'leaf': 0, 'shape': [2**70]}, None, 'stands for'),
    ('class', {'leaf': 0, 'shape': [2, 3]},
     lambda t: [{**t.leaf, 'leaf': 'os.system'}], "0 leaf types 'os.system'"),
    ('base', {'leaf': 0, 'shape': [2, 3]},
     lambda t: [{**t.leaf, 'leaf': 'CompressedArray'}], '0 leaf types'),
    ('field', {'leaf': 0, 'shape': [2, 3]},
     lambda t: [t.changed(more=1)], 'TypeError'),
    ('format', {'leaf': 0, 'shape': [4, 3]},
     lambda t: [t.changed(format='int9', packed=-2)], 'KeyError'),
    ('tail', {'leaf': 0, 'shape': [2, 3]},
     lambda t: [t.changed(tail=10**18, packed=-2)], 'int8|stands for'),
    ('record', {'leaf': 0, 'shape': [2, 3]},
     lambda t: [t.changed(zero={'fields': {}})], 'there is a record where'),
    ('a number as an array', {'leaf': 0, 'shape': [2, 3]},
     lambda t: [t.changed(zero=3)], 'zero is 3, not .*Array'),
    ('a type as an array', {'leaf': 0, 'shape': [2, 3]},
     lambda t: [t.changed(scale={'type': 'int8'})], "scale is dtype"),
    ('no blocks', {'leaf': 0, 'shape': [2, 3]},
     lambda t: [t.changed(blocks=[1])], r'blocks is \(1,\), not tuple'),
    ('dtype of a field', {'leaf': 0, 'shape': [2, 3]},
     lambda t: [t.changed(dtype={'type': 'O'})], 'no type of numbers'),
    ('swapped', {'leaf': 0, 'shape': [1, 3]},
     lambda t: [t.changed(qvalue={'array': 's'}, scale={'array': 'w'})],
     'qvalue is float32'),
    ('missing', {'array': 'x'}, None, "array 'x' is not there"),
    ('nameless', {'array': 'w'}, None, "nothing says what .'s'"),
    ('no name', {'array': ['w']}, None, 'TypeError'),
    ('kind', {'set': []}, None, "'set' is no kind"),
    ('two kinds', {'list': [], 'dict': {}}, None, 'too many'),
    ('list', ['w'], None, 'AttributeError'),
    ('list of a number', {'list': 3}, None, 'TypeError'),
    ('float', {'float': '__import__'}, None, 'none of'),
    ('twice', {'items': [['a', 1], ['a', 2]]}, None, 'one key'),
    ('key', {'items': [[['a'], 1]]}, None, 'TypeError'),
    ('algorithm', {'array': 'w', 'key': 'none'}, None, 'key|none'),
    ('data of a key', {'array': 'w', 'key': 'rbg'}, None, 'key|shape'),
  )  # fmt: skip
  def test_refused(self, tree, leaves, message):
    self.write(tree, leaves(self) if leaves else [self.leaf])
    with self.assertRaisesRegex(ValueError, f'fit together: .*({message})'):
      jc.load(self.path)

  def test_deep(self):
    self.write('TREE')
    with tensors.opened(self.path) as file:
      said = {**file.metadata, 'tree': '{"list":[' * 5000 + ']}' * 5000}
    arrays = {'w': np.ones(2)}
    tensors.write(self.path, arrays, arrays.__getitem__, said)
    with self.assertRaisesRegex(ValueError, 'Its tree is no JSON'):
      jc.load(self.path)
    tree = []
    for _ in range(2000):
      tree = [tree]
    with self.assertRaisesRegex(ValueError, 'too deep'):
      jc.save(self.path, tree)

  def test_versions_and_others(self):
    trees.write(self.path, {}, {'format': 'jaxopt_compress.tree/2'})
    with self.assertRaisesRegex(
      ValueError, "tree/2', and .*tree/1.*another ver"
    ):
      jc.load(self.path)
    safetensors.save_file({'w': np.ones(2)}, self.path)
    with self.assertRaisesRegex(ValueError, 'format None.*safetensors.numpy'):
      jc.load(self.path)
    self.path.write_bytes(b'PK\x03\x04' * 9)
    with self.assertRaisesRegex(ValueError, 'is no safetensors file'):
      jc.load(self.path)


if __name__ == '__main__':
  absltest.main()
