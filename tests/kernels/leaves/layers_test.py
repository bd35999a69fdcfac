"""Layers that loops leave where they lie: the same numbers, and no copies."""

import re

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.kernels.cpu import native
from jaxopt_compress.kernels.leaves import layers

_LAYERS, _WIDTH, _HIDDEN = 3, 64, 160
X = jax.random.normal(jax.random.key(5), (5, _WIDTH))


def _weights(key):
  def normal(i, *shape):
    return 0.1 * jax.random.normal(jax.random.fold_in(key, i), shape)

  return {
    'gate': normal(0, _LAYERS, _WIDTH, _HIDDEN),
    'up': normal(1, _LAYERS, _WIDTH, _HIDDEN),
    'down': normal(2, _LAYERS, _WIDTH, _HIDDEN),  # met from its other side
    'bias': normal(3, _LAYERS, 1, _HIDDEN),
  }


PARAMS = _weights(jax.random.key(0))


def layer(h, p):
  middle = jax.nn.silu(h @ p['gate'] + p['bias']) * (h @ p['up'])
  return h + middle @ p['down'].T


def looped(p, x, **how):
  return jax.lax.scan(lambda h, p: (layer(h, p), h), x, p, **how)


def unrolled(p, x):
  before = []
  for i in range(_LAYERS):
    before.append(x)
    x = layer(x, jax.tree.map(lambda leaf, i=i: leaf[i], p))
  return x, jnp.stack(before)


def packed(words):
  uses = jc.uses(looped)(PARAMS, X)
  q = jc.quantize(PARAMS, [('bias', None), ('.*', words)], uses)
  return jc.pack(q, uses, target='cpu')


