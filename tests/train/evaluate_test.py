"""Numbers of an evaluation, against numpy."""

from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
from scipy import special

from jaxopt_compress.train import evaluate


def _apply(params, variables, x, *, train=False, rngs=None):
  return x @ params, {}, variables


class EvaluateTest(parameterized.TestCase):
  @parameterized.parameters(((),), ((3,),))
  def test_against_numpy(self, middle):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, *middle, 4)).astype(np.float32)
    labels = rng.integers(0, 5, (12, *middle)).astype(np.int32)
    w, v = rng.normal(size=(2, 4, 5)).astype(np.float32)
    batches = [
      {'x': x[:8], 'label': labels[:8], 'mask': np.ones(8, bool)},
      {'x': x[4:], 'label': labels[4:], 'mask': np.arange(8) >= 4},
    ]
    forward = evaluate.forward(_apply)
    names = dict(inputs='x', targets='label')
    teacher = evaluate.evaluate(forward, jnp.asarray(v), {}, batches, **names)
    got = evaluate.evaluate(
      forward,
      jnp.asarray(w),
      {},
      batches,
      **names,
      reference=teacher.logits,
    )
    log_p = special.log_softmax(x.astype(float) @ w, -1)
    log_q = special.log_softmax(x.astype(float) @ v, -1)
    picked = np.take_along_axis(log_p, labels[..., None], -1)
    kl = (np.exp(log_q) * (log_q - log_p)).sum(-1)
    self.assertEqual(got.count, labels.size)
    self.assertAlmostEqual(got.loss, -picked.mean(), places=5)
    self.assertAlmostEqual(
      got.metrics['accuracy'], (log_p.argmax(-1) == labels).mean(), places=6
    )
    self.assertAlmostEqual(
      got.agreement, (log_p.argmax(-1) == log_q.argmax(-1)).mean(), places=6
    )
    self.assertAlmostEqual(got.kl, kl.mean(), places=5)
    self.assertNotIn('top 5', got.metrics)  # of five classes all are
    self.assertIsNone(teacher.agreement)
    self.assertIsNone(teacher.kl)
    close = evaluate.fidelity(
      got.logits, teacher.logits, batches, targets='label'
    )
    first = np.argsort(-log_p, -1, kind='stable')[..., :4]
    among = (first == log_q.argmax(-1)[..., None]).any(-1).mean()
    self.assertAlmostEqual(close.agreement[1], got.agreement, places=6)
    self.assertAlmostEqual(close.agreement[4], among, places=6)
    self.assertAlmostEqual(close.kl, kl.mean(), places=5)
    self.assertEqual(got.reliability[0].sum(), labels.size)

  def test_inputs_of_several_arguments(self):
    def apply(params, variables, x, shift):
      return x @ params + shift, {}, variables

    rng = np.random.default_rng(0)
    x, shift = rng.normal(size=(2, 8, 4)).astype(np.float32)
    labels = np.arange(8) % 4
    found = [
      evaluate.evaluate(
        evaluate.forward(apply),
        jnp.eye(4),
        {},
        [{'inputs': inputs, 'label': labels, 'mask': np.ones(8, bool)}],
        inputs='inputs',
        targets='label',
      ).metrics['accuracy']
      for inputs in ((x, shift), {'shift': shift, 'x': x})
    ]
    want = ((x + shift).argmax(-1) == labels).mean()
    self.assertEqual(found, [want, want])

  def test_a_class_that_cannot_occur_has_no_part(self):
    y = jnp.array([[0.0, 0.0, -jnp.inf]])
    batch = {'x': y, 'label': np.zeros(1, int), 'mask': np.ones(1, bool)}
    names = dict(inputs='x', targets='label')
    forward = evaluate.forward(_apply)
    got = evaluate.evaluate(
      lambda *args: y, {}, {}, [batch], **names, reference=[y]
    )
    self.assertAlmostEqual(got.loss, np.log(2), places=6)
    self.assertEqual(got.kl, 0.0)
    batch['mask'] = np.zeros(1, bool)
    with self.assertRaisesRegex(
      ValueError, 'None of the examples of 1 batches'
    ):
      evaluate.evaluate(forward, jnp.eye(3), {}, [batch], **names)

  def test_top_5(self):
    """Equal logits are in the order of their classes; NaN is never among them."""
    y = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    y[:8] = 0.0
    y[8:10] = np.nan
    labels = np.arange(40, dtype=np.int32) % 8
    batch = {'x': y, 'label': labels, 'mask': np.arange(40) < 38}
    found = evaluate.evaluate(
      evaluate.forward(lambda p, v, x: (x, {}, v)),
      {},
      {},
      [batch],
      inputs='x',
      targets='label',
    )
    order = np.argsort(-y, axis=-1, kind='stable')[:, :5]
    among = (order == labels[:, None]).any(-1) & ~np.isnan(y).any(-1)
    self.assertAlmostEqual(found.metrics['top 5'], among[:38].mean(), places=6)
