"""The verb: the smallest form of each leaf, and what is said of it."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.pruning.storage import sparsify

RNG = np.random.default_rng(0)


def zeros(shape, fraction, dtype='float32'):
  """An array with exactly this fraction of zeros, wherever they are."""
  x = np.ones(shape, np.float32)
  count = round(fraction * x.size)
  x.reshape(-1)[RNG.permutation(x.size)[:count]] = 0
  return jnp.asarray(x, dtype)


def diagonal(shape, every):
  """One entry of each `every` along the first axis."""
  return jnp.asarray(
    (np.arange(shape[0]) % every == 0)[:, None] * np.ones(shape)
  )


class SparsifyTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('90%', zeros((64, 64), 0.9), 'bitmask 90%', 512 + 4 * 410),
    ('90% bf16', zeros((64, 64), 0.9, 'bfloat16'), 'bitmask 90%', 512 + 820),
    ('5%', zeros((64, 64), 0.05), 'bitmask 5%', 512 + 4 * 3891),
    ('5% bf16', zeros((64, 64), 0.05, 'bfloat16'), 'bfloat16', 2 * 4096),
    ('none', zeros((64, 64), 0), 'float32', 4 * 4096),
    # Places in groups of 16 and 32 take as much; the bitmask of 1:2 would be 1,664.
    ('1:8', diagonal((64, 16), 8).astype(jnp.float32), '1:8', 128 * 4 + 48),
    ('all', zeros((64, 64), 1), 'bitmask 100%', 512 + 4),
  )
  def test_smallest(self, x, words, size):
    tree, told = jc.sparsify({'w': x})
    said = told['w']
    self.assertEqual((said.format, said.bytes), (words, size))
    self.assertEqual(said.dense_bytes, x.nbytes)
    self.assertEqual(jc.nbytes(tree), size)
    self.assertEqual(bool(said.why), not jc.is_compressed(tree['w']))
    np.testing.assert_array_equal(jc.materialize(tree)['w'], x)

  def test_no_form_is_tried_where_nothing_is_zero(self):
    with mock.patch.object(sparsify, '_n_m_bytes') as tried:
      jc.sparsify({'w': jnp.ones((64, 64))})
    tried.assert_not_called()

  def test_says_why_not(self):
    tree = {
      'scalar': 0.5,
      'empty': jnp.zeros((0, 3)),
      'ids': jnp.zeros(9, jnp.int32),
      'full': jnp.ones((8, 8)),
      'few': zeros((64, 64), 0.01),
      'asked': zeros((64, 64), 0.9),
      'twice': jc.sparsify({'x': zeros((64, 64), 0.9)})[0]['x'],
      'codes': jc.quantize(
        {'k': jnp.ones((8, 8))}, [('k', 'int8')], uses=in_out.IN_OUT
      )['k'],
    }
    out, told = jc.sparsify(tree, [('asked', None), ('.*', 'smallest')])
    whys = {path: said.why for path, said in told.items()}
    self.assertEqual(
      whys,
      {
        'asked': 'a rule says so',
        'codes': 'it has no zeros',
        'empty': 'it is empty',
        'few': 'with 1.0% zeros no form is smaller',
        'full': 'it has no zeros',
        'ids': 'int32 is no weight',
        'scalar': 'it is a scalar',
        'twice': 'its zeros are left out already',
      },
    )
    for path, leaf in jc.rules.named_leaves(tree):
      self.assertIs(out[path], leaf)

  def test_masks_are_frozen_first(self):
    rules = [('w', jc.Sparsity(0.5)), ('b', None)]
    params = {'w': jnp.arange(1.0, 65.0).reshape(8, 8), 'b': np.ones(8)}
    masked = jc.prune(params, rules)
    tree, _ = jc.sparsify(masked)
    self.assertIsInstance(tree['w'], jc.pruning.Bitmask)
    self.assertIsInstance(tree['b'], jax.Array)
    np.testing.assert_array_equal(
      jc.materialize(tree)['w'], jc.freeze(masked)['w']
    )

  def test_stacked_layers_are_segments(self):
    def apply(p, x):
      layer = lambda x, w: (jnp.tanh(x @ w['k'] + w['b']), None)
      return jax.lax.scan(layer, x, p)[0]

    params = {'k': zeros((3, 16, 16), 0.8), 'b': zeros((3, 1, 16), 0.8)}
    x = jnp.ones((2, 16))
    tree, _ = jc.sparsify(params, uses=jc.uses(apply)(params, x))
    self.assertEqual(tree['k'].segment, (16, 16))
    self.assertTrue(all(leaf.can_cut(-3, 1) for leaf in tree.values()))
    program = jax.jit(jc.lift(apply))
    self.assertNotIn('3x16x16xf32', program.lower(tree, x).as_text())
    np.testing.assert_allclose(program(tree, x), apply(params, x), rtol=1e-6)

  def test_tables_are_stored_by_rows(self):
    apply = lambda p, ids: p['table'][ids]
    params, ids = {'table': zeros((32, 24), 0.9)}, jnp.arange(4)
    tree, _ = jc.sparsify(params, uses=jc.uses(apply)(params, ids))
    self.assertEqual(tree['table'].segment, (24,))
    self.assertTrue(all(m.native for m in jc.explain(apply)(tree, ids)))

  def test_zeros_come_back(self):
    w = zeros((32, 32), 0.9)
    q = jc.quantize({'k': w}, [('k', 'int8')], uses=in_out.IN_OUT)['k']
    tree = {'w': w, 'q': q, 'b': jnp.ones(3)}
    back = jc.pruning.sparsify.with_zeros(jc.sparsify(tree)[0])
    self.assertEqual(jax.tree.structure(back), jax.tree.structure(tree))
    jax.tree.map(np.testing.assert_array_equal, back, tree)

  @parameterized.named_parameters(
    ('typo', [('v', 'smallest'), ('.*', None)], "'v' matches no path"),
    ('word', [('w', 'bitmasc')], "'bitmasc'; choose one of"),
  )
  def test_refuses(self, rules, message):
    with self.assertRaisesRegex(ValueError, message):
      jc.sparsify({'w': zeros((8, 8), 0.5)}, rules)

  def test_refuses_what_is_traced(self):
    with self.assertRaisesRegex(ValueError, 'w is traced or abstract'):
      jc.sparsify({'w': jax.ShapeDtypeStruct((8, 8), jnp.float32)})
    with self.assertRaisesRegex(ValueError, 'w is traced'):
      jax.jit(lambda w: jc.sparsify({'w': w})[0])(jnp.ones((8, 8)))


if __name__ == '__main__':
  absltest.main()
