"""What all losses on logits promise, one row a loss."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import loss_oracles as oracles
import numpy as np

from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation import teachers

T = 2.0


def without_labels(loss, **how):
  def f(s, t, labels, mask=None):
    return loss(s, t, mask=mask, **how)

  return f


def with_labels(loss, **how):
  def f(s, t, labels, mask=None):
    return loss(s, t, labels, mask=mask, **how)

  return f


def cross_entropy(s, t, labels, mask=None):
  return losses.cross_entropy(s, labels, mask)


def standardized_kl(s, t, labels, mask=None):
  s, t = (losses.standardized(x, mask) for x in (s, t))
  return losses.kl(s, t, temperature=T, mask=mask)


def centered_mse(s, t, labels, mask=None):
  s, t = (losses.centered(x, mask) for x in (s, t))
  return losses.mse(s, t, mask=mask)


def two_teachers(s, t, labels, mask=None):
  kl = functools.partial(losses.kl, temperature=T)
  return losses.weighted((0.25, kl, s, t), (0.5, kl, s, t / 2), mask=mask)


def an_ensemble(s, t, labels, mask=None):
  t = teachers.ensemble([t, t / 2], temperature=T)
  return losses.kl(s, t, temperature=T, mask=mask)


def _zscore(x):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt(np.square(x).mean(-1, keepdims=True))


def _nll(student, classes):
  log_q = oracles.special.log_softmax(student, axis=-1)
  return -log_q[np.arange(len(student)), classes]


def _kl(s, t):
  p, q = oracles.softmax(t, T), oracles.softmax(s, T)
  return T**2 * oracles.kl_of(p, q)


def _by(f, temperature=T):
  return oracles.of_distributions(f, temperature)


# What it is called with, and the sum of its positions in float64.
LOSSES = {
  'kl': (
    without_labels(losses.kl, temperature=T),
    oracles.by_position(lambda s, t, labels: _kl(s, t)),
  ),
  'reverse_kl': (
    without_labels(losses.reverse_kl, temperature=T),
    oracles.by_position(lambda s, t, labels: _kl(t, s)),
  ),
  'jsd': (
    without_labels(losses.jsd, beta=0.3, temperature=T),
    _by(lambda p, q: T**2 * oracles.jsd(p, q, 0.3)),
  ),
  'skew_kl': (
    without_labels(losses.skew_kl, skew=0.2, temperature=T),
    _by(lambda p, q: T**2 * oracles.kl_of(p, 0.2 * p + 0.8 * q)),
  ),
  'skew_reverse_kl': (
    without_labels(losses.skew_reverse_kl, skew=0.2, temperature=T),
    _by(lambda p, q: T**2 * oracles.kl_of(q, 0.8 * p + 0.2 * q)),
  ),
  'total_variation': (
    without_labels(losses.total_variation, temperature=T),
    _by(lambda p, q: T * np.abs(p - q).sum(-1) / 2),
  ),
  'mse': (
    without_labels(losses.mse),
    oracles.by_position(lambda s, t, labels: np.square(s - t).mean(-1)),
  ),
  'centered mse': (
    centered_mse,
    oracles.by_position(lambda s, t, labels: (s - t).var(-1)),
  ),
  'cosine': (
    without_labels(losses.cosine),
    oracles.by_position(oracles.cosine),
  ),
  'standardized kl': (
    standardized_kl,
    oracles.by_position(lambda s, t, labels: _kl(_zscore(s), _zscore(t))),
  ),
  'dkd': (
    with_labels(losses.dkd, alpha=0.7, beta=3.0, temperature=T),
    oracles.dkd(0.7, 3.0, T),
  ),
  'dist': (
    without_labels(losses.dist, beta=0.5, gamma=1.5, temperature=T),
    oracles.dist(0.5, 1.5, T),
  ),
  'hinge_ranking': (
    without_labels(losses.hinge_ranking, k=4),
    oracles.of_pairs(
      lambda i, j, s, q, p: max(0, p[i] - p[j] - q[i] + q[j]), 4
    ),
  ),
  'a hinge of one margin': (
    without_labels(losses.hinge_ranking, k=3, margin=0.5),
    oracles.of_pairs(lambda i, j, s, q, p: max(0, 0.5 - q[i] + q[j]), 3),
  ),
  'logistic_ranking': (
    without_labels(losses.logistic_ranking, k=4),
    oracles.of_pairs(lambda i, j, s, q, p: np.log(1 + np.exp(s[j] - s[i])), 4),
  ),
  'list_mle': (without_labels(losses.list_mle, k=3), oracles.list_mle(3)),
  'cross_entropy': (
    cross_entropy,
    oracles.by_position(lambda s, t, labels: _nll(s, labels)),
  ),
  'hard': (
    without_labels(losses.hard),
    oracles.by_position(lambda s, t, labels: _nll(s, t.argmax(-1))),
  ),
  'distill': (
    with_labels(
      losses.distill,
      alpha=0.3,
      temperature=T,
      soft=functools.partial(losses.jsd, beta=0.5),
    ),
    lambda s, t, labels, w: (
      0.3 * _by(lambda p, q: T**2 * oracles.jsd(p, q, 0.5))(s, t, labels, w)
      + 0.7 * (w * _nll(s, labels)).sum()
    ),
  ),
  'two teachers': (
    two_teachers,
    oracles.by_position(
      lambda s, t, labels: 0.25 * _kl(s, t) + 0.5 * _kl(s, t / 2)
    ),
  ),
  'an ensemble': (
    an_ensemble,
    oracles.by_position(
      lambda s, t, labels: (
        T**2
        * oracles.kl_of(
          (oracles.softmax(t, T) + oracles.softmax(t / 2, T)) / 2,
          oracles.softmax(s, T),
        )
      )
    ),
  ),
}
# Means over classes: a class that cannot occur counts as one on which both agree.
OF_CLASSES = ('mse', 'dist', 'centered mse')
ROWS = parameterized.named_parameters((name, name) for name in LOSSES)

SHAPE = (4, 3, 6)
MASK = np.array(
  [[1, 0, 1], [0.5, 1, 1], [0, 0, 0], [2, 1, 0]], dtype=np.float32
)


@functools.cache
def compiled(name):
  """(s, t, labels, mask) -> ((sum, count), gradient): one program for each row."""
  return jax.jit(jax.value_and_grad(LOSSES[name][0], has_aux=True))


def inputs(classes=SHAPE[-1]):
  keys = jax.random.split(jax.random.key(0), 3)
  s, t = (2 * jax.random.normal(k, SHAPE) for k in keys[:2])
  labels = jax.random.randint(keys[2], SHAPE[:-1], 0, classes)
  return s, t, labels, jnp.asarray(MASK)


def everywhere(x, value):
  """x with a value where the mask is 0."""
  return jnp.where((MASK == 0)[..., None], value, x)


class ContractTest(parameterized.TestCase):
  @ROWS
  def test_value_and_gradient_in_float64(self, name):
    (total, count), grads = compiled(name)(*inputs())
    s, t, labels, w = (np.asarray(x) for x in inputs())
    flat = (
      s.reshape(12, 6).astype(np.float64),
      t.reshape(12, 6).astype(np.float64),
      labels.reshape(12),
      w.reshape(12).astype(np.float64),
    )
    oracle = LOSSES[name][1]
    np.testing.assert_allclose(total, oracle(*flat), rtol=2e-5)
    self.assertEqual(float(count), MASK.sum())
    want = oracles.gradient(oracle, *flat).reshape(SHAPE)
    np.testing.assert_allclose(grads, want, atol=2e-5)
    self.assertGreater(np.abs(want).max(), 1e-3)

  @ROWS
  def test_constants_of_a_position_have_no_part(self, name):
    s, t, labels, mask = inputs()
    (want, _), grads = compiled(name)(s, t, labels, mask)
    shifts = jnp.array([[[-50.0], [3.0], [200.0]]])
    if name == 'mse':
      s = s + shifts
    (got, _), moved = compiled(name)(s, t + shifts, labels, mask)
    np.testing.assert_allclose(got, want, rtol=2e-4)
    np.testing.assert_allclose(moved, grads, atol=2e-4)

  @ROWS
  def test_what_is_masked_has_no_part(self, name):
    s, t, labels, mask = inputs()
    want = compiled(name)(s, t, labels, mask)
    bad = (
      everywhere(s, jnp.nan),
      everywhere(t, jnp.inf),
      jnp.where(MASK == 0, -100, labels),
    )
    got = compiled(name)(*bad, mask)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    np.testing.assert_array_equal(got[1][MASK == 0], 0)
    (total, count), grads = compiled(name)(*bad, jnp.zeros_like(mask))
    self.assertEqual((float(total), float(count)), (0, 0))
    self.assertFalse(grads.any())

  @ROWS
  def test_nan_that_counts_shows(self, name):
    s, t, labels, mask = inputs()
    self.assertTrue(
      np.isnan(compiled(name)(s.at[0, 0].set(np.nan), t, labels, mask)[0][0])
    )
    if name != 'cross_entropy':
      t = t.at[0, 0].set(np.nan)
      self.assertTrue(np.isnan(compiled(name)(s, t, labels, mask)[0][0]))

  @ROWS
  def test_a_class_that_cannot_occur(self, name):
    s, t, labels, mask = inputs(classes=5)
    flat = [np.asarray(x, np.float64)[..., :5].reshape(12, 5) for x in (s, t)]
    flat += [np.asarray(labels).reshape(12), MASK.reshape(12)]
    s, t = (x.at[..., 5].set(-jnp.inf) for x in (s, t))
    (got, _), grads = compiled(name)(s, t, labels, mask)
    self.assertTrue(np.isfinite(grads).all())
    np.testing.assert_allclose(grads[..., 5], 0, atol=1e-7)
    if name not in OF_CLASSES:
      np.testing.assert_allclose(got, LOSSES[name][1](*flat), rtol=1e-5)

  @ROWS
  def test_devices_add_up(self, name):
    mesh = jax.make_mesh((4,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
    args = inputs()
    want = compiled(name)(*args)
    loss = LOSSES[name][0]
    if name == 'dist':
      loss = functools.partial(
        losses.dist, beta=0.5, gamma=1.5, temperature=T, axis_name='x'
      )
      loss = without_labels(loss)

    def part(s, t, labels, mask):
      out, grads = jax.value_and_grad(loss, has_aux=True)(s, t, labels, mask)
      return jax.lax.psum(out, 'x'), grads

    mapped = jax.shard_map(
      part, mesh=mesh, in_specs=P('x'), out_specs=(P(), P('x')), check_vma=False
    )
    found = [jax.jit(mapped)(*args)]
    if name == 'dist':
      sharded = jax.device_put(args, NamedSharding(mesh, P('x')))
      found.append(compiled(name)(*sharded))
    for got in found:
      for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)

  @ROWS
  def test_bfloat16_and_the_smallest_inputs(self, name):
    shapes = [(1, 5), (5,), (3, 1)]
    if 'ranking' in name or name in ('list_mle', 'a hinge of one margin'):
      shapes = shapes[:2]  # There is nothing to rank.

    @jax.jit
    def program(args):
      f = jax.value_and_grad(LOSSES[name][0], has_aux=True)
      exact = [x.astype(jnp.float32) for x in args[0][:2]]
      return [*(f(*a) for a in args), f(*exact, *args[0][2:])]

    s, t, *rest = inputs()
    args = [(s.astype(jnp.bfloat16), t.astype(jnp.bfloat16), *rest)]
    for shape in shapes:
      s = jnp.arange(1.0, 1 + np.prod(shape)).reshape(shape)
      args.append((s, jnp.sin(s), jnp.zeros(shape[:-1], jnp.int32)))
    bfloat16, *small, float32 = program(args)
    (total, count), grads = bfloat16
    self.assertEqual((total.dtype, count.dtype), (jnp.float32, jnp.float32))
    self.assertEqual(grads.dtype, jnp.bfloat16)
    np.testing.assert_allclose(total, float32[0][0], rtol=1e-6)
    for shape, ((total, count), grads) in zip(shapes, small, strict=True):
      self.assertTrue(np.isfinite(total) and np.isfinite(grads).all())
      self.assertEqual(float(count), np.prod(shape[:-1]))
    # Of one class only its logit can be wrong.
    if len(shapes) == 3 and name != 'mse':
      self.assertLess(abs(float(total)), 1e-6)
      self.assertFalse(grads.any())


if __name__ == '__main__':
  absltest.main()
