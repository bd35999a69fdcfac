"""What a student learns from answers that were kept, beside all logits.

The teacher is a trigram model of the standard library's text, the student a table of
bigrams, judged on held-out files: real distributions, and an optimum that is known.
"""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_compress import data
from jaxopt_compress.distillation import cache
from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation.losses import tail

V, N, K = 256, 512, 32
STEPS = 50


def trigrams(text):
  """Logits [N, V] after N pairs of bytes, and the second byte of each pair."""
  pairs = np.zeros((V, V)) + 0.02
  np.add.at(pairs, (text[:-1], text[1:]), 1)
  pairs /= pairs.sum(1, keepdims=True)
  at = np.random.default_rng(0).integers(2, len(text), N)
  wanted = text[at - 2] * V + text[at - 1]
  found = np.flatnonzero(np.isin(text[:-2] * V + text[1:-1], wanted))
  table = np.zeros((V * V, V), np.float32)
  np.add.at(table, (text[found] * V + text[found + 1], text[found + 2]), 1)
  counts = table[wanted]
  p = counts + 4 * pairs[text[at - 1]]
  return np.log(p / p.sum(1, keepdims=True)).astype(np.float32), text[at - 1]


def renormalised(y, ids, log_probs, log_tail):
  """As others have it: both over the entries that are kept, and no tail."""
  del log_tail
  return losses.kl(jnp.take_along_axis(y, ids, -1), log_probs)


class QualityTest(absltest.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.dir = tmp_path

  def _learned(self, loss, *answers):
    """Log-probabilities of the student, [V, V]."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.5, STEPS))

    def mean(table, answers):
      return losses.mean(*loss(table[self.before], *answers))

    @jax.jit
    def learn(table, answers):
      def step(carry, _):
        table, state = carry
        grad = jax.grad(mean)(table, answers)
        updates, state = optimizer.update(grad, state)
        return (table + updates, state), None

      start = table, optimizer.init(table)
      return jax.lax.scan(step, start, length=STEPS)[0][0]

    return jax.nn.log_softmax(learn(jnp.zeros((V, V)), answers))

  def _bits(self, loss, *answers):
    return -(self.held_out * self._learned(loss, *answers)).sum() / np.log(2)

  def _kept(self, k, answer):
    made = cache.Manifest(model='t', data='d', vocabulary=V, k=k, examples=N)
    folder = self.dir / f'{k}'
    cache.write(folder, made, answer, batch_size=N)
    found = cache.read(folder, data='d', vocabulary=V).take(np.arange(N))
    return tuple(map(jnp.asarray, found.values()))

  def test_the_tail_is_within_a_percent_of_all_logits(self):
    text = data.text.load('train', only='ab.*|ar.*|ca.*').astype(int)
    logits, self.before = trigrams(text)
    held = data.text.load('test', only='[a-c].*').astype(int)
    self.held_out = np.zeros((V, V))
    # Of what the student has seen a byte of.
    known = np.isin(held[:-1], self.before)
    np.add.at(self.held_out, (held[:-1][known], held[1:][known]), 1)
    self.held_out /= self.held_out.sum()

    dense = self._bits(losses.kl, jnp.asarray(logits))
    kept = self._kept(K, lambda i: tail.compress(logits[i], K))
    of = {
      'tail': self._bits(tail.topk_kl, *kept) / dense,
      'renormalised': self._bits(renormalised, *kept) / dense,
    }
    self.assertBetween(of['tail'], 0.99, 1.01, of)
    self.assertGreater(of['renormalised'], 1.2, of)


if __name__ == '__main__':
  absltest.main()
