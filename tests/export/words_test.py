"""Leaves and trees come back of their words and arrays: types, fields, every bit."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.core import array
from jaxopt_compress.export import weights
from jaxopt_compress.export import words

W = jax.random.normal(jax.random.key(0), (32, 16))
USES = jc.uses(lambda p, x: x @ p['w'])({'w': W}, jnp.ones((1, 32)))


def _quantized(words, w=W):
  return jc.quantize({'w': w}, [('w', words)], USES)['w']


def _sparse(spec, words=None):
  tree = jc.prune({'w': W}, [('w', spec)], USES)
  tree = jc.quantize(tree, [('w', words)], USES) if words else tree
  return jc.sparsify(tree)[0]['w']


LEAVES = {
  'int4 groups': lambda: _quantized('int4 g16 asym'),
  'activations': lambda: _quantized(jc.W8A8),
  'float8': lambda: _quantized('e4m3'),
  'nvfp4': lambda: _quantized(jc.NVFP4),
  'bfloat16': lambda: _quantized('int8', W.astype(jnp.bfloat16)),
  'bitmask': lambda: _sparse(jc.Sparsity(0.9)),
  '2:4': lambda: _sparse(jc.Sparsity(kind='n_m', n=2, m=4)),
  'sparse codes': lambda: _sparse(jc.Sparsity(0.9), 'int8'),
  'masked': lambda: jc.pruning.Masked(W, W > 0, gradient='dense'),
  'masked codes': lambda: jc.pruning.Masked(_quantized('int8'), W > 0),
}


class WordsTest(parameterized.TestCase):
  @parameterized.parameters(*LEAVES)
  def test_comes_back(self, name):
    leaf = LEAVES[name]()
    self.assertTrue(array.is_compressed(leaf), name)
    arrays, _ = weights.flatten({'w': leaf})
    said = json.loads(json.dumps(words.of_static(leaf)))
    again = words.to_static(said, lambda child: arrays[f'w.{child}'])
    self.assertEqual(jax.tree.structure(again), jax.tree.structure(leaf))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(leaf), strict=True):
      self.assertEqual(a.dtype, b.dtype)
      np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

  def test_a_packed_leaf_at_two_places_is_stored_once(self):
    packed = jc.pack({'w': _quantized('int8')}, USES, target='cpu')['w']
    again = jax.tree.map(lambda x: x, packed)  # the arrays in another leaf
    _, stored = words.of_tree({'a': packed, 'b': packed, 'c': [again]})
    self.assertEqual(sorted(stored), ['a.qvalue', 'a.scale'])

  def test_refused(self):
    said = words.of_static(LEAVES['masked']())
    with self.assertRaisesRegex(ValueError, "0 leaf types 'os.*Masked"):
      words.to_static({**said, 'leaf': 'os.system'}, {}.get)
    leaf = jc.pruning.Masked(W, W > 0, gradient=print)
    with self.assertRaisesRegex(
      ValueError, 'gradient is .*of type builtin.*no file says'
    ):
      words.of_static(leaf)


if __name__ == '__main__':
  absltest.main()
