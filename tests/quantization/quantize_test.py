"""`quantize`: which axes share a scale, kinds of leaves and trees, refusals."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
from flax import core as flax_core
from flax import linen as nn
from flax import nnx
import in_out
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.core import array
from jaxopt_compress.quantization import qarray

TENSOR = jc.Scheme(jc.schemes.Spec('int8', 'tensor'))


def _normal(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


class QuantizeTest(parameterized.TestCase):
  @parameterized.named_parameters(
    dict(
      testcase_name='W8A16',
      scheme=jc.W8A16,
      type=jc.QArray,
      says='int8 channel',
      scale=(1, 6),
    ),
    dict(
      testcase_name='W8A8',
      scheme=jc.W8A8,
      type=jc.quantization.QDotArray,
      says='int8 channel, int8 asym activations',
      scale=(1, 6),
    ),
    dict(
      testcase_name='W4A16',
      scheme=jc.W4A16,
      type=jc.QArray,
      says='int4 g128',
      scale=(2, 6),
    ),
    dict(
      testcase_name='tensor',
      scheme=TENSOR,
      type=jc.QArray,
      says='int8 tensor',
      scale=(1, 1),
    ),
    dict(
      testcase_name='by name',
      scheme='W8A8',
      type=jc.quantization.QDotArray,
      says='int8 channel, int8 asym activations',
      scale=(1, 6),
    ),
  )
  def test_presets(self, scheme, type, says, scale):
    w = _normal(200, 6)
    q = jc.quantize({'kernel': w}, [(r'kernel', scheme)])['kernel']
    self.assertIsInstance(q, type)
    self.assertEqual(q.describe(), says)
    self.assertEqual(getattr(q, 'weight', q).scale.shape, scale)

  @parameterized.named_parameters(
    # name, shape, function, scale: one for each output channel
    dict(
      testcase_name='heads in',
      shape=(6, 2, 4),
      spec='bd,dhk->bhk',
      x=(3, 6),
      scale=(1, 2, 4),
    ),
    dict(
      testcase_name='heads out',
      shape=(2, 4, 6),
      spec='bhk,hkd->bd',
      x=(3, 2, 4),
      scale=(1, 1, 6),
    ),
    dict(
      testcase_name='transposed',
      shape=(8, 6),
      spec='bd,od->bo',
      x=(3, 6),
      scale=(8, 1),
    ),
    dict(
      testcase_name='batched',
      shape=(2, 6, 5),
      spec='ebd,edo->ebo',
      x=(2, 3, 6),
      scale=(2, 1, 5),
    ),
  )
  def test_channels_follow_uses(self, shape, spec, x, scale):
    f = lambda p, x: jnp.einsum(spec, x, p['w'])
    p = {'w': _normal(*shape)}
    uses = jc.uses(f)(p, jnp.ones(x))
    q = jc.quantize(p, [('w', jc.W8A16)], uses)['w']
    self.assertEqual(q.scale.shape, scale)

  @parameterized.parameters('scan', 'experts', 'index')
  def test_tensor_scale_of_a_stack_is_one_for_each_matrix(self, how):
    w, x = _normal(3, 6, 6), _normal(4, 6, seed=1)
    run = dict(
      scan=lambda p, x: lax.scan(lambda x, w: (x @ w, None), x, p['w'])[0],
      experts=lambda p, x: lax.ragged_dot(x, p['w'], jnp.array([1, 1, 2])),
      index=lambda p, x: x @ p['w'][0] @ p['w'][2],
    )[how]
    q = jc.quantize({'w': w}, [('w', TENSOR)], jc.uses(run)({'w': w}, x))
    self.assertEqual(q['w'].scale.shape, (3, 1, 1))
    want = np.abs(np.asarray(w)).max((1, 2)) * np.float32(2 / 255)
    np.testing.assert_array_equal(q['w'].scale.ravel(), want)
    y = jax.jit(jc.lift(run))(q, x)
    np.testing.assert_allclose(
      y, run(array.materialize(q), x), rtol=2e-5, atol=1e-4
    )

  def test_groups_run_along_the_longest_contracted_axis(self):
    f = lambda p, x: jnp.einsum('bhk,hkd->bd', x, p['w'])
    p = {'w': _normal(2, 8, 6)}
    scheme = jc.schemes.Spec('int4', 'group', 4)
    q = jc.quantize(p, [('w', scheme)], jc.uses(f)(p, jnp.ones((3, 2, 8))))['w']
    self.assertEqual(
      (q.packed, q.qvalue.shape, q.scale.shape), (-2, (2, 4, 6), (2, 2, 6))
    )

  @parameterized.named_parameters(
    dict(testcase_name='float32', dtype=jnp.float32),
    dict(testcase_name='bfloat16', dtype=jnp.bfloat16),
    dict(testcase_name='float16', dtype=jnp.float16),
  )
  def test_dtypes(self, dtype):
    q = jc.quantize(
      {'w': _normal(8, 4).astype(dtype)}, [('w', jc.W8A16)], uses=in_out.IN_OUT
    )['w']
    self.assertEqual((q.dtype, q.materialize().dtype), (dtype, dtype))
    self.assertEqual(q.scale.dtype, jnp.float32)

  def test_float64(self):
    with jax.enable_x64(True):
      w = np.random.default_rng(0).normal(size=(8, 4))
      q = jc.quantize(
        {'w': jnp.asarray(w)}, [('w', jc.W8A16)], uses=in_out.IN_OUT
      )['w']
      self.assertEqual(q.materialize().dtype, jnp.float64)
      with self.assertRaisesRegex(ValueError, 'infinite in float32'):
        jc.quantize(
          {'w': jnp.asarray(w * 1e300)}, [('w', jc.W8A16)], uses=in_out.IN_OUT
        )

  def test_numpy_leaves_take_the_dtype_that_jax_gives_them(self):
    w = np.random.default_rng(0).normal(size=(8, 4))  # float64
    q = jc.quantize({'w': w}, [('w', jc.W8A16)], uses=in_out.IN_OUT)['w']
    self.assertEqual((q.dtype, q.materialize().dtype), (jnp.float32,) * 2)

  @parameterized.named_parameters(
    dict(
      testcase_name='nan',
      x=np.array([[1, np.nan]], 'f'),
      says='w holds 1 values that are NaN',
    ),
    dict(
      testcase_name='inf',
      x=np.array([[np.inf, -np.inf]], 'f'),
      says='w holds 2 values',
    ),
    dict(
      testcase_name='integers',
      x=np.ones((2, 2), int),
      says=r'w is int32; only floating.*\(r"w", None\)',
    ),
    dict(testcase_name='bool', x=np.ones((2, 2), bool), says='w is bool'),
    dict(
      testcase_name='empty',
      x=np.ones((0, 2), 'f'),
      says=r'w is empty, shape \(0, 2\)',
    ),
    dict(
      testcase_name='vector', x=np.ones(3, 'f'), says='Which axes of w, shape'
    ),
    dict(testcase_name='python float', x=1.0, says='which is no array'),
  )
  def test_refused_leaves(self, x, says):
    uses = in_out.IN_OUT if np.ndim(x) == 2 else None
    with self.assertRaisesRegex(ValueError, says):
      jc.quantize({'w': x}, [('w', jc.W8A16)], uses)

  def test_axes_are_not_guessed(self):
    w = jnp.ones((4, 6))
    for tree, rules in (
      ({'weight': w}, [('weight', 'W8A16')]),
      ({'linear': {'w': w}}, [('.*', 'int8')]),
      (w, [('', 'int8')]),  # a bare array
    ):
      with self.assertRaisesRegex(
        ValueError, r'Which axes of .*uses=jc\.uses\('
      ):
        jc.quantize(tree, rules)
    # A matrix with one scale has no need of them, and what has a name is known.
    q = jc.quantize({'weight': w}, [('weight', 'int8 tensor')])['weight']
    np.testing.assert_allclose(q.materialize(), w, rtol=0.01)
    self.assertEqual(q.scale.shape, (1, 1))
    q = jc.quantize({'a/kernel': w}, [('.*', 'int8')])['a/kernel']
    self.assertEqual(q.scale.shape, (1, 6))

  def test_an_equinox_weight_has_its_own_axis(self):
    w = {'weight': jnp.arange(24.0).reshape(6, 4)}  # [out, in]
    uses = jc.uses(lambda p, x: p['weight'] @ x)(w, jnp.ones(4))
    q = jc.quantize(w, jc.rules_for(uses, dot='int8', at_least=1), uses)
    self.assertEqual(q['weight'].scale.shape, (6, 1))

  def test_keys_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'only floating'):
      jc.quantize(
        {'w': jax.random.key(0)}, [('w', jc.W8A16)], uses=in_out.IN_OUT
      )

  def test_no_channels(self):
    f = lambda p, x: x @ p['w'] @ p['w'].T
    p = {'w': _normal(4, 4)}
    uses = jc.uses(f)(p, jnp.ones((2, 4)))
    with self.assertRaisesRegex(ValueError, "contracted over all.*'tensor'"):
      jc.quantize(p, [('w', jc.W8A16)], uses)
    q = jc.quantize(p, [('w', TENSOR)], uses)
    self.assertEqual(q['w'].scale.shape, (1, 1))

  @parameterized.named_parameters(
    dict(
      testcase_name='typo',
      rules=[(r'kernl', jc.W8A8), (r'.*', None)],
      says="mean 'kernel'",
    ),
    dict(
      testcase_name='uncovered',
      rules=[(r'kernel', jc.W8A8)],
      says='No rule covers bias',
    ),
    dict(testcase_name='no pair', rules=['kernel'], says='is no pair'),
    dict(
      testcase_name='uses', rules={'w': in_out.IN_OUT['w']}, says='come second'
    ),
    dict(testcase_name='a scheme', rules=jc.W8A8, says='is no pair'),
    dict(
      testcase_name='scheme',
      rules=[(r'kernel', 'W8A9'), (r'.*', None)],
      says='is no scheme',
    ),
  )
  def test_refused_rules(self, rules, says):
    params = {'kernel': _normal(4, 4), 'bias': jnp.ones(4)}
    with self.assertRaisesRegex(ValueError, says):
      jc.quantize(params, rules, uses=in_out.IN_OUT)

  def test_one_program_for_each_shape(self):
    ones = {n: np.ones((7, 5), np.float32) for n in 'abc'}
    params = {**ones, 'd': np.ones((5, 11), np.float32)}
    with jax.log_compiles(), self.assertLogs('jax', 'WARNING') as logs:
      jc.quantize(params, [('.*', 'W8A8')], uses=in_out.IN_OUT)
    compiled = [m for m in logs.output if 'Compiling jit' in m]
    self.assertLen(compiled, 2)

  def test_a_dict_of_rules(self):
    params = {'kernel': _normal(4, 4), 'bias': jnp.ones(4)}
    q = jc.quantize(params, {'kernel': 'W8A8', 'bias': None})
    self.assertIs(q['bias'], params['bias'])

  def test_kinds_of_trees(self):
    w = _normal(4, 4)
    module = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    rules = [(r'.*kernel', jc.W8A8), (r'.*', None)]
    for tree in (
      {'kernel': w},
      flax_core.freeze({'a': {'kernel': w, 'bias': w}}),
      nnx.state(module, nnx.Param),
    ):
      q = jc.quantize(tree, rules, uses=in_out.IN_OUT)
      self.assertIs(type(q), type(tree))
      found = [p for p, x in jc.rules.named_leaves(q) if jc.is_compressed(x)]
      self.assertLen(found, 1)

  def test_a_leaf_is_quantised_by_its_meaning(self):
    w = _normal(8, 4)
    once = jc.quantize({'w': w}, [('w', jc.W8A16)], uses=in_out.IN_OUT)
    again = jc.quantize(once, [('w', jc.W8A16)], uses=in_out.IN_OUT)
    np.testing.assert_allclose(
      again['w'].materialize(), once['w'].materialize(), rtol=1e-2
    )

  def test_every_parameter_of_the_model_that_multiplies_can_be_named(self):
    # Two parameters of one shape, one of them scaled before its product: the
    # rule that names it either compresses it or fails; nothing is left float.
    f = lambda p, x: x @ p['a'] @ (p['b'] * p['s'])
    p = {'a': _normal(4, 4), 'b': _normal(4, 4), 's': jnp.ones((1, 1))}
    uses = jc.uses(f)(p, jnp.ones((2, 4)))
    with self.assertRaisesRegex(ValueError, 'b reaches no dot.*only mul'):
      jc.quantize(p, [(r'[ab]', jc.W8A16), (r'.*', None)], uses)

  def test_embeddings_are_quantised(self):
    embed = nn.Embed(12, 8)
    tokens = jnp.array([[1, 5]])
    params = embed.init(jax.random.key(0), tokens)
    uses = jc.uses(embed.apply)(params, tokens)
    q = jc.quantize(params, [(r'.*', jc.W8A16)], uses)
    leaf = q['params']['embedding']
    self.assertEqual(leaf.scale.shape, (12, 1))
    (met,) = jc.explain(embed.apply)(q, tokens)
    self.assertTrue(met.native)

  @parameterized.parameters(
    # kernel, groups of features, words, scales, what is said of them
    ((5, 5, 1, 6), 6, 'int4 g128', (1, 1, 1, 6), 'int4 channel'),  # depthwise
    ((31, 1, 6), 6, 'int4 g32', (1, 1, 6), 'int4 channel'),
    ((31, 1, 6), 6, 'int4 g16', (2, 1, 6), 'int4 g16'),
    ((1, 7, 4, 6), 1, 'int4 g32', (1, 1, 1, 6), 'int4 channel'),
    ((3, 3, 3, 6), 1, 'int4 g128', (1, 1, 1, 6), 'int4 channel'),
    ((3, 3, 8, 6), 1, 'int4 g32', (3, 1, 1, 6), 'int4 g24'),  # rows of windows
    ((3, 3, 8, 6), 1, 'int4 g8', (3, 3, 1, 6), 'int4 g8'),
    ((3, 3, 8, 6), 1, 'int4 8x8', (3, 3, 1, 1), 'int4 8x6'),
    ((3, 3, 8, 6), 1, 'int4', (1, 1, 1, 6), 'int4 channel'),
    ((3, 3, 64, 6), 1, 'int4 g32', (3, 3, 2, 6), 'int4 g32'),
    ((3, 3, 3, 6), 1, 'int8 32x3', (1, 1, 1, 2), None),
  )
  def test_groups_that_a_kernel_does_not_fill(
    self, shape, groups, words, scale, says
  ):
    numbers = 'NWC WIO NWC' if len(shape) == 3 else 'NHWC HWIO NHWC'
    w = _normal(*shape)
    x = _normal(1, *(8 for _ in shape[:-2]), groups * shape[-2], seed=1)

    def f(p, x):
      return lax.conv_general_dilated(
        x,
        p['w'],
        (1,) * (len(shape) - 2),
        'SAME',
        dimension_numbers=tuple(numbers.split()),
        feature_group_count=groups,
      )

    q = jc.quantize({'w': w}, [('w', words)], jc.uses(f)({'w': w}, x))
    self.assertEqual(q['w'].scale.shape, scale)
    if says:
      self.assertEqual(q['w'].describe(), says)
    np.testing.assert_allclose(
      jax.jit(jc.lift(f))(q, x), f(jc.materialize(q), x), atol=1e-4
    )

  @parameterized.parameters(
    'int8, int8', 'int4 mse', 'int4 mse lsq', 'nf4 g4 dq'
  )
  def test_under_jit(self, words):
    """Of arguments, of constants, and of numpy, in a program that is traced."""
    params = {'w': _normal(8, 4)}

    def codes(params):
      if 'lsq' not in words:
        return jc.quantize(params, [('w', words)], uses=in_out.IN_OUT)
      comp = jc.fake_quantize([('w', words)], uses=in_out.IN_OUT)
      return jc.freeze(comp.apply(params, comp.init(params)))

    want = jax.tree.leaves(codes(params))
    known = {'w': np.asarray(params['w'])}
    for got in (
      jax.jit(codes)(params),
      jax.jit(lambda: codes(params))(),
      jax.jit(lambda: codes(known))(),
    ):
      for a, b in zip(jax.tree.leaves(got), want, strict=True):
        np.testing.assert_allclose(
          np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=1e-6
        )

  def test_known_values_are_checked_under_jit(self):
    lost = {'w': _normal(8, 4).at[1, 2].set(jnp.nan)}
    with self.assertRaisesRegex(ValueError, 'w holds 1 values that are NaN'):
      jax.jit(lambda: jc.quantize(lost, [('w', 'int8')], uses=in_out.IN_OUT))()

  def test_constants_of_a_program_are_not_donated(self):
    params = {'w': _normal(8, 4)}
    q = jax.jit(
      lambda: jc.quantize(
        params, [('w', 'int8')], donate=True, uses=in_out.IN_OUT
      )
    )()
    close = jnp.abs(q['w'].materialize() - params['w']).max()
    self.assertLess(float(close), 0.02)

  def test_abstract(self):
    make = lambda p: jc.quantize(p, [('w', jc.W4A16)], uses=in_out.IN_OUT)
    q = jax.eval_shape(make, {'w': jnp.ones((256, 4))})
    self.assertIsInstance(q['w'], qarray.QArray)
    self.assertEqual(q['w'].shape, (256, 4))
    self.assertEqual(
      [f.name for f in dataclasses.fields(q['w'])][:2], ['qvalue', 'scale']
    )
    given = make({'w': jax.ShapeDtypeStruct((256, 4), jnp.float32)})
    self.assertEqual(jax.tree.leaves(given), jax.tree.leaves(q))
    self.assertEqual(jax.tree.structure(given), jax.tree.structure(q))


if __name__ == '__main__':
  absltest.main()
