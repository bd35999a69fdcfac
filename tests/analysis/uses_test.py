"""Which operations a parameter reaches, and which of its axes are contracted."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import in_out
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import made_weights

import jaxopt_compress as jc
from jaxopt_compress.analysis import uses as uses_lib

DOT, CONV = 'dot_general', 'conv_general_dilated'
X = jnp.ones((4, 6))
IMAGE = jnp.ones((2, 8, 8, 4))


def _conv(rhs, groups=1, dilation=(1, 1)):
  numbers = ('NHWC', rhs, 'NHWC')
  return lambda w, x: lax.conv_general_dilated(
    x,
    w,
    (1, 1),
    'SAME',
    rhs_dilation=dilation,
    dimension_numbers=numbers,
    feature_group_count=groups,
  )


def _conv_1d(w, x):
  return lax.conv_general_dilated(
    x, w, (1,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC')
  )


def _conv_transpose(transpose_kernel):
  return lambda w, x: lax.conv_transpose(
    x,
    w,
    (2, 2),
    'SAME',
    transpose_kernel=transpose_kernel,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _qkv(w, x):
  q, k, v = jnp.split((x @ w.reshape(6, 24)).reshape(4, 3, 8), 3, axis=1)
  return q + k + v


def _scanned(w, x):
  body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
  return lax.scan(body, x, w)[0]


def _rnn(w, x):
  step = lambda h, x: (jnp.tanh(h @ w + x), None)
  return lax.scan(step, jnp.zeros(6), x)[0]


def _tied(w, x):
  h = jnp.take(w, jnp.array([[1, 2]]), axis=0)
  return h @ w.T


def _sharded(w, x):
  mesh = jax.make_mesh((4,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
  f = jax.shard_map(
    lambda w, x: x @ w.reshape(6, -1),
    mesh=mesh,
    in_specs=(P(None, None, 'd'), P()),
    out_specs=P(None, 'd'),
  )
  return f(w, x)


def _gathered(w, x):
  mesh = jax.make_mesh((4,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
  f = jax.shard_map(
    lambda w, x: x @ lax.all_gather(w, 'd', axis=1, tiled=True),
    mesh=mesh,
    in_specs=(P(None, 'd'), P('d')),
    out_specs=P('d'),
  )
  return f(w, x)


# What is met, in program order: (primitive, contracted, stacked).
CASES = dict(
  dense=((6, 8), lambda w, x: x @ w, [(DOT, (-2,), ())]),
  transposed=((8, 6), lambda w, x: x @ w.T, [(DOT, (-1,), ())]),
  left=((8, 6), lambda w, x: w @ x.T, [(DOT, (-1,), ())]),
  both=(
    (6, 6),
    lambda w, x: x @ w + x @ w.T,
    [(DOT, (-2,), ()), (DOT, (-1,), ())],
  ),
  converted=(
    (6, 8),
    lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16),
    [(DOT, (-2,), ())],
  ),
  reshaped=((2, 3, 8), lambda w, x: x @ w.reshape(6, 8), [(DOT, (-3, -2), ())]),
  heads=(
    (6, 2, 4),
    lambda w, x: jnp.einsum('bd,dhk->bhk', x, w),
    [(DOT, (-3,), ())],
  ),
  heads_out=(
    (2, 3, 8),
    lambda w, x: jnp.einsum('bhk,hkd->bd', x.reshape(4, 2, 3), w),
    [(DOT, (-3, -2), ())],
  ),
  einsum_odd_order=(
    (4, 6, 2),
    lambda w, x: jnp.einsum('bd,kdh->hkb', x, w),
    [(DOT, (-2,), ())],
  ),
  per_head=(  # a batch axis of the dot: one weight after the other
    (2, 3, 5),
    lambda w, x: jnp.einsum('bhk,hkd->bhd', x.reshape(4, 2, 3), w),
    [(DOT, (-2,), (-3,))],
  ),
  split_in_two_dots=(
    (6, 8),
    lambda w, x: [x @ half for half in jnp.split(w, 2, axis=1)],
    [(DOT, (-2,), ())],
  ),
  qkv=((6, 3, 8), _qkv, [(DOT, (-3,), ())]),
  sliced=((6, 8), lambda w, x: x @ w[:, 2:4], [(DOT, (-2,), ())]),
  row_of_a_stack=((3, 6, 8), lambda w, x: x @ w[1], [(DOT, (-2,), (-3,))]),
  unstacked=(
    (3, 6, 8),
    lambda w, x: [x @ layer for layer in jnp.unstack(w)],
    [(DOT, (-2,), (-3,))],
  ),
  broadcast=((6, 8), lambda w, x: x[None] @ w[None], [(DOT, (-2,), ())]),
  stopped=((6, 8), lambda w, x: x @ lax.stop_gradient(w), [(DOT, (-2,), ())]),
  scanned=((3, 6, 6), _scanned, [(DOT, (-2,), (-3,))]),
  scan_constant=((6, 6), _rnn, [(DOT, (-2,), ())]),
  vmapped=(
    (4, 6, 8),
    lambda w, x: jax.vmap(jnp.dot)(x, w),
    [(DOT, (-2,), (-3,))],
  ),
  experts=(
    (3, 6, 8),
    lambda w, x: lax.ragged_dot(x, w, jnp.array([1, 1, 2])),
    [('ragged_dot_general', (-2,), (-3,))],
  ),
  branches=(
    (6, 6),
    lambda w, x: lax.cond(x.sum() > 0, lambda: x @ w, lambda: x @ w.T),
    [(DOT, (-1,), ()), (DOT, (-2,), ())],
  ),
  fori=(
    (6, 6),
    lambda w, x: lax.fori_loop(0, 2, lambda i, x: x @ w, x),
    [(DOT, (-2,), ())],
  ),
  jitted=((6, 6), lambda w, x: jax.jit(jnp.dot)(x, w), [(DOT, (-2,), ())]),
  custom_jvp=((6, 8), lambda w, x: jax.nn.relu(x @ w), [(DOT, (-2,), ())]),
  embedding=(
    (9, 6),
    lambda w, x: w[jnp.array([3, 1])],
    [('gather', (-1,), ())],
  ),
  tied=((9, 6), _tied, [('gather', (-1,), ()), (DOT, (-1,), ())]),
  conv=((3, 3, 4, 5), _conv('HWIO'), [(CONV, (-4, -3, -2), ())]),
  conv_odd_numbers=((5, 3, 4, 3), _conv('OWIH'), [(CONV, (-3, -1, -2), ())]),
  conv_depthwise=((3, 3, 1, 8), _conv('HWIO', 4), [(CONV, (-4, -3, -2), ())]),
  conv_1d=((3, 4, 5), _conv_1d, [(CONV, (-3, -2), ())]),
  conv_transpose=(
    (3, 3, 4, 5),
    _conv_transpose(False),
    [(CONV, (-4, -3, -2), ())],
  ),
  conv_transpose_flipped=(
    (3, 3, 5, 4),
    _conv_transpose(True),
    [(CONV, (-4, -3, -1), ())],
  ),
  in_shard_map=((2, 3, 8), _sharded, [(DOT, (-3, -2), ())]),
  gathered_in_shard_map=((6, 8), _gathered, [(DOT, (-2,), ())]),
  bias=((1, 6), lambda w, x: x + w, [('add', (), ())]),
  scaled_first=((6, 8), lambda w, x: x @ (w * 2), [('mul', (), ())]),
  unused=((6, 8), lambda w, x: x, []),
)


class UsesTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_uses(self, name):
    shape, f, expected = CASES[name]
    x = IMAGE if name.split('_')[0] == 'conv' else X
    x = x[:, 0] if name == 'conv_1d' else x
    found = jc.uses(lambda p, x: f(p['w'], x))({'w': jnp.ones(shape)}, x)
    met = [(u.primitive, u.contracted, u.stacked) for u in found['w']]
    self.assertCountEqual(set(met), expected)

  def test_a_parameter_that_is_the_whole_argument(self):
    found = jc.uses(lambda w, x: x @ w)(jnp.ones((6, 8)), X)
    self.assertEqual([u.contracted for u in found['']], [(-2,)])
    q = jc.quantize(jnp.ones((6, 8)), [(r'.*', jc.W8A8)], found)
    self.assertEqual(q.weight.scale.shape, (1, 8))

  def test_source_is_the_line_of_the_model(self):
    found = jc.uses(lambda w, x: jnp.matmul(x, w))(jnp.ones((6, 8)), X)
    self.assertRegex(found[''][0].source, r'uses_test\.py:\d+')

  def test_order_paths_and_abstract_arguments(self):
    f = lambda p, x, *, flag: x @ p['b'] @ p['a'] if flag else x
    p = jax.eval_shape(lambda: {'a': jnp.ones((8, 2)), 'b': jnp.ones((6, 8))})
    found = jc.uses(f)(p, X, flag=True)
    self.assertEqual(list(found), ['a', 'b'])
    self.assertEqual(jc.uses(f)(p, X, flag=False), {'a': (), 'b': ()})

  def test_of_what_a_compressed_leaf_stands_for(self):
    f = lambda p, x: x @ p['w']
    p = {'w': jnp.ones((6, 8))}
    q = jc.quantize(p, [('w', jc.W4A16)], uses=in_out.IN_OUT)
    self.assertEqual(jc.uses(f)(q, X)['w'][0][:3], jc.uses(f)(p, X)['w'][0][:3])

  def test_attention_of_flax_in_a_scan(self):
    class Block(nn.Module):
      @nn.compact
      def __call__(self, x, _):
        return x + nn.MultiHeadDotProductAttention(num_heads=2)(x), None

    blocks = nn.scan(
      nn.remat(Block), {'params': 0}, split_rngs={'params': True}, length=3
    )()
    x = jnp.ones((1, 4, 6))
    params = jax.eval_shape(blocks.init, jax.random.key(0), x, None)
    found = jc.uses(blocks.apply)(params, x, None)
    got = {
      path.split('/')[-2]: [u.contracted for u in us if u.contracted]
      for path, us in found.items()
      if path.endswith('kernel')
    }
    self.assertEqual(
      got,
      {
        'key': [(-3,)],
        'out': [(-3, -2)],
        'query': [(-3,)],
        'value': [(-3,)],
      },
    )
    path = next(p for p in found if p.endswith('out/kernel'))
    axes = uses_lib.axes(path, jnp.ones((3, 2, 3, 6)), found)
    self.assertEqual(axes, ((-3, -2), (-4,), (-1,)))

  def test_gru_cell(self):
    cell = nn.RNN(nn.GRUCell(8))
    x = jnp.ones((2, 5, 6))
    params = jax.eval_shape(cell.init, jax.random.key(0), x)
    for path, found in jc.uses(cell.apply)(params, x).items():
      if path.endswith('kernel'):
        self.assertEqual({u.contracted for u in found}, {(-2,)}, path)


class AxesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    dict(testcase_name='dense', name='dense', want=((-2,), (), (-1,))),
    dict(testcase_name='both ways', name='both', want=((-2, -1), (), ())),
    dict(testcase_name='heads', name='heads', want=((-3,), (), (-2, -1))),
    dict(testcase_name='scan', name='scanned', want=((-2,), (-3,), (-1,))),
    dict(testcase_name='experts', name='experts', want=((-2,), (-3,), (-1,))),
    dict(testcase_name='tied', name='tied', want=((-1,), (), (-2,))),
  )
  def test_from_uses(self, name, want):
    shape, f, _ = CASES[name]
    w = jnp.ones(shape)
    self.assertEqual(uses_lib.axes('', w, jc.uses(f)(w, X)), want)

  @parameterized.named_parameters(
    dict(testcase_name='matrix', shape=(3, 4), want=((-2,), (), (-1,))),
    dict(
      testcase_name='convolution',
      shape=(3, 3, 4, 5),
      want=((-4, -3, -2), (), (-1,)),
    ),
  )
  def test_by_convention(self, shape, want):
    self.assertEqual(uses_lib.axes('a/kernel', jnp.ones(shape), None), want)

  @parameterized.named_parameters(
    dict(testcase_name='embedding', path='embedding', shape=(3, 4)),
    dict(testcase_name='stack', path='kernel', shape=(3, 4, 5)),
    dict(testcase_name='equinox', path='layers/0/weight', shape=(3, 4)),
    dict(testcase_name='haiku', path='linear/w', shape=(3, 4)),
    dict(testcase_name='no name', path='', shape=(3, 4)),
    dict(testcase_name='vector', path='bias', shape=(3,)),
    dict(testcase_name='attention', path='kernel', shape=(2, 4, 5, 6)),
    dict(testcase_name='even window', path='kernel', shape=(2, 2, 5, 6)),
  )
  def test_convention_refuses_what_it_does_not_settle(self, path, shape):
    with self.assertRaisesRegex(
      ValueError, rf'Which axes of {path or "this array"},.*uses='
    ):
      uses_lib.axes(path, jnp.ones(shape), None)

  @parameterized.named_parameters(
    dict(testcase_name='unused', name='unused', says='no operation at all'),
    dict(testcase_name='bias', name='bias', says='only add at .*uses_test'),
    dict(testcase_name='scaled', name='scaled_first', says='only mul at'),
  )
  def test_no_contraction_is_said(self, name, says):
    shape, f, _ = CASES[name]
    found = jc.uses(lambda p, x: f(p['w'], x))({'w': jnp.ones(shape)}, X)
    with self.assertRaisesRegex(ValueError, says):
      uses_lib.axes('w', jnp.ones(shape), found)

  @parameterized.parameters(
    # program, leaves of which a product reads what is computed
    ('weight_norm', {'v', 'g'}),
    ('scanned', {'layers/v', 'layers/g'}),
    ('branches', {'a', 'c'}),
    ('one_plus', set()),  # no product reads a norm
    ('both_ways', set()),  # a product reads it as it is, too
    ('outer_product', set()),  # larger than what it is made of
    ('moved', set()),
  )
  def test_what_a_product_reads_once_it_is_hoisted(self, name, want):
    fun, params, _ = made_weights.PROGRAMS[name]
    used = jc.uses(fun)(params, made_weights.X)
    found = {p for p, met in used.items() if any(u.in_product for u in met)}
    self.assertEqual(found, want)
    for path, leaf in jc.rules.named_leaves(params):
      if any(u.contracted for u in used[path]):
        continue
      with self.assertRaisesRegex(ValueError, 'no dot') as refused:
        uses_lib.axes(path, leaf, used)
      said = 'jc.hoist' in str(refused.exception)
      self.assertEqual(said, path in want, path)

  def test_uses_of_another_tree(self):
    with self.assertRaisesRegex(ValueError, r"no entry for v.*leaves \['w'\]"):
      uses_lib.axes('v', jnp.ones((2, 2)), {'w': ()})

  def test_uses_of_a_leaf_with_more_axes(self):
    w = jnp.ones((4, 4))
    found = jc.uses(lambda p, x: x @ p['w'])({'w': w}, w)
    with self.assertRaisesRegex(ValueError, r'w has shape \(4,\).*axes \[-2\]'):
      uses_lib.axes('w', w[0], found)

  @parameterized.parameters(
    lambda p, uses: jc.quantize(p, [('w', 'int8')], uses),
    lambda p, uses: jc.pack(
      jc.quantize(p, [('w', 'int8')], uses=in_out.IN_OUT), uses, target='cpu'
    ),
    lambda p, uses: jc.prune(p, [('w', jc.Sparsity(0.5))], uses),
    lambda p, uses: jc.adapters.add_lora(
      p, [('w', 1)], uses, key=jax.random.key(0)
    ),
  )
  def test_the_function_that_was_not_called(self, make):
    not_called = jc.uses(lambda p, x: x @ p['w'])
    with self.assertRaisesRegex(ValueError, r'jc\.uses\(apply\)\(params, x\)'):
      make({'w': jnp.eye(4)}, not_called)


if __name__ == '__main__':
  absltest.main()
