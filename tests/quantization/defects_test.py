"""Where quantisation fails in silence, or at all, in systems that are in use.

Each test shows one such failure not to happen. Its docstring says what qwix 0.1.8
did in the same situation, with jax 0.10.2 and flax 0.12.8 on a CPU.
"""

import os
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import in_out
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc

X = jax.random.normal(jax.random.key(0), (4, 32))
W = jax.random.normal(jax.random.key(1), (32, 16)) / np.sqrt(32)
V = jax.random.normal(jax.random.key(2), (32, 16)) / np.sqrt(32)
ASYM = jc.Scheme(
  jc.schemes.Spec('int8', symmetric=False),
  jc.schemes.Spec('int8', 'token', symmetric=False),
)


def quantized(w, scheme='W8A16', uses=in_out.IN_OUT):
  return jc.quantize({'w': w}, [(r'w', scheme)], uses)['w']


def relative(got, want):
  return float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want))


def equations(jaxpr, primitive):
  """The equations of a primitive in a jaxpr and in those inside."""
  found = []
  for e in jaxpr.eqns:
    if e.primitive.name == primitive:
      found.append(e)
    for inside in jax.tree.leaves(
      list(e.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      inside = getattr(inside, 'jaxpr', inside)
      if hasattr(inside, 'eqns'):
        found += equations(inside, primitive)
  return found


def integer_dots(f, *args):
  """How many products of int8 by int8 a function traces to."""
  dots = equations(jax.make_jaxpr(f)(*args).jaxpr, 'dot_general')
  return sum(all(v.aval.dtype == jnp.int8 for v in dot.invars) for dot in dots)


class ProductsTest(parameterized.TestCase):
  @parameterized.product(
    f=(jnp.dot, jnp.matmul, lambda x, w: x @ w),
    float_first=(True, False),
  )
  def test_float_and_quantised_models_do_not_share_programs(
    self, f, float_first
  ):
    """qwix 0.1.8: what was traced first is used for both (float error 0.11)."""
    w = W + 0  # nothing in a cache knows it
    q = quantized(w, 'W8A8')
    run = {'float': lambda: f(X, w), 'quantised': lambda: jc.lift(f)(X, q)}
    names = list(run) if float_first else list(run)[::-1]
    got = {name: run[name]() for name in names}
    exact = np.asarray(X, np.float64) @ np.asarray(w, np.float64)
    self.assertLess(np.abs(got['float'] - exact).max(), 1e-5)
    self.assertBetween(relative(got['quantised'], exact), 1e-3, 2e-2)

  @parameterized.parameters(
    (jnp.matmul,), (lambda x, w: x @ w,), (jnp.dot,), (jnp.inner, True)
  )
  def test_every_way_to_multiply_is_quantised(self, f, transposed=False):
    """qwix 0.1.8: matmul and @ leave the weight as it is, without a word."""
    w = W.T if transposed else W
    q = quantized(w, 'W8A8', jc.uses(lambda p: f(X, p['w']))({'w': w}))
    self.assertIsInstance(q, jc.quantization.QDotArray)
    self.assertEqual(integer_dots(jc.lift(f), X, q), 1)

  def test_transformed_weights_among_others_of_their_shape(self):
    """qwix 0.1.8: `w * v` is left float, unnoticed; three alike are an error."""
    params = {'w': W, 'v': V, 'u': W - V}

    def f(p, x):
      return x @ (p['w'] * 1.5) + x @ p['v'] + x @ jnp.tanh(p['u'] * p['v'])

    q = jc.quantize(params, [(r'.*', jc.W8A16)], uses=in_out.IN_OUT)
    for leaf in q.values():
      self.assertIsInstance(leaf, jc.QArray)
    np.testing.assert_allclose(
      jc.lift(f)(q, X), f(jc.materialize(q), X), rtol=1e-5, atol=1e-5
    )
    self.assertBetween(relative(jc.lift(f)(q, X), f(params, X)), 1e-4, 2e-2)

  def test_activations_are_rounded(self):
    """qwix 0.1.8: its SmoothQuant model has neither a round nor an int8 dot.

    Moving magnitude between activations and weights is left to calibration.
    """
    f = jc.lift(lambda x, w: x @ w)
    q = quantized(W, 'W8A8')
    self.assertEqual(integer_dots(f, X, q), 1)
    jaxpr = jax.make_jaxpr(f)(X, q).jaxpr
    self.assertNotEmpty(equations(jaxpr, 'round'))
    # Smaller than half a step of its token: it makes no difference.
    small = X.at[:, 0].set(10.0)
    nudged = small.at[:, 1].add(1e-4 - small[:, 1])
    zeroed = small.at[:, 1].set(0)
    np.testing.assert_array_equal(f(nudged, q), f(zeroed, q))

  def test_both_operands_asymmetric(self):
    """qwix 0.1.8: ValueError, only one operand can be asymmetric."""
    x, w = X + 0.7, W + 0.1
    f = jc.lift(lambda x, w: x @ w)
    q = quantized(w, ASYM)
    self.assertEqual(integer_dots(f, x, q), 1)
    self.assertLess(relative(f(x, q), x @ w), 1e-2)
    symmetric = quantized(w, 'int8, int8 token')
    self.assertLess(relative(f(x, q), x @ w), relative(f(x, symmetric), x @ w))

  def test_int4_by_int4(self):
    """qwix 0.1.8: XLA refuses to compile it for a CPU."""
    f = jax.jit(jc.lift(lambda x, w: x @ w))
    # The largest entries are positive: -absmax is half way from -7 to -8.
    signs = lambda x, axis: jnp.sign(
      x.max(axis, keepdims=True) + x.min(axis, keepdims=True)
    )
    x, w = X * signs(X, 1), W * signs(W, 0)
    q = quantized(w, 'W4A4')
    self.assertEqual(integer_dots(f, x, q), 1)
    # The largest errors are half steps of 15 levels on either side.
    self.assertLess(relative(f(x, q), x @ w), 0.2)
    got = f(x, q)
    numbers = lambda x, axis: np.clip(
      np.rint(x * 7.5 / np.abs(x).max(axis, keepdims=True)), -8, 7
    )
    x, w = np.asarray(x), np.asarray(w)
    want = numbers(x, 1) @ numbers(w, 0)
    want = want * np.abs(x).max(1, keepdims=True) * np.abs(w).max(0) / 7.5**2
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def _scanned(p, x):
  return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p)[0]


def _conv(p, x):
  return lax.conv_general_dilated(
    x, p, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


class ArraysTest(parameterized.TestCase):
  @parameterized.named_parameters(
    # qwix 0.1.8: AttributeError, TypeError, TypeError, ValueError, ValueError,
    # ValueError.
    ('transposed', lambda w, x: (x @ w) @ w.T, (32, 16), (4, 32)),
    ('scaled', lambda w, x: x @ (w * 2), (32, 16), (4, 32)),
    ('tensordot', lambda w, x: jnp.tensordot(x, w, 1), (32, 16), (4, 32)),
    (
      'three operands',
      lambda w, x: jnp.einsum('bi,ij,bj->b', x, w, x[:, :16]),
      (32, 16),
      (4, 32),
    ),
    ('scanned', _scanned, (3, 32, 32), (4, 32)),
    ('convolution', _conv, (3, 3, 4, 8), (2, 8, 8, 4)),
    ('sliced', lambda w, x: x @ w[:, 3:7] + w[2, 0], (32, 16), (4, 32)),
    ('reshaped', lambda w, x: x @ w.reshape(32, 2, 8)[:, 1], (32, 16), (4, 32)),
    (
      'cast',
      lambda w, x: x @ w.astype(jnp.bfloat16),
      (32, 16),
      (4, 32),
      2**-8,
    ),
  )
  def test_leaves_go_where_arrays_go(self, f, w_shape, x_shape, rounding=1e-6):
    """qwix 0.1.8: all but slices, shapes and casts raise."""
    w = jax.random.normal(jax.random.key(3), w_shape) / np.sqrt(32)
    x = jax.random.normal(jax.random.key(4), x_shape)
    uses = in_out.IN_OUT
    if len(w_shape) > 2:
      uses = jc.uses(lambda p, x: f(p['w'], x))({'w': w}, x)
    q = quantized(w, 'W8A16', uses)
    self.assertIsInstance(q, jc.QArray)
    got = jax.jit(jc.lift(f))(q, x)
    self.assertLess(relative(got, f(jc.materialize(q), x)), rounding)
    self.assertBetween(relative(got, f(w, x)), 1e-4, 2e-2)

  def test_directly(self):
    """qwix 0.1.8: AttributeError and TypeError."""
    q = quantized(W)
    w = jc.materialize(q)
    for got, want in (
      (X @ q, X @ w),
      (q.T, w.T),
      (q.T @ X.T, w.T @ X.T),
      (q * 2, w * 2),
      (2 * q, 2 * w),
      (q[3], w[3]),
      (q.reshape(4, 8, 16), w.reshape(4, 8, 16)),
      (q.astype(jnp.bfloat16), w.astype(jnp.bfloat16)),
    ):
      self.assertEqual((got.shape, got.dtype), (want.shape, want.dtype))
      got = jnp.asarray(jc.materialize(got), jnp.float32)
      np.testing.assert_allclose(
        got, jnp.asarray(want, jnp.float32), rtol=2e-5, atol=2e-5
      )

  @parameterized.named_parameters(
    ('take', lambda w: jnp.take(w, jnp.array([3, 0, 3]), axis=0)),
    ('index', lambda w: w[jnp.array([[3], [0]])]),
    ('lookup', lambda w: w.at[jnp.array([5])].get(mode='fill')),
  )
  def test_embeddings(self, f):
    """qwix 0.1.8: embeddings and `take` stay float32."""
    table = jax.random.normal(jax.random.key(5), (64, 32))
    uses = jc.uses(lambda p: f(p['w']))({'w': table})
    q = quantized(table, 'W8A16', uses)
    np.testing.assert_allclose(
      jc.lift(f)(q), f(jc.materialize(q)), rtol=1e-6, atol=1e-6
    )
    self.assertLess(jc.nbytes(q), 0.3 * table.nbytes)
    # Rows are picked before they are multiplied out.
    picked = equations(jax.make_jaxpr(jc.lift(f))(q).jaxpr, 'gather')
    self.assertIn(jnp.dtype('int8'), {e.invars[0].aval.dtype for e in picked})

  def test_experts(self):
    """qwix 0.1.8: the weights of `ragged_dot` stay float32."""
    w = jax.random.normal(jax.random.key(6), (2, 32, 16))
    f = lambda p, x: lax.ragged_dot(x, p['w'], jnp.array([1, 3]))
    q = jc.quantize({'w': w}, [('w', 'W8A8')], jc.uses(f)({'w': w}, X))
    self.assertIsInstance(q['w'], jc.quantization.QDotArray)
    got = jc.lift(f)(q, X)
    self.assertBetween(relative(got, f({'w': w}, X)), 1e-3, 2e-2)
    want = jnp.concatenate([X[:1] @ w[0], X[1:] @ w[1]])
    self.assertLess(relative(got, want), 2e-2)


class FormatsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('int4 asym', 0.11),
    ('int3', 0.26),
    ('int3 g32 asym', 0.20),
    ('nf4', 0.11),
    ('e2m1 g32 mx', 0.113),
    ('e2m1 g16 nv', 0.11),
  )
  def test_formats_quantise_and_multiply(self, words, bound):
    """qwix 0.1.8: under GPTQ, asymmetric is a ValueError, the rest TypeErrors.

    These are nearest numbers; second-order rounding is left to calibration.
    """
    w = jax.random.normal(jax.random.key(7), (256, 128))
    x = jax.random.normal(jax.random.key(8), (64, 256))
    q = quantized(w, words)
    self.assertLess(relative(q.materialize(), w), bound)
    self.assertLess(relative(jc.lift(jnp.matmul)(x, q), x @ w), bound)

  @parameterized.parameters(1.0, 0.02, 0.005, 0.001, 1e-6)
  def test_nvfp4_at_every_magnitude(self, deviation):
    """qwix 0.1.8: 0.0950, 0.1029, ... and at 0.001 every weight becomes zero."""
    w = deviation * jax.random.normal(jax.random.key(9), (512, 256))
    error = relative(quantized(w, jc.NVFP4.weight).materialize(), w)
    self.assertAlmostEqual(error, 0.095, delta=0.003)

  def test_one_bit_is_plus_and_minus_one(self):
    """qwix 0.1.8: 'int1' leaves nothing of a weight."""
    w = jax.random.normal(jax.random.key(10), (512, 64))
    q = quantized(w, 'binary')
    self.assertEqual(set(np.unique(q.numbers)), {-1, 1})
    np.testing.assert_array_equal(np.sign(q.materialize()), np.sign(w))
    # sqrt(1 - 2 / pi), of a normal.
    self.assertAlmostEqual(relative(q.materialize(), w), 0.603, delta=0.01)


class CalibrationTest(parameterized.TestCase):
  def test_two_contracted_axes_are_seen(self):
    """qwix 0.1.8: of attention's four kernels, `out` collects nothing, unsaid."""
    with jax.numpy_rank_promotion('allow'):
      attention = nnx.MultiHeadAttention(4, 32, decode=False, rngs=nnx.Rngs(0))
    graph, params = nnx.split(attention)
    x = jax.random.normal(jax.random.key(11), (2, 5, 32))

    def f(params, x):
      with jax.numpy_rank_promotion('allow'):
        return nnx.merge(graph, params)(x)

    stats = jc.observe(
      f, [(r'.*kernel.*', jc.statistics.gram()), (r'.*', None)]
    )
    _, seen = stats(params, x)
    jc.analysis.check_seen(seen)
    self.assertLen(seen, 4)
    for observed in seen.values():
      self.assertEqual(observed.state.shape, (32, 32))
      self.assertGreater(np.linalg.eigvalsh(observed.state)[-1], 0)

  def test_two_contracted_axes_are_summed(self):
    """qwix 0.1.8: skipped, and the weight falls back to nearest numbers."""
    w = jax.random.normal(jax.random.key(12), (4, 8, 32))
    h = jax.random.normal(jax.random.key(13), (2, 5, 4, 8))
    f = lambda p, h: jnp.einsum('bthd,hdo->bto', h, p['w'])
    _, seen = jc.observe(f, {'w': jc.statistics.gram()})({'w': w}, h)
    rows = np.asarray(h).reshape(10, 32)
    self.assertEqual(seen['w'].count, 10)
    np.testing.assert_allclose(
      seen['w'].state, rows.T @ rows, rtol=1e-4, atol=1e-4
    )

  def test_attention_is_quantised_whole(self):
    """qwix 0.1.8: calibration under the rule '.*' is a TypeError of einsum."""
    with jax.numpy_rank_promotion('allow'):
      attention = nnx.MultiHeadAttention(4, 32, decode=False, rngs=nnx.Rngs(0))
    graph, params = nnx.split(attention)
    x = jax.random.normal(jax.random.key(11), (2, 5, 32))

    def f(params, x):
      with jax.numpy_rank_promotion('allow'):
        return nnx.merge(graph, params)(x)

    rules = [(r'.*kernel.*', 'W8A8'), (r'.*', None)]
    q = jc.quantize(params, rules, jc.uses(f)(params, x))
    leaves = jax.tree.leaves(q, is_leaf=jc.is_compressed)
    self.assertEqual(sum(map(jc.is_compressed, leaves)), 4)
    self.assertEqual(integer_dots(jc.lift(f), q, x), 4)
    self.assertLess(relative(jc.lift(f)(q, x), f(params, x)), 3e-2)

  def test_statistics_of_batches_are_those_of_all(self):
    """qwix 0.1.8: SmoothQuant averages s and 1/s, whose product is then 2.2.

    The scales themselves are left to calibration.
    """
    f = lambda p, x: x @ p['w']
    chosen = {'w': jc.statistics.absmax()}
    observe = jc.observe(f, chosen)
    batches = [X * s for s in (1.0, 10.0, 100.0)]
    stats = {}
    for x in batches:
      stats = jc.analysis.merge_stats(chosen, stats, observe({'w': W}, x)[1])
    np.testing.assert_array_equal(stats['w'].state, np.abs(X * 100).max(0))
    self.assertEqual(stats['w'].count, 12)


class BytesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('int4', 0.5), ('int2', 0.25), ('int3', 0.375), ('nf4', 0.5), ('e2m1', 0.5)
  )
  def test_codes_share_bytes(self, format, each):
    """qwix 0.1.8: int4 takes a byte a weight: `nbytes`, and on the device."""
    w = jax.random.normal(jax.random.key(14), (1024, 256))
    q = jax.device_put(quantized(w, format))
    self.assertEqual(q.qvalue.nbytes, each * w.size)
    (shard,) = q.qvalue.addressable_shards
    self.assertEqual(shard.data.on_device_size_in_bytes(), each * w.size)
    scales = 4 * 256
    self.assertEqual(jc.nbytes(q), each * w.size + scales)
    program = jax.jit(jc.lift(jnp.matmul)).lower(w.T, q).compile()
    memory = program.memory_analysis()
    self.assertEqual(
      memory.argument_size_in_bytes, w.nbytes + each * w.size + scales
    )
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, 'weights')
      jc.save(path, {'w': q})
      with open(path, 'rb') as f:
        header = 8 + int.from_bytes(f.read(8), 'little')
      self.assertEqual(os.path.getsize(path), each * w.size + scales + header)
      self.assertLess(header, 1000)


if __name__ == '__main__':
  absltest.main()
