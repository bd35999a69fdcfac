"""Codes without those of zero: the same numbers, products and answers."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc

KEY = jax.random.key(0)
W = jax.random.normal(KEY, (32, 16))
KEPT = jnp.abs(W) > jnp.quantile(jnp.abs(W), 0.9)
W = jnp.where(KEPT, W, 0)
X = jax.random.normal(KEY, (4, 32))


def apply(p, x):
  return x @ p['kernel']


USES = jc.uses(apply)({'kernel': W}, X)


def quantised(scheme, w=W):
  return jc.quantize({'kernel': w}, [('kernel', scheme)])


class SparseCodesTest(parameterized.TestCase):
  @parameterized.parameters(
    'int8 asym',
    'int4 g8 asym',
    'int3',
    'e4m3',
    'nf4 g16 dq',
  )
  def test_without_loss(self, scheme):
    q = quantised(scheme)
    tree, told = jc.sparsify(q)
    leaf = tree['kernel']
    self.assertIsInstance(leaf, jc.pruning.SparseCodes)
    back = leaf.put_back()
    self.assertEqual(jax.tree.structure(back), jax.tree.structure(q['kernel']))
    for a, b in zip(*map(jax.tree.leaves, (back, q['kernel'])), strict=True):
      self.assertEqual(a.dtype, b.dtype)
      self.assertEqual(np.asarray(a).tobytes(), np.asarray(b).tobytes())
    self.assertEqual(told['kernel'].bytes, jc.nbytes(leaf))
    self.assertLess(jc.nbytes(leaf), jc.nbytes(q))

  def test_products_of_integers_stay_those_of_integers(self):
    q = quantised(jc.W8A8)
    tree, _ = jc.sparsify(q)
    program = jax.jit(jc.lift(apply))
    self.assertIn('xi8>', program.lower(tree, X).as_text())
    np.testing.assert_array_equal(program(tree, X), program(q, X))
    (met,) = jc.explain(apply)(tree, X)
    self.assertTrue(met.native, met)

  def test_bytes_of_int8_at_90_percent(self):
    w = jax.random.normal(KEY, (256, 256))
    w = jnp.where(jnp.abs(w) > jnp.quantile(jnp.abs(w), 0.9), w, 0)
    leaf = jc.sparsify(quantised('int8', w))[0]['kernel']
    bits = 8 * (jc.nbytes(leaf) - leaf.leaf.scale.nbytes) / w.size
    self.assertAlmostEqual(bits, 1.8, delta=0.02)

  def test_n_m_of_codes(self):
    rules = [('kernel', jc.Sparsity(kind='n_m', n=2, m=4))]
    w = jc.freeze(
      jc.prune({'kernel': jax.random.normal(KEY, (32, 16))}, rules, USES)
    )
    leaf = jc.sparsify(quantised('int8', w['kernel']))[0]['kernel']
    self.assertEqual(leaf.describe(), 'int8 channel, 2:4')
    want = jc.materialize(quantised('int8', w['kernel']))['kernel']
    np.testing.assert_array_equal(leaf.materialize(), want)

  def test_codes_that_were_cast_are_refused(self):
    tree, _ = jc.sparsify(quantised('int8'))
    with self.assertRaisesRegex(ValueError, 'SparseCodes.stored is float32'):
      jc.materialize(jax.tree.map(lambda x: x.astype(jnp.float32), tree))


if __name__ == '__main__':
  absltest.main()
