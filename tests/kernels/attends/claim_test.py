"""Attention is found in programs, and computed as they do."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import structural
from jaxopt_compress.kernels import flow
from jaxopt_compress.kernels.attends import claim
from jaxopt_compress.kernels.attends import match
from tests.kernels.attends import programs


def _flat(f, *args):
  """The program of a function, without the jits of JAX's own."""
  jaxpr = jax.make_jaxpr(f)(*args).jaxpr
  return jaxprs.flattened(jaxpr, structural.plain_body)


def _beside_a_leaf(f):
  """(f with a packed leaf in its program, the leaf)."""
  w = {'kernel': programs.normal(9, 32, 16)}

  def both(w, *args):
    return f(*args), jnp.ones((1, 32)) @ w['kernel']

  uses = jc.uses(lambda w: jnp.ones((1, 32)) @ w['kernel'])(w)
  q = jc.quantize(w, [('kernel', 'int8')], uses)
  return both, jc.pack(q, uses, target='cpu')


def _assert_close(got, want, within):
  def close(a, b):
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    np.testing.assert_allclose(a, b, rtol=0, atol=within)

  jax.tree.map(close, got, want)


def _lies(found, name):
  seen = found.out if name == 'out' else getattr(found, name).seen
  flat = found.parts.flat(seen.layout)
  return found.roles.order(name, flat) is not None


class ClaimTest(parameterized.TestCase):
  @parameterized.parameters(*programs.PROGRAMS)
  def test_what_is_found(self, name):
    p = programs.PROGRAMS[name]
    jaxpr = _flat(p.run, *p.args)
    claims = claim.find(jaxpr, {})
    self.assertLen(claims, 1)
    if p.why:
      self.assertIn(p.why, claims[0].run(None).reason)
      return
    (a,) = match.find(flow.Flow(jaxpr))
    v = a.visible
    moved = [n for n in ('query', 'key', 'value', 'out') if not _lies(a, n)]
    self.assertEqual(tuple(moved), p.moved)
    self.assertEqual(
      (v.right, v.left, len(v.lengths)), (p.right, p.left, p.lengths)
    )
    self.assertEqual(tuple(m.v.aval.shape for m, _ in v.masks), p.masks)

  @parameterized.parameters(*programs.PROGRAMS)
  def test_computes_the_same(self, name):
    p = programs.PROGRAMS[name]
    f, leaf = _beside_a_leaf(p.run)
    got, _ = jax.jit(jc.lift(f))(leaf, *p.args)
    _assert_close(got, jax.jit(p.run)(*p.args), p.within)

  @parameterized.parameters(*programs.PROGRAMS)
  def test_is_told(self, name):
    p = programs.PROGRAMS[name]
    f, leaf = _beside_a_leaf(p.run)
    (met,) = [m for m in jc.explain(f)(leaf, *p.args) if not m.path]
    self.assertEqual((met.primitive, met.native), ('attention', not p.why))
    self.assertIn(p.why, met.reason)
    self.assertNotEmpty(met.source)
    # Nothing becomes dense by it.
    jax.eval_shape(jc.lift(f, strict=True), leaf, *p.args)


class RoundedTest(parameterized.TestCase):
  """Products that `quantize_activations` rounds are left to XLA, and that is told."""

  @parameterized.product(
    words=['int8', 'int8 tensor', 'int4', 'e4m3', 'e2m1 g4 nv'],
    scope=['.*', '.*hqk/', '.*qhd/'],
  )
  def test_is_what_is_multiplied(self, words, scope):
    run = jc.quantization.quantize_activations(
      _scoped, [(f'{scope}dot_general', words)]
    )
    f, leaf = _beside_a_leaf(run)
    args = _Q, _K, _V
    got, _ = jax.jit(jc.lift(f))(leaf, *args)
    want = jax.jit(run)(*args)
    _assert_close(got, want, 1e-6)
    far = float(jnp.abs(want - _scoped(*args)).max())
    self.assertGreater(far, 1e-4)
    met = [m for m in jc.explain(f)(leaf, *args) if not m.path]
    self.assertNotEmpty(met)
    self.assertFalse(any(m.native for m in met))

  def test_int8_is_told_by_name(self):
    run = jc.quantization.quantize_activations(
      _scoped, [('.*dot_general', 'int8')]
    )
    f, leaf = _beside_a_leaf(run)
    met = [m for m in jc.explain(f)(leaf, _Q, _K, _V) if not m.path]
    self.assertLen(met, 2)
    for m in met:
      self.assertIn('both operands are rounded to int8', m.reason)

  def test_rules_around_a_lifted_program_are_refused(self):
    f, leaf = _beside_a_leaf(_scoped)
    for rule in ('.*dot_general', '.*hqk.*dot_general'):
      run = jc.quantization.quantize_activations(jc.lift(f), [(rule, 'int8')])
      with self.assertRaisesRegex(ValueError, 'Put rules inside of lift'):
        run(leaf, _Q, _K, _V)

  def test_what_a_program_casts_to_eight_bits_stays_rounded(self):
    def run(q, k, v):
      weights = jax.nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', q, k))
      weights = weights.astype(jnp.float8_e4m3fn).astype(jnp.float32)
      return jnp.einsum('bhqk,bkhd->bqhd', weights, v)

    f, leaf = _beside_a_leaf(run)
    got, _ = jax.jit(jc.lift(f))(leaf, _Q, _K, _V)
    _assert_close(got, jax.jit(run)(_Q, _K, _V), 1e-6)


_Q, _K, _V = programs.Q, programs.K, programs.V


