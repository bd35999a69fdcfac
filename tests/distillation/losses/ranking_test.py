"""Orders that the eye can check."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from positions_of_logits import logits

from jaxopt_compress.distillation import losses

INF = np.inf


hinge_ranking = jax.jit(losses.hinge_ranking, static_argnames='k')
logistic_ranking = jax.jit(losses.logistic_ranking, static_argnames='k')
list_mle = jax.jit(losses.list_mle, static_argnames='k')
hard = jax.jit(losses.hard)
GRADIENTS = [
  jax.jit(jax.value_and_grad(lambda s, t, f=f: f(s, t, k=2)[0]))
  for f in (losses.logistic_ranking, losses.list_mle)
]


class RankingTest(parameterized.TestCase):
  def test_the_teacher_itself(self):
    t = logits(0)
    self.assertEqual(float(hinge_ranking(t, t, k=5)[0]), 0)
    self.assertGreater(float(logistic_ranking(t, t, k=5)[0]), 0)

  def test_one_draw_is_the_first_choice(self):
    s, t = logits(0), logits(1)
    np.testing.assert_allclose(list_mle(s, t, k=1), hard(s, t), rtol=1e-5)

  def test_all_draws_are_a_distribution(self):
    # Over the 6 orders of three classes, the chances of the student add up to 1.
    s = jnp.array([0.3, -1.0, 2.0])
    orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    nll = [float(list_mle(s, jnp.float32(order), k=3)[0]) for order in orders]
    np.testing.assert_allclose(np.exp(-np.array(nll)).sum(), 1, rtol=1e-5)

  @parameterized.parameters(
    # teacher, how many pairs of the first three it tells apart
    ([3.0, 2.0, 1.0, 0.0], 3),
    ([3.0, 1.0, 1.0, 0.0], 2),
    ([1.0, 1.0, 1.0, 1.0], 0),
    ([3.0, 2.0, -INF, -INF], 1),
  )
  def test_pairs(self, teacher, n):
    s, t = jnp.array([[4.0, -1.0, 0.5, 9.0]]), jnp.array([teacher])
    got = logistic_ranking(s, t, k=3)
    pairs = [
      np.log1p(np.exp(s[0, j] - s[0, i]))
      for i in range(3)
      for j in range(3)
      if teacher[i] > teacher[j] > -INF
    ]
    self.assertLen(pairs, n)
    np.testing.assert_allclose(got, (np.mean(pairs) if n else 0, 1), rtol=1e-6)

  @parameterized.named_parameters(
    ('a class of the first k', [-INF, 1.0, 0.0], [2.0, 1.0, 0.0], INF),
    ('both of a pair', [-INF, -INF, 0.0], [2.0, 1.0, 0.0], INF),
    ('a class of the rest', [0.0, 1.0, -INF], [2.0, 1.0, 0.0], None),
    (
      'what the teacher does not draw',
      [0.0, 1.0, 2.0],
      [2.0, -INF, -INF],
      None,
    ),
    ('all others', [0.0, -INF, -INF], [2.0, -INF, -INF], 0.0),
  )
  def test_impossible_for_the_student(self, student, teacher, expected):
    s, t = jnp.array([student]), jnp.array([teacher])
    for f in GRADIENTS:
      value, grads = f(s, t)
      self.assertFalse(np.isnan(value) or np.isnan(grads).any())
    if expected is not None:
      self.assertEqual(float(value), expected)

  @parameterized.parameters(
    (losses.hinge_ranking, 1),
    (losses.logistic_ranking, 8),
    (losses.list_mle, 0),
    (losses.list_mle, 2.0),
  )
  def test_errors(self, loss, k):
    with self.assertRaisesRegex(ValueError, f'k={k}: an int from [12] to 7'):
      loss(logits(0), logits(1), k=k)


if __name__ == '__main__':
  absltest.main()