class LayersTest(parameterized.TestCase):
  def assert_equal(self, got, want):
    # Sums of what XLA computes beside the products may have another order.
    for y, z in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-5)

  @parameterized.parameters(
    'W8A8', 'W4A8', 'W8A16', 'W4A16', 'int4 g32 mx, int8', 'int4 g32 asym'
  )
  def test_a_loop_is_the_layers_one_by_one(self, words):
    words = getattr(jc, words, words)
    p, each = packed(words), jax.jit(jc.lift(unrolled))
    for f in (looped, jax.jit(looped), lambda p, x: looped(p, x, unroll=2)):
      self.assert_equal(jax.jit(jc.lift(f))(p, X), each(p, X))

  def test_from_the_last(self):
    p = packed(jc.W8A8)
    turned = jax.tree.map(lambda a: a[::-1], p)
    backwards = jax.jit(jc.lift(lambda p, x: looped(p, x, reverse=True)[0]))
    forwards = jax.jit(jc.lift(lambda p, x: looped(p, x)[0]))
    self.assert_equal(backwards(p, X), forwards(turned, X))

  @parameterized.parameters('vmap', 'grad', 'remat', 'no layers')
  def test_under_transformations(self, how):
    p = packed(jc.W8A8)
    if how == 'no layers':
      p = jax.tree.map(lambda a: a[:0], p)
      self.assert_equal(jc.lift(looped)(p, X)[0], X)
      return
    transform = {
      'vmap': lambda f: jax.vmap(f, (None, 0)),
      'grad': lambda f: jax.grad(lambda p, x: f(p, x)[0].sum(), 1),
      'remat': lambda f: jax.grad(
        lambda p, x: jax.checkpoint(f)(p, x)[0].sum(), 1
      ),
    }[how]
    x = jnp.stack([X, 2 * X]) if how == 'vmap' else X
    got, want = (
      jax.jit(transform(jc.lift(f)))(p, x) for f in (looped, unrolled)
    )
    self.assert_equal(got, want)

  def test_loops_in_loops(self):
    p = packed(jc.W8A8)

    def twice(p, x):
      turn = lambda x, _: (looped(p, x)[0], None)
      return jax.lax.scan(turn, x, None, length=2)[0]

    once = jax.jit(jc.lift(lambda p, x: unrolled(p, x)[0]))
    want = once(p, once(p, X))
    self.assert_equal(jax.jit(jc.lift(twice))(p, X), want)

  def test_weights_that_a_loop_returns(self):
    p = packed(jc.W8A8)
    f = lambda p, x: jax.lax.scan(lambda h, p: (layer(h, p), p['up'].T), x, p)[
      1
    ]
    got = jc.materialize(jax.jit(jc.lift(f))(p, X))
    np.testing.assert_array_equal(got, jc.materialize(p['up']).swapaxes(1, 2))

  def test_a_branch_returns_one_layer(self):
    p = packed(jc.W8A8)

    def f(p, x):
      def turn(h, p):
        up = jax.lax.cond(h.sum() > 0, lambda w: w, lambda w: w, p['up'])
        return layer(h, p | {'up': up}), None

      return jax.lax.scan(turn, x, p)[0]

    self.assert_equal(jax.jit(jc.lift(f))(p, X), jc.lift(looped)(p, X)[0])
    stack = p['up'].payload.nbytes
    run = jax.jit(jc.lift(f)).lower(p, X).compile()
    self.assertLess(run.memory_analysis().temp_size_in_bytes, stack)

  def test_shard_map_in_a_loop(self):
    p = packed(jc.W8A8)
    spec = jax.sharding.PartitionSpec()
    mesh = jax.make_mesh(
      (1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
    )
    each = jax.shard_map(layer, mesh=mesh, in_specs=spec, out_specs=spec)
    f = lambda p, x: jax.lax.scan(lambda h, p: (each(h, p), None), x, p)[0]
    want = jax.jit(jc.lift(unrolled))(p, X)[0]
    self.assert_equal(jax.jit(jc.lift(f))(p, X), want)

  def test_no_weight_is_copied(self):
    if not native.available():
      self.skipTest('needs the CPU kernels')
    run = jax.jit(jc.lift(looped)).lower(packed(jc.W8A8), X).compile()
    cut = re.findall(r'= u8\[[\d,]*\]\S* (\S*)\(', run.as_text())
    self.assertNotEmpty(cut)  # the weights themselves
    of_them = {'parameter', 'get-tuple-element', 'bitcast'}
    self.assertContainsSubset(set(cut), of_them)

  @parameterized.parameters(0, 2, -1)
  def test_stands_for_one(self, i):
    p = packed(jc.W4A8)
    leaf = p['gate'].entry(jnp.int32(i))
    self.assertIsInstance(leaf.payload, layers.Layer)
    self.assertEqual(leaf.shape, (_WIDTH, _HIDDEN))
    np.testing.assert_array_equal(
      leaf.materialize(), p['gate'].materialize()[i]
    )
    self.assertEqual(leaf.describe(), p['gate'].describe())


class CallTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    if not native.available():
      self.skipTest('needs the CPU kernels')

  def call(self, whole, layer):
    weight = native.Weight(
      whole, jnp.ones((1, 32)), 32, layer=layer, rounding=native.Rounding()
    )
    return native.matmuls(X, [weight], format='int8', k=_WIDTH, group=_WIDTH)

  @parameterized.parameters((0, 0), (2, 2), (-1, 2), (7, 2), (-9, 0))
  def test_indexes_as_arrays_do(self, index, entry):
    whole = jax.random.randint(jax.random.key(1), (3, 1, 16, 128), 0, 256)
    whole = whole.astype(jnp.uint8)
    (got,) = self.call(whole, jnp.int32(index))
    (want,) = self.call(whole[entry], None)
    np.testing.assert_array_equal(got, want)

  def test_one_for_each_of_a_stack(self):
    whole = jax.random.randint(jax.random.key(1), (3, 1, 16, 128), 0, 256)
    whole = whole.astype(jnp.uint8)
    of = jax.vmap(lambda i: self.call(whole, i)[0])
    got = of(jnp.int32([2, 0]))
    np.testing.assert_array_equal(got[0], self.call(whole[2], None)[0])
    np.testing.assert_array_equal(got[1], self.call(whole[0], None)[0])

  @parameterized.parameters(
    ((3, 2, 16, 128), jnp.int32(0)), ((3, 1, 16, 128), jnp.float32(0))
  )
  def test_refuses(self, shape, layer):
    with self.assertRaisesRegex(Exception, 'do not fit'):
      jax.block_until_ready(self.call(jnp.zeros(shape, jnp.uint8), layer))


if __name__ == '__main__':
  absltest.main()
