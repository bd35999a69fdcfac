"""MiniLM's relations against the papers' equations, in float64 numpy."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from jaxopt_compress.distillation.features import relations

MASK = np.array([[1, 1, 1, 1, 0], [1, 1, 2, 0, 0], [0, 0, 0, 0, 0]], np.float32)


def values(seed, features, n=3, shape=(3, 5)):
  """Queries, keys and values."""
  keys = jax.random.split(jax.random.key(seed), n)
  return tuple(2 * jax.random.normal(key, (*shape, features)) for key in keys)


def oracle(student, teacher, heads, mask):
  """(sum, count) of eq. 4 to 6, sequence by sequence, head by head."""
  total = 0.0
  for b, weights in enumerate(np.asarray(mask, np.float64)):
    (seen,) = np.nonzero(weights)
    if not len(seen):
      continue
    for a in range(heads):
      distributions = []
      for x, y in (teacher, student):
        x, y = (np.asarray(z, np.float64)[b, seen] for z in (x, y))
        d = x.shape[-1] // heads
        x, y = (z[:, a * d : (a + 1) * d] for z in (x, y))
        distributions.append(special.softmax(x @ y.T / np.sqrt(d), -1))
      kl = special.rel_entr(*distributions).sum(-1)
      total += (weights[seen] * kl).sum() / heads
  return total, np.sum(mask)


@functools.cache
def compiled(name, **options):
  """(loss, gradient with respect to the student) and the count."""

  def loss(s, t, mask):
    return getattr(relations, name)(s, t, mask=mask, **options)

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def run(name, s, t, mask=MASK, **options):
  mask = None if mask is None else jnp.asarray(mask)
  (total, count), grads = compiled(name, **options)(s, t, mask)
  return total, count, grads


class RelationsTest(parameterized.TestCase):
  @parameterized.product(heads=[1, 2, 6], mask=[None, MASK])
  def test_one_relation(self, heads, mask):
    s, t = values(0, 6, 2), values(1, 12, 2)
    want = oracle(s, t, heads, np.ones((3, 5)) if mask is None else mask)
    got = run('relation', s, t, mask, heads=heads)[:2]
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_the_papers_sums(self):
    s, t = values(0, 6), values(1, 12)
    qk, own = ((0, 1),), tuple((i, i) for i in range(3))
    for name, pairs, heads in (
      ('minilm', (*qk, (2, 2)), 2),
      ('minilm_v2', own, 3),
    ):
      parts = [
        oracle((s[i], s[j]), (t[i], t[j]), heads, MASK)[0] for i, j in pairs
      ]
      total, count, _ = run(name, s, t, heads=heads)
      np.testing.assert_allclose(total, sum(parts), rtol=1e-5)
      self.assertEqual(float(count), MASK.sum())
    s = (jnp.nan * s[0], *s[1:])
    weights = (0.0, 2.0, 0.5)
    weighted, _, grads = run('minilm_v2', s, t, heads=3, weights=weights)
    self.assertFalse(np.any(grads[0]))
    want = 2 * parts[1] + 0.5 * parts[2]
    np.testing.assert_allclose(weighted, want, rtol=1e-5)

  def test_the_gradient_is_that_of_the_equations(self):
    s, t = values(0, 6), values(1, 12)
    _, _, grads = run('minilm', s, t, heads=2)
    wide = [np.asarray(x, np.float64) for x in s]

    def at(part, place, change):
      moved = [x.copy() for x in wide]
      moved[part][place] += change
      q, k, v = moved
      attention = oracle((q, k), t[:2], 2, MASK)[0]
      return attention + oracle((v, v), (t[2], t[2]), 2, MASK)[0]

    rng = np.random.default_rng(0)
    for part in range(3):
      for place in [tuple(rng.integers(0, (3, 5, 6))) for _ in range(6)]:
        want = (at(part, place, 1e-5) - at(part, place, -1e-5)) / 2e-5
        np.testing.assert_allclose(grads[part][place], want, atol=1e-4)

  def test_heads_of_16_features_of_the_teacher(self):
    s, t = values(0, 6), values(1, 48)
    for name in ('relation', 'minilm_v2'):
      take = (lambda x: x[0]) if name == 'relation' else (lambda x: x)
      got, want = (
        run(name, take(s), take(t), **heads)[0] for heads in ({}, dict(heads=3))
      )
      self.assertEqual(float(got), float(want))

  def test_what_is_masked_changes_nothing(self):
    s, t = values(0, 6), values(1, 12)
    want = run('minilm', s, t, heads=2)
    for bad in (np.nan, np.inf, 1e30):
      broken = [
        tuple(jnp.where((MASK == 0)[..., None], bad, x) for x in side)
        for side in (s, t)
      ]
      jax.tree.map(
        np.testing.assert_array_equal, run('minilm', *broken, heads=2), want
      )
    for x in want[2]:
      self.assertTrue((x[MASK == 0] == 0).all())

  def test_padding_to_another_length_changes_nothing(self):
    s, t = values(0, 6), values(1, 12)
    want = run('minilm_v2', s, t, heads=3)
    pad = lambda x: np.pad(x, [(0, 0), (0, 2)] + [(0, 0)] * (x.ndim - 2))
    got = run('minilm_v2', *jax.tree.map(pad, (s, t)), pad(MASK), heads=3)
    np.testing.assert_allclose(got[:2], want[:2], rtol=1e-6)

  def test_chunks_and_leading_axes_change_nothing(self):
    s, t = values(0, 6, shape=(2, 3, 5)), values(1, 12, shape=(2, 3, 5))
    mask = np.stack([MASK, np.ones_like(MASK)])
    want = run('minilm', s, t, mask, heads=2)
    flat = lambda x: x.reshape(6, 5, *x.shape[3:])
    parts = [
      run('minilm', s, t, mask, heads=2, chunk=4),
      run('minilm', *jax.tree.map(flat, (s, t, mask)), heads=2),
    ]
    for total, count, grads in parts:
      np.testing.assert_allclose((total, count), want[:2], rtol=1e-6)
      for x, y in zip(grads, want[2], strict=True):
        np.testing.assert_allclose(x.reshape(y.shape), y, atol=1e-6)

  def test_equal_and_large_values(self):
    s = jax.tree.map(lambda x: 1e3 * x, values(0, 6))
    total, _, grads = run('minilm', s, s, None, heads=2)
    self.assertEqual(float(total), 0.0)
    t = jax.tree.map(lambda x: -1e3 * x, values(1, 6))
    total, _, grads = run('minilm', s, t, None, heads=2)
    self.assertTrue(np.isfinite([total, *map(np.sum, grads)]).all())

  def test_bfloat16_is_computed_in_float32(self):
    s, t = (
      jax.tree.map(lambda x: x.astype(jnp.bfloat16), values(i, 6))
      for i in range(2)
    )
    total, _, grads = run('relation', s[0], t[0], heads=2)
    want = oracle((s[0], s[0]), (t[0], t[0]), 2, MASK)[0]
    self.assertEqual((total.dtype, grads.dtype), (jnp.float32, jnp.bfloat16))
    np.testing.assert_allclose(total, want, rtol=1e-5)

  @parameterized.parameters(
    (dict(heads=4), 'does not divide the 6 features of the student'),
    (dict(heads=0), 'heads=0'),
    (dict(heads=2, chunk=0), 'chunk=0'),
    (dict(heads=2, mask=np.ones((3, 4))), 'mask has shape'),
    (dict(heads=2, teacher=(np.ones((3, 4, 6)),) * 3), 'the same tokens'),
    (dict(heads=2, teacher=(np.ones((3, 0, 6)),) * 3), 'some of both'),
    (dict(heads=2, teacher=np.ones((3, 5, 6))), 'gives an array'),
    (dict(heads=2, teacher=(np.ones((3, 5, 6)),) * 2), 'gives 2 arrays'),
    (
      dict(heads=2, teacher=tuple(np.ones((3, 5, n)) for n in (6, 2, 2))),
      'Repeat keys',
    ),
  )
  def test_errors(self, given, message):
    s = values(0, 6)
    options = {'teacher': s, 'mask': MASK} | given
    with self.assertRaisesRegex(ValueError, message):
      relations.minilm(s, options.pop('teacher'), **options)


if __name__ == '__main__':
  absltest.main()
