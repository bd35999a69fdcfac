"""Leaves of every type, cast as a whole and in their parts."""

from absl.testing import absltest
from absl.testing import parameterized
import contract_leaves
import in_out
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc

PARAMS = {'w': jax.random.normal(jax.random.key(0), (64, 16))}
X = jnp.ones((2, 64))


def apply(params, x):
  return x @ params['w']


USES = jc.uses(apply)(PARAMS, X)
MAKE = {
  **{name: row.compress for name, row in contract_leaves.LEAVES.items()},
  'packed without zeros': lambda params, uses: jc.pack(
    {'w': params['w'].at[:60].set(0)}, uses, target='cpu', sparse=True
  ),
  'tiled': lambda params, uses: jc.pack(
    jc.quantize(params, [('w', 'int8')], uses), uses, target='gpu'
  ),
  'cache': lambda params, uses: jc.quantization.quantize_cache(
    params, [('w', 'int8')]
  ),
}


USED = (
  jc.materialize,
  jc.freeze,
  lambda tree: jc.lift(apply)(tree, X),
  lambda tree: jc.pack(tree, target='cpu', uses=in_out.IN_OUT),
)


class CastTest(parameterized.TestCase):
  @parameterized.named_parameters((name, make) for name, make in MAKE.items())
  def test_a_leaf(self, make):
    tree = {**make(PARAMS, USES), 'step': jnp.int32(1), 'b': jnp.ones(16)}
    cast = jc.cast(tree, jnp.bfloat16)
    self.assertIsInstance(cast['w'], type(tree['w']))
    self.assertEqual(cast['w'].dtype, jnp.bfloat16)
    self.assertLessEqual(jc.nbytes(cast), jc.nbytes(tree))
    want = tree['w'].materialize().astype(jnp.bfloat16)
    # A sum of a base and of adapters is rounded once more.
    atol = 2**-6 if isinstance(tree['w'], jc.adapters.LoRA) else 0
    np.testing.assert_allclose(
      *jc.cast((cast['w'].materialize(), want), jnp.float32), rtol=0, atol=atol
    )
    self.assertEqual(cast['step'].dtype, jnp.int32)
    self.assertEqual(cast['b'].dtype, jnp.bfloat16)
    y = jax.eval_shape(jc.lift(apply), cast, X.astype(jnp.bfloat16))
    self.assertEqual(y.dtype, jnp.bfloat16)
    parts = jax.tree.map(lambda p: p.astype(jnp.bfloat16), tree)
    for use in USED:
      with self.assertRaisesRegex(ValueError, r' is bfloat16, not .* jc\.cast'):
        use(parts)

  def test_integer_scales_are_no_scales(self):
    tree = jc.quantize(PARAMS, [('w', 'int8')], USES)
    parts = jax.tree.map(lambda p: p.astype(jnp.int8), tree)
    with self.assertRaisesRegex(ValueError, 'scale is int8, not floating'):
      jc.lift(apply)(parts, X)

  def test_parts_may_be_anything_for_a_while(self):
    tree = jc.quantize(PARAMS, [('w', 'int4 asym, int8')], USES)
    for f in (jnp.isnan, jnp.sum, np.shape, type, lambda p: None):
      jax.tree.map(f, tree)
    out = jax.vmap(jc.lift(apply), (jax.tree.map(lambda p: None, tree), 0))
    self.assertEqual(out(tree, X[:, None]).shape, (2, 1, 16))

  @parameterized.parameters(
    (jnp.int8, 'w is int8 channel.* kept in int8'),
    (jnp.float8_e4m3fn, 'w is int8 channel.* kept in float8_e4m3fn'),
  )
  def test_refuses(self, dtype, said):
    tree = jc.quantize(PARAMS, [('w', 'int8')], USES)
    with self.assertRaisesRegex(ValueError, said):
      jc.cast(tree, dtype)


if __name__ == '__main__':
  absltest.main()
