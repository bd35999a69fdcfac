"""Packing: a row of several sequences says what they say one by one."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from jaxopt_compress.distillation import accumulation
from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation import sequences

SEQUENCES = [[3, 1, 4, 1], [5, 2], [6, 5, 3], [4]]
STUDENT, TEACHER = jax.random.normal(jax.random.key(0), (2, 7, 7))


def loss(student, asked):
  s, t = student[asked.inputs], TEACHER[asked.inputs]
  return losses.distill(
    s, t, asked.labels, alpha=0.5, temperature=2.0, mask=asked.weights
  )


def packed(rows, shape):
  """Sequences by their numbers, row by row, and padding."""
  tokens, segments = np.zeros((2, *shape), np.int32)
  for r, row in enumerate(rows):
    joined = [(x, n) for n, i in enumerate(row, 1) for x in SEQUENCES[i]]
    tokens[r, : len(joined)], segments[r, : len(joined)] = zip(
      *joined, strict=True
    )
  return jnp.asarray(tokens), jnp.asarray(segments)


class NextTokensTest(absltest.TestCase):
  def test_drawn(self):
    tokens, segments = packed([[0, 1, 3], [2]], (2, 7))
    asked = sequences.next_tokens(tokens, segments=segments)
    rows = lambda x: [''.join(map(str, row)) for row in x.astype(int).tolist()]
    self.assertEqual(rows(tokens), ['3141524', '6530000'])
    self.assertEqual(rows(asked.inputs), ['314152', '653000'])
    self.assertEqual(rows(asked.labels), ['141524', '530000'])
    self.assertEqual(rows(asked.weights), ['111010', '110000'])

  def test_packing_changes_nothing(self):
    # Every pair of tokens that follow each other in a sequence, one by one.
    pairs = [p for s in SEQUENCES for p in zip(s, s[1:], strict=False)]
    want, want_grads = 0.0, np.zeros((7, 7))
    for token, label in pairs:
      s, t = (np.asarray(x[token], np.float64) for x in (STUDENT, TEACHER))
      p, q = special.softmax(t / 2), special.softmax(s / 2)
      want += 0.5 * 4 * special.rel_entr(p, q).sum()
      want -= 0.5 * special.log_softmax(s)[label]
      want_grads[token] += 0.5 * 2 * (q - p)
      want_grads[token] += 0.5 * (special.softmax(s) - np.eye(7)[label])
    f = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for rows in ([[0, 1], [2, 3]], [[3, 2, 1, 0]], [[0], [1], [2], [3]]):
      tokens, segments = packed(rows, (4, 10))
      asked = sequences.next_tokens(tokens, segments=segments)
      (total, count), grads = f(STUDENT, asked)
      self.assertEqual((float(count), len(pairs)), (6, 6))
      np.testing.assert_allclose(total, want, rtol=1e-5)
      np.testing.assert_allclose(grads, want_grads, atol=1e-5)

  def test_weights_are_of_labels(self):
    tokens, segments = packed([[0, 2]], (1, 7))
    weights = (tokens == 1) | (tokens == 5)
    got = sequences.next_tokens(tokens, weights=weights, segments=segments)
    # 3 1 4 1 | 6 5 3: the first 5 is asked of 6, the first 1 of 3.
    self.assertEqual(got.weights.tolist(), [[1, 0, 1, 0, 1, 0]])

  def test_microbatches_of_packed_rows(self):
    tokens, segments = packed([[0, 1], [2, 3]], (2, 6))
    asked = sequences.next_tokens(tokens, segments=segments)

    @jax.jit
    def both(student, asked):
      parts = jax.tree.map(lambda x: x[:, None], asked)
      whole = lambda s: losses.mean(*loss(s, asked))
      return (
        accumulation.accumulated(loss)(student, parts),
        jax.value_and_grad(whole)(student),
      )

    ((mean, count), got), (want, grads) = both(STUDENT, asked)
    self.assertEqual(float(count), 6)
    np.testing.assert_allclose(mean, want, rtol=1e-6)
    np.testing.assert_allclose(got, grads, rtol=1e-5, atol=1e-7)

  def test_errors(self):
    tokens = jnp.zeros((2, 3), jnp.int32)
    for how, message in (
      (dict(weights=jnp.ones((2, 2))), r'weights have shape \(2, 2\)'),
      (dict(segments=jnp.ones(3)), r'segments have shape \(3,\)'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        sequences.next_tokens(tokens, **how)
    for shape in ((2, 1), (3,)):
      with self.assertRaisesRegex(ValueError, 'a time of 2 or more'):
        sequences.next_tokens(jnp.zeros(shape, jnp.int32))


if __name__ == '__main__':
  absltest.main()
