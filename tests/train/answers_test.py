"""Losses from answers that were kept, and what cannot be kept."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation.losses import tail
from jaxopt_compress.train import answers
from jaxopt_compress.train import options

STAGE = options.Stage(
  name='s',
  model='m',
  steps=4,
  distil=options.Distil(teacher='t', temperature=2.0),
  cache=options.Cache(k=3),
)


def changed(**changes):
  """STAGE with fields of its records changed: `distil=dict(...)`."""
  return dataclasses.replace(
    STAGE,
    **{
      name: dataclasses.replace(getattr(STAGE, name), **said)
      if isinstance(said, dict)
      else said
      for name, said in changes.items()
    },
  )


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


class AnswersTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.student, self.teacher = 3 * rng.normal(size=(2, 4, 5, 7))

  def _compared(self, loss, temperature, mask=None):
    kept = tail.compress(jnp.float32(self.teacher) / temperature, 3)
    names = 'ids', 'log_probs', 'log_tail'
    batch = answers.named(dict(zip(names, kept, strict=True)))

    def soft(y, teacher_y):
      return loss(y, teacher_y, temperature=temperature, mask=mask)

    return answers.compared(soft, batch, temperature, mask)

  def _buckets(self, temperature):
    """p and q over the three likeliest of the teacher and the rest, float64."""
    p, q = (softmax(x / temperature) for x in (self.teacher, self.student))
    first = np.argsort(-p, -1)[..., :3]
    found = []
    for x in (p, q):
      kept = np.take_along_axis(x, first, -1)
      rest = 1 - kept.sum(-1, keepdims=True)
      found.append(np.concatenate([kept, rest], -1))
    return found

  @parameterized.product(temperature=(1.0, 4.0), masked=(False, True))
  def test_divergences_over_what_is_kept(self, temperature, masked):
    mask = np.ones((4, 5), bool)
    if masked:
      mask[:2] = False
      self.student[0] = np.nan
    p, q = self._buckets(temperature)
    wanted = {
      losses.kl: p * np.log(p / q),
      losses.reverse_kl: q * np.log(q / p),
    }
    for loss, terms in wanted.items():
      function = self._compared(
        loss, temperature, jnp.asarray(mask) if masked else None
      )
      y = jnp.float32(self.student)
      total, count = function(y)
      want = temperature**2 * terms.sum(-1)[mask].sum()
      np.testing.assert_allclose(total, want, rtol=1e-5)
      self.assertEqual(count, mask.sum())
      grad = jax.grad(lambda y, f=function: f(y)[0])(y)
      self.assertTrue(np.isfinite(grad).all())
      self.assertFalse(grad[0].any() and masked)

  def test_all_classes_kept_is_the_live_teacher(self):
    y, t = jnp.float32(self.student), jnp.float32(self.teacher)
    batch = answers.named(
      dict(
        zip(
          ('ids', 'log_probs', 'log_tail'), tail.compress(t / 4, 7), strict=True
        )
      )
    )

    def soft(y, t):
      return losses.kl(y, t, temperature=4.0)

    kept = answers.compared(soft, batch, 4.0, None)
    got, want = (
      jax.value_and_grad(f)(y)
      for f in (lambda y: kept(y)[0], lambda y: soft(y, t)[0])
    )
    for a, b in zip(got, want, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

  def test_blank_answers_have_their_shapes(self):
    found = answers.blank(STAGE, np.zeros((2, 5), np.int32))
    shapes = [x.shape for x in found.values()]
    self.assertEqual(shapes, [(2, 5, 3), (2, 5, 3), (2, 5)])

  @parameterized.parameters(
    dict(),
    dict(distil=dict(loss='reverse_kl')),
    dict(cache=dict(k=0, draws=5)),
    dict(cache=dict(k=0), distil=dict(loss='mse')),
  )
  def test_what_can_be_kept(self, **changes):
    answers.check('config.stage.s', changed(**changes))

  @parameterized.parameters(
    (dict(cache=dict(draws=5)), 'both k=3 and draws=5'),
    (dict(distil=dict(teacher='')), 'no effect without a stage as a teacher'),
    (dict(distil=dict(teacher='ema')), 'no effect without a stage as'),
    (dict(distil=dict(loss='mse')), 'and mse needs the logits of all'),
    (
      dict(cache=dict(k=0, draws=5), distil=dict(loss='reverse_kl')),
      'only kl is right on average',
    ),
    (
      dict(distil=dict(teacher=(('a', 0.5), ('b', 0.5)))),
      'there are several teachers. Set ensemble',
    ),
    (
      dict(distil=dict(teacher=(('a', 0.5), ('ema', 0.5)), ensemble=True)),
      "'ema' changes with its student",
    ),
    (dict(distil=dict(temperature='linear 4 -> 1')), 'there is a schedule'),
    (dict(distil=dict(on_policy=0.5)), 'the student continues it'),
    (dict(distil=dict(standardize=True)), 'standardize is of the logits'),
    (
      dict(distil=dict(features=(('a', 'b', 'mse', 1.0),))),
      'features are what it computes',
    ),
    (dict(mixup=0.2), 'mixup trains on mixtures'),
  )
  def test_what_cannot_be_kept(self, changes, message):
    with self.assertRaisesRegex(
      ValueError, f'config.stage.s.cache .*{message}'
    ):
      answers.check('config.stage.s', changed(**changes))

  def test_more_entries_than_classes(self):
    answers.check_classes(STAGE, jax.ShapeDtypeStruct((4, 3), jnp.float32))
    with self.assertRaisesRegex(ValueError, 'cache.k is 3, and there are 2'):
      answers.check_classes(STAGE, jax.ShapeDtypeStruct((4, 2), jnp.float32))


if __name__ == '__main__':
  absltest.main()