def _scoped(q, k, v):
  weights = jax.nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', q, k))
  return jnp.einsum('bhqk,bkhd->bqhd', weights, v)


def _causal(q, k, v):
  return jax.nn.dot_product_attention(q, k, v, is_causal=True)


class TransformsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.f, self.leaf = _beside_a_leaf(_causal)
    self.lifted = lambda *args: jc.lift(self.f)(self.leaf, *args)[0]

  def test_grad(self):
    def loss(f):
      return jax.jit(jax.grad(lambda *a: (f(*a) ** 2).sum(), (0, 1, 2)))

    want = loss(_causal)(_Q, _K, _V)
    _assert_close(loss(self.lifted)(_Q, _K, _V), want, 1e-5)

  def test_vmap(self):
    args = [jnp.stack([x, 2 * x]) for x in (_Q, _K, _V)]
    got = jax.jit(jax.vmap(self.lifted))(*args)
    _assert_close(got, jax.vmap(_causal)(*args), 2e-6)

  def test_vmap_of_keys_alone(self):
    keys = jnp.stack([_K, 2 * _K])
    axes = (None, 0, None)
    got = jax.jit(jax.vmap(self.lifted, axes))(_Q, keys, _V)
    _assert_close(got, jax.vmap(_causal, axes)(_Q, keys, _V), 2e-6)

  def test_scan(self):
    def turn(leaf, x):
      y, _ = self.f(leaf, x, _K, _V)
      return y, y.sum()

    def run(leaf):
      return jax.lax.scan(lambda x, _: turn(leaf, x), _Q, None, 3)

    want = run({'kernel': jnp.ones((32, 16))})
    _assert_close(jax.jit(jc.lift(run))(self.leaf), want, 1e-5)

  def test_remat(self):
    def loss(leaf, *args):
      y, z = jax.checkpoint(self.f)(leaf, *args)
      return (y**2).sum() + z.sum()

    dense = {'kernel': jnp.ones((32, 16))}
    want = jax.grad(loss, 1)(dense, _Q, _K, _V)
    got = jax.jit(jax.grad(lambda *a: jc.lift(loss)(self.leaf, *a)))
    _assert_close(got(_Q, _K, _V), want, 1e-5)

  @parameterized.parameters(True, False)
  def test_shard_map(self, check_vma):
    mesh = jax.make_mesh(
      (2,),
      ('x',),
      axis_types=(jax.sharding.AxisType.Auto,),
      devices=jax.devices()[:2],
    )
    spec = jax.P('x')
    run = jax.shard_map(
      self.f,
      mesh=mesh,
      in_specs=(jax.P(), spec, spec, spec),
      out_specs=(spec, jax.P()),
      check_vma=check_vma,
    )
    got, _ = jax.jit(jc.lift(run))(self.leaf, _Q, _K, _V)
    _assert_close(got, _causal(_Q, _K, _V), 2e-6)


class MaskedTest(parameterized.TestCase):
  @parameterized.parameters(-np.inf, np.finfo(np.float32).min, -1e9)
  def test_a_query_that_sees_nothing(self, masked):
    # All keys of the first sentence are padding.
    seen = jnp.array([[False] * 7, [True] * 7])[:, None, None]

    def run(q, k, v):
      s = jnp.where(seen, jnp.einsum('bqhd,bkhd->bhqk', q, k), masked)
      return jnp.einsum('bhqk,bkhd->bqhd', jax.nn.softmax(s), v)

    f, leaf = _beside_a_leaf(run)
    got, _ = jax.jit(jc.lift(f))(leaf, _Q, _K, _V)
    _assert_close(got, run(_Q, _K, _V), 2e-6)

  @parameterized.parameters('int32', 'uint32', 'int8')
  def test_lengths_far_beyond_all_keys(self, dtype):
    # By the axis of the batch: the largest number there is, and a small one.
    last = jnp.array([jnp.iinfo(dtype).max, 3], dtype)[:, None, None, None]

    def run(q, k, v, last):
      s = jnp.einsum('bqhd,bkhd->bhqk', q, k)
      s = jnp.where(
        jnp.arange(7, dtype=dtype)[None, None, None] <= last, s, -1e9
      )
      return jnp.einsum('bhqk,bkhd->bqhd', jax.nn.softmax(s), v)

    args = _Q, _K, _V, last
    (a,) = match.find(flow.Flow(_flat(run, *args)))
    self.assertLen(a.visible.lengths, 1)
    f, leaf = _beside_a_leaf(run)
    got, _ = jax.jit(jc.lift(f))(leaf, *args)
    _assert_close(got, run(*args), 2e-6)


class LayersTest(parameterized.TestCase):
  def test_keys_and_values_of_different_layers(self):
    # The raw index is cut off at the first layer, the other counts from the end.
    caches = jnp.stack([_K, _K + 1]), jnp.stack([_V, 2 - _V])

    def run(q, keys, values, i):
      k = jax.lax.dynamic_slice(
        keys, (i, 0, 0, 0, 0), (1, *_K.shape), allow_negative_indices=False
      )[0]
      weights = jax.nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', q, k))
      return jnp.einsum('bhqk,bkhd->bqhd', weights, values[i])

    args = _Q, *caches, jnp.int32(-1)
    (a,) = match.find(flow.Flow(_flat(run, *args)))
    self.assertIsNone(a.layer)
    f, leaf = _beside_a_leaf(run)
    got, _ = jax.jit(jc.lift(f))(leaf, *args)
    _assert_close(got, run(*args), 2e-6)


if __name__ == '__main__':
  absltest.main()
