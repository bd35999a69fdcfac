"""Moves keep what a leaf stands for, or decline; they are never wrong."""

import random
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import making
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.core import lift
from jaxopt_compress.quantization import formats
from jaxopt_compress.quantization import moves
from jaxopt_compress.quantization import packing
from jaxopt_compress.quantization import qarray


def numpy_leaf(rng, shape, format, shared, axis, group):
  """A QArray of numpy parts with random codes and scales: nothing compiles."""
  codes, scale = (
    list(shape),
    [1 if i - len(shape) in shared else n for i, n in enumerate(shape)],
  )
  tail, packed, blocks = 0, 0, ()
  if group:
    scale[axis] = -(-shape[axis] // group)
    blocks = ((axis, group),) if 1 < group < shape[axis] else ()
  bits = formats.FORMATS[format].bits
  if bits < 8:
    entries, stored = packing.unit(bits)
    tail, packed = -shape[axis] % entries, axis
    codes[axis] = -(-shape[axis] // entries) * stored
    qvalue = rng.integers(0, 256, codes).astype(np.uint8)
  else:
    qvalue = rng.integers(-128, 128, codes).astype(np.int8)
  scale = rng.normal(size=scale).astype(np.float32)
  return qarray.QArray(
    qvalue,
    scale,
    None,
    None,
    None,
    format,
    jnp.dtype(jnp.float32),
    packed,
    tail,
    blocks,
  )


def unpack(payload, bits, axis, tail):
  """`packing.unpack`, in numpy."""
  flat = np.moveaxis(payload, axis, -1)
  each = np.unpackbits(flat, axis=-1, bitorder='little')
  each = each.reshape(*each.shape[:-1], -1, bits)
  codes = (each * 2 ** np.arange(bits)).sum(-1)
  codes = codes[..., : codes.shape[-1] - tail]
  return np.moveaxis(codes, -1, axis)


def meaning(q):
  """materialize, in numpy."""
  codes, scale, bits = q.qvalue, q.scale, q.numbers_format.bits
  if q.packed:
    codes = unpack(codes, bits, q.packed, q.tail)
  if bits < 8:
    codes = codes - 2 ** (bits - 1)
  for axis, size in q.blocks:
    n = codes.shape[axis]
    if scale.shape[axis] > 1:
      scale = scale.repeat(size, axis).take(range(n), axis)
  return codes * scale


def _a_shape_of_size(draw, n):
  shape = []
  while n > 1 and draw.random() < 0.8:
    d = draw.choice([d for d in range(1, n + 1) if n % d == 0])
    shape.append(d)
    n //= d
  shape.append(n)
  if draw.random() < 0.3:
    shape.insert(draw.randrange(len(shape) + 1), 1)
  return tuple(shape)


def _a_leaf(draw, rng):
  shape = tuple(
    draw.choice([1, 2, 3, 4, 6, 8]) for _ in range(draw.randint(1, 4))
  )
  axis = -draw.randint(1, len(shape))
  shared = {a for a in range(-len(shape), 0) if draw.random() < 0.5}
  group = draw.choice([0, 0, 1, 2, 3, 4, 128])
  format = draw.choice(['int8', 'int4', 'int3', 'int6'])
  return numpy_leaf(rng, shape, format, shared | {axis}, axis, group)


class ReshapeTest(parameterized.TestCase):
  @parameterized.parameters(*range(4))
  @mock.patch.object(packing, 'unpack', unpack)
  def test_a_thousand_chains_of_reshapes(self, seed):
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    native = declined = 0
    for _ in range(1000):
      q = _a_leaf(draw, rng)
      want = meaning(q)
      for _ in range(3):
        shape = _a_shape_of_size(draw, want.size)
        told = f'{q.describe()} {q.shape} packed {q.packed} to {shape}'
        q = moves.reshape(q, shape)
        if isinstance(q, lift.Dense):
          declined += 1
          break
        native += 1
        want = want.reshape(shape)
        self.assertEqual(q.shape, shape, told)
        np.testing.assert_array_equal(meaning(q), want, told)
    self.assertGreater(native, 1000)
    self.assertGreater(declined, 200)

  @parameterized.named_parameters(
    # What models do must stay native.
    dict(
      testcase_name='heads of a projection',
      shape=(8, 6),
      group=4,
      axis=-2,
      to=(8, 2, 3),
    ),
    dict(
      testcase_name='heads out merged',
      shape=(2, 8, 6),
      group=4,
      axis=-2,
      to=(16, 6),
    ),
    dict(
      testcase_name='heads out, one group a head',
      shape=(2, 8, 6),
      group=128,
      axis=-2,
      to=(16, 6),
    ),
    dict(
      testcase_name='contracted axis split',
      shape=(8, 6),
      group=4,
      axis=-2,
      to=(2, 4, 6),
    ),
    dict(
      testcase_name='fused qkv', shape=(8, 18), group=4, axis=-2, to=(8, 3, 6)
    ),
    dict(
      testcase_name='a stack of one',
      shape=(8, 6),
      group=4,
      axis=-2,
      to=(1, 8, 6),
    ),
  )
  def test_native(self, shape, group, axis, to):
    rng = np.random.default_rng(0)
    for format in ('int8', 'int4', 'int2'):
      q = numpy_leaf(rng, shape, format, {axis}, axis, group)
      out = moves.reshape(q, to)
      self.assertIsInstance(out, qarray.QArray)
      np.testing.assert_array_equal(meaning(out), meaning(q).reshape(to))

  def test_a_group_may_be_split_over_two_axes(self):
    q = numpy_leaf(np.random.default_rng(0), (8, 6), 'int8', {-2}, -2, 4)
    out = moves.reshape(q, (4, 2, 6))
    self.assertEqual(out.scale.shape, (2, 1, 6))
    np.testing.assert_array_equal(meaning(out), meaning(q).reshape(4, 2, 6))

  @parameterized.named_parameters(
    dict(testcase_name='cuts a group', shape=(12, 6), group=4, to=(2, 6, 6)),
    dict(
      testcase_name='cuts a ragged group', shape=(6, 6), group=4, to=(2, 3, 6)
    ),
    dict(
      testcase_name='merges ragged groups', shape=(2, 6, 6), group=4, to=(12, 6)
    ),
    dict(
      testcase_name='mixes the grouped axis', shape=(8, 6), group=4, to=(48,)
    ),
    dict(testcase_name='to a scalar', shape=(1, 1), group=0, to=()),
  )
  def test_declined(self, shape, group, to):
    q = numpy_leaf(np.random.default_rng(0), shape, 'int8', {-2}, -2, group)
    self.assertIsInstance(moves.reshape(q, to), lift.Dense)


def _sharing(*axes, format='int8', group=0, shape=(4, 6, 8)):
  w = jax.random.normal(jax.random.key(0), shape)
  return making.leaf(w, format, axes, axis=axes[0], group=group)


LEAVES = {
  'channel': _sharing(-2),
  'int4': _sharing(-2, format='int4'),
  'int4 last': _sharing(-1, format='int4'),
  'groups': _sharing(-2, format='int4', group=2),
  'ragged': _sharing(-1, group=3),
  'tensor': _sharing(-2, -1),
  'odd': _sharing(-2, format='int4', shape=(4, 5, 8)),
}
LEAVES['dot'] = qarray.QDotArray(LEAVES['groups'])
# Each: the function, and the leaves for which it stays native.
ALL = set(LEAVES)
MOVES = {
  'transpose': (lambda w, i: w.T, ALL),
  'swap': (lambda w, i: jnp.swapaxes(w, 0, 1), ALL),
  'to bf16': (lambda w, i: w.astype(jnp.bfloat16), ALL),
  'to float8': (lambda w, i: w.astype(jnp.float8_e4m3fn), set()),
  'to int': (lambda w, i: w.astype(jnp.int32), set()),
  'first': (lambda w, i: w[0], ALL),
  'static slice': (lambda w, i: w[1:3], ALL),
  'stride': (lambda w, i: w[1::2], ALL),
  'all, strided': (lambda w, i: w[::2], ALL),
  'columns': (lambda w, i: w[:, :, 2:5], ALL - {'ragged'}),
  'rows': (
    lambda w, i: w[:, 1:3],
    ALL - {'groups', 'dot'},
  ),
  'traced index': (lambda w, i: w[i], ALL),
  'traced slice': (lambda w, i: lax.dynamic_slice_in_dim(w, i, 2), ALL),
  'beyond the end': (lambda w, i: lax.dynamic_slice_in_dim(w, i + 9, 2), ALL),
  'permuting reshape': (
    lambda w, i: lax.reshape(w, (w.shape[1], 8, 4), (1, 2, 0)),
    ALL,
  ),
  'expand': (lambda w, i: w[:, None], ALL),
  'squeeze': (lambda w, i: w[:1].squeeze(0), ALL),
  'split': (
    lambda w, i: jnp.split(w, [1, 3], axis=2),
    ALL - {'ragged'},
  ),
  'broadcast': (lambda w, i: jnp.broadcast_to(w, (2, *w.shape)), ALL),
  'repeat': (lambda w, i: jnp.repeat(w, 2, 0), ALL),
  'unstack': (lambda w, i: jnp.unstack(w, axis=0), ALL),
  'flip': (lambda w, i: jnp.flip(w, (0, 1)), ALL),
  'flip columns': (lambda w, i: jnp.flip(w, 2), ALL - {'ragged'}),
  'empty': (lambda w, i: w[:0], set()),
  'chain': (
    lambda w, i: w[1:].T.reshape(8, -1, 3)[:, None, :, i],
    ALL,
  ),
}


class MovesTest(parameterized.TestCase):
  @parameterized.parameters(*MOVES)
  def test_exact_and_native_where_said(self, name):
    f, native = MOVES[name]
    i = jnp.int32(1)
    got = jax.jit(
      lambda leaves, i: {k: jc.lift(f)(w, i) for k, w in leaves.items()}
    )
    want = jax.jit(
      lambda leaves, i: {k: f(w.materialize(), i) for k, w in leaves.items()}
    )
    got, want = got(LEAVES, i), want(LEAVES, i)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    stays = {
      k for k, w in LEAVES.items() if all(m.native for m in jc.explain(f)(w, i))
    }
    self.assertEqual(stays, native)

  def test_the_other_type_stays_itself(self):
    out = jc.core.lift.rule_for(lax.transpose_p, qarray.QDotArray)(
      LEAVES['dot'], permutation=(2, 1, 0)
    )
    self.assertIsInstance(out, qarray.QDotArray)
    pieces = jc.core.lift.rule_for(lax.split_p, qarray.QDotArray)(
      LEAVES['dot'], sizes=(2, 2), axis=0
    )
    self.assertEqual([p.shape for p in pieces], [(2, 6, 8)] * 2)

  def test_ranges_of_stacked_weights_move_with_them(self):
    # Each of three experts meets numbers ten times as large as the one before.
    w = jax.random.normal(jax.random.key(0), (3, 16, 8))
    x = jax.random.normal(jax.random.key(1), (3, 4, 16))
    x = x * jnp.array([1.0, 10.0, 100.0])[:, None, None]

    def product(w, x):
      return jnp.einsum('etk,ekn->etn', x, w)

    rules = [('', 'int8, int8 tensor static')]
    uses = jc.uses(product)(w, x)
    ranges = jc.calibrate(product, w, rules, [x], uses, 'absmax')
    q = jc.quantize(w, rules, uses, ranges=ranges)
    want = jax.jit(jc.lift(product))(q, x)
    for f in (
      lambda w, x: jnp.stack([x[i] @ w[i] for i in range(3)]),
      lambda w, x: product(w[::-1], x[::-1])[::-1],
      lambda w, x: jnp.stack([a @ b for a, b in zip(x, jnp.unstack(w))]),
      lambda w, x: product(w.reshape(3, 4, 4, 8).reshape(w.shape), x),
    ):
      got = jax.jit(jc.lift(f, strict=True))(q, x)
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)

  def test_vmap_of_a_slice_of_two(self):
    # Two int4 rows share a byte: one of them alone cannot be cut out.
    q = _sharing(-2, format='int4', shape=(2, 4))
    f = lambda w: w[:1] + 0
    np.testing.assert_array_equal(jc.lift(f)(q), f(q.materialize()))


if __name__ == '__main__':
  absltest.main()
