"""Losses of logits that are formed in blocks, beside those of all logits."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from positions_of_logits import kl_oracle
from positions_of_logits import log_softmax

import jaxopt_compress as jc
from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation.losses import Logits

B, T, D, E, V = 4, 6, 5, 3, 11
P = jax.P


def operands(dtype=jnp.float32):
  """Hidden states and kernels of a student and of a teacher, labels, a mask."""
  keys = jax.random.split(jax.random.key(0), 6)
  shapes = (B, T, D), (D, V), (B, T, E), (E, V)
  h, w, th, tw = (
    (2 * jax.random.normal(k, s)).astype(dtype)
    for k, s in zip(keys, shapes, strict=False)
  )
  labels = jax.random.randint(keys[4], (B, T), 0, V)
  mask = jnp.round(2 * jax.random.uniform(keys[5], (B, T)), 1)
  return h, w, th, tw, labels, mask.at[0, :2].set(0)


def dense_distill(h, w, th, tw, labels, mask):
  return losses.distill(
    h @ w, th @ tw, labels, alpha=0.3, temperature=2.0, mask=mask
  )


def chunked_distill(h, w, th, tw, labels, mask, chunk=8):
  return losses.chunked(losses.distill, chunk=chunk)(
    Logits(h, w), Logits(th, tw), labels, alpha=0.3, temperature=2.0, mask=mask
  )


def assert_close(got, want, rtol=1e-5):
  """Equal up to `rtol` of the largest entry of each leaf."""
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=rtol * float(np.abs(b).max()) + 1e-7
    ),
    got,
    want,
  )


WANT = jax.jit(jax.value_and_grad(dense_distill, (0, 1, 2, 3), has_aux=True))


class ChunkedTest(parameterized.TestCase):
  @parameterized.parameters(1, 3, 8, 24, None)
  def test_value_and_gradients(self, chunk):
    f = functools.partial(chunked_distill, chunk=chunk)
    got = jax.jit(jax.value_and_grad(f, (0, 1, 2, 3), has_aux=True))(
      *operands()
    )
    assert_close(got, WANT(*operands()))

  def test_against_numpy(self):
    h, w, th, tw, _, mask = (np.asarray(x, np.float64) for x in operands())
    s, t, h = h @ w, th @ tw, np.asarray(h)
    f = lambda h, w: losses.chunked(losses.kl, chunk=5)(
      Logits(h, w), Logits(th, tw), temperature=2.0, mask=mask
    )
    args = jax.tree.map(jnp.float32, (h, w))
    th, tw, mask = (jnp.float32(x) for x in (th, tw, mask))
    (total, count), grads = jax.value_and_grad(f, (0, 1), has_aux=True)(*args)
    weights = np.asarray(mask, np.float64)
    np.testing.assert_allclose(
      total, (weights * kl_oracle(s, t, 2.0)).sum(), rtol=1e-5
    )
    np.testing.assert_allclose(count, weights.sum(), rtol=1e-6)
    q, p = (np.exp(log_softmax(x / 2)) for x in (s, t))
    of_logits = 2 * (q - p) * weights[..., None]
    assert_close(
      grads, (of_logits @ w.T, np.einsum('btd,btv->dv', h, of_logits))
    )

  @parameterized.named_parameters(
    ('reverse', losses.reverse_kl, lambda t: (t,)),
    ('mse', losses.mse, lambda t: (t,)),
    ('top k', losses.topk_kl, lambda t: losses.tail.compress(t, 4)),
  )
  def test_any_loss(self, loss, targets):
    h, w, th, tw, _, mask = operands()
    rest = targets(th @ tw)
    got, want = (
      jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(h, w)
      for f in (
        lambda h, w: losses.chunked(loss, chunk=8)(
          Logits(h, w), *rest, mask=mask
        ),
        lambda h, w: loss(h @ w, *rest, mask=mask),
      )
    )
    assert_close(got, want)

  def test_arguments_by_name(self):
    h, w, th, tw, _, mask = operands()
    names = 'ids', 'log_probs', 'log_tail'
    kept = losses.tail.compress(th @ tw, 4)
    loss = losses.chunked(losses.topk_kl, chunk=8)
    got = loss(Logits(h, w), mask=mask, **dict(zip(names, kept, strict=True)))
    assert_close(got, losses.topk_kl(h @ w, *kept, mask=mask))

  def test_tied_with_a_bias_and_a_soft_cap(self):
    h, w, _, _, labels, mask = operands()
    b = jnp.arange(V) / 4.0

    def chunked(h, table, b):
      logits = Logits(h, table, b, tied=True, soft_cap=3.0)
      return losses.chunked(losses.cross_entropy, chunk=8)(
        logits, labels, mask=mask
      )

    def dense(h, table, b):
      logits = 3 * jnp.tanh((h @ table.T + b[None, None]) / 3)
      return losses.cross_entropy(logits, labels, mask)

    got, want = (
      jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(h, w.T, b)
      for f in (chunked, dense)
    )
    assert_close(got, want)

  def test_traced_options_have_their_gradients(self):
    h, w, th, tw, labels, mask = operands()

    def f(logits, loss, options):
      return loss(*logits, labels, mask=mask, **options)[0]

    pair = Logits(h, w), Logits(th, tw)
    options = dict(alpha=jnp.float32(0.3), temperature=jnp.float32(2))
    got = jax.jit(jax.grad(f, 2), static_argnums=1)(
      pair, losses.chunked(losses.distill, chunk=8), options
    )
    want = jax.jit(jax.grad(f, 2), static_argnums=1)(
      tuple(x.form() for x in pair), losses.distill, options
    )
    assert_close(got, want)

  def test_bfloat16_sums_in_float32(self):
    # One token a block: 24 gradients of the kernel are added, none of them lost.
    args = operands(jnp.bfloat16)
    f = functools.partial(chunked_distill, chunk=1)
    (total, _), (of_hidden, of_kernel, *_) = jax.jit(
      jax.value_and_grad(f, (0, 1, 2, 3), has_aux=True)
    )(*args)
    self.assertEqual(total.dtype, jnp.float32)
    self.assertEqual(of_kernel.dtype, jnp.bfloat16)
    (want, _), (want_hidden, want_kernel, *_) = WANT(*args)
    np.testing.assert_allclose(total, want, rtol=1e-5)
    wide = functools.partial(jax.tree.map, np.float32)
    assert_close(
      wide([of_hidden, of_kernel]), wide([want_hidden, want_kernel]), 0.01
    )

  def test_masked_nan_and_padding_are_harmless(self):
    h, w, th, tw, labels, mask = operands()
    h = h.at[0, 0].set(jnp.nan)
    th = th.at[0, 1].set(jnp.nan)
    labels = labels.at[0, :2].set(-1)
    f = functools.partial(chunked_distill, chunk=5)
    got = jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(
      h, w, th, tw, labels, mask
    )
    (value, aux), grads = WANT(*operands())
    assert_close((got[0], got[1][1]), ((value, aux), grads[1]))
    self.assertTrue(np.isfinite(got[1][0]).all())


class TransformedTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('vmap', lambda f: jax.vmap(f, (0, None, 0, None, 0, 0))),
    ('checkpoint', jax.checkpoint),
    ('scan', lambda f: lambda *a: scanned(f, *a)),
    ('shard_map', lambda f: lambda *a: sharded(f, True, *a)),
    ('shard_map, unchecked', lambda f: lambda *a: sharded(f, False, *a)),
  )
  def test_gradient(self, transform):
    f = transform(lambda *args: chunked_distill(*args)[0])
    grad = jax.grad(lambda *args: jnp.sum(f(*args)), (0, 1))
    assert_close(jax.jit(grad)(*operands()), WANT(*operands())[1][:2])

  def test_second_derivative(self):
    args = operands()

    def curved(f):
      inner = jax.grad(lambda w: f(args[0], w, *args[2:])[0])
      return jax.jit(jax.grad(lambda w: jnp.sum(inner(w) ** 2)))(args[1])

    assert_close(curved(chunked_distill), curved(dense_distill))

  def test_compressed_heads(self):
    h, w, th, tw, labels, mask = operands()
    params = {'head': w}
    q = jc.quantize(
      params,
      [('head', jc.W8A16)],
      uses=jc.uses(lambda p, x: x @ p['head'])(params, h),
    )
    dense = jc.materialize(q)
    want = jax.grad(
      lambda h: dense_distill(h, dense['head'], th, tw, labels, mask)[0]
    )(h)
    f = lambda p, h: chunked_distill(h, p['head'], th, tw, labels, mask)[0]
    for g in (f, jc.lift(f)):
      assert_close(jax.jit(jax.grad(g, 1))(q, h), want)


def scanned(f, h, w, th, tw, labels, mask):
  @jax.checkpoint
  def body(total, x):
    h, th, labels, mask = x
    return total + f(h, w, th, tw, labels, mask), None

  return jax.lax.scan(body, 0.0, (h, th, labels, mask))[0]


def sharded(f, check, *args):
  mesh = jax.make_mesh(
    (4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  data = P('data')
  return jax.shard_map(
    lambda *args: jax.lax.psum(f(*args), 'data'),
    mesh=mesh,
    in_specs=(data, P(), data, P(), data, data),
    out_specs=P(),
    check_vma=check,
  )(*args)


class DevicesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    # where hidden states and kernels lie; what crosses devices
    ('data', P('data'), P(), ('all-reduce',)),
    ('vocabulary', P(), P(None, 'data'), ('all-reduce',)),
  )
  def test_logits_stay_where_they_are(self, rows, kernels, crosses):
    mesh = jax.make_mesh(
      (4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
    )
    h, w, th, tw, _, mask = operands()
    w, tw = w[:, :8], tw[:, :8]
    args = [
      jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
      for x, spec in ((h, rows), (w, kernels), (th, rows), (tw, kernels))
    ]

    def f(h, w, th, tw):
      loss = losses.chunked(losses.kl, chunk=8)
      return loss(Logits(h, w), Logits(th, tw), mask=mask)[0]

    compiled = jax.jit(jax.grad(f, (0, 1))).lower(*args).compile()
    text = compiled.as_text()
    for name in (
      'all-gather',
      'all-to-all',
      'collective-permute',
      'all-reduce',
    ):
      self.assertEqual(f'{name}(' in text, name in crosses, name)
    want = jax.grad(
      lambda h, w: losses.kl(h @ w, th @ tw, mask=mask)[0], (0, 1)
    )
    assert_close(compiled(*args), want(h, w))


class MemoryTest(absltest.TestCase):
  def test_memory_is_flat(self):
    # What XLA reserves beside arguments and results; nothing is run.
    def temporary(positions, classes, loss):
      shapes = (positions, 8), (8, classes), (positions, 8), (8, classes)
      args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
      grad = jax.jit(jax.grad(lambda *a: loss(*a)[0], (0, 1)))
      return grad.lower(*args).compile().memory_analysis().temp_size_in_bytes

    def chunked(h, w, th, tw):
      loss = losses.chunked(losses.kl, chunk=2**20 // w.shape[1])
      return loss(Logits(h, w), Logits(th, tw))

    def dense(h, w, th, tw):
      return losses.kl(h @ w, th @ tw)

    small = temporary(2**10, 2**14, chunked)
    self.assertLess(small, 0.15 * temporary(2**10, 2**14, dense))
    for positions, classes in ((2**12, 2**14), (2**10, 2**16)):
      # Positions and kernels have gradients, of 8 numbers each.
      grown = 3 * 4 * 8 * (positions + classes)
      self.assertLess(temporary(positions, classes, chunked), small + grown)


class RefusedTest(absltest.TestCase):
  def test_what_does_not_fit(self):
    h, w, th, tw, labels, mask = operands()
    loss = losses.chunked(losses.cross_entropy)
    for args, weights, message in (
      ((h @ w, labels), None, 'None of the 2 .* cross_entropy is Logits'),
      (
        (Logits(h, w.T), labels),
        None,
        r'\(11, 5\) of .*tied=False',
      ),
      ((Logits(h, w, jnp.ones(5)), labels), None, r'bias of shape \(5,\)'),
      ((Logits(h, w), labels[:2]), None, r'shape \(2, 6\); positions \(4, 6\)'),
      ((Logits(h, w), labels), mask[0], r'shape \(6,\); positions \(4, 6\)'),
      ((Logits(h[:0], w), labels[:0]), None, 'nothing to compare'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        loss(*args, mask=weights)
    with self.assertRaisesRegex(ValueError, r'\(4, 6, 11\), .*\(4, 6, 10\)'):
      losses.chunked(losses.kl, chunk=8)(Logits(h, w), Logits(th, tw[:, 1:]))
    with self.assertRaisesRegex(ValueError, 'dist compares positions'):
      losses.chunked(losses.dist)
    far = functools.partial(losses.dist, gamma=2.0)
    for f in (
      lambda: losses.chunked(far),
      lambda: losses.chunked(functools.partial(losses.distill, soft=far)),
      lambda: losses.chunked(losses.distill)(
        Logits(h, w), Logits(th, tw), labels, soft=losses.dist
      ),
    ):
      with self.assertRaisesRegex(ValueError, 'dist compares positions'):
        f()
    with self.assertRaisesRegex(ValueError, 'chunk=0'):
      losses.chunked(losses.kl, chunk=0)


if __name__ == '__main__':
  absltest.main()
