"""Windows of text that a student continues itself, and what is refused."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_compress.parallel import mesh as mesh_lib
from jaxopt_compress.parallel import step as step_lib
from jaxopt_compress.train import distil
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import on_policy
from jaxopt_compress.train import options
from jaxopt_compress.train.step import state as state_lib
from jaxopt_compress.train.step import train_step as train_step_lib

DATA = options.Data(name='text', input='tokens', target='label', window=6)
SIZES = dict(name='decoder', vocab=16, width=8, depth=1, heads=2, max_length=6)
X = jax.ShapeDtypeStruct((4, 6), jnp.int32)
WINDOWS = np.random.default_rng(0).integers(1, 16, (4, 6))
BATCH = {
  'tokens': np.pad(WINDOWS[:, :-1], ((0, 0), (1, 0))).astype(np.int32),
  'label': WINDOWS.astype(np.int32),
  'mask': np.array([1, 1, 1, 0], bool),
}


def stage(**asked):
  asked = {'teacher': 't', 'alpha': 1.0, 'on_policy': 1.0, 'prompt': 3} | asked
  return options.Stage(
    name='s', model='m', steps=5, distil=options.Distil(**asked)
  )


class RedrawsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = model_lib.build('m', SIZES, X)
    cls.params, cls.variables = cls.model.init(0)

  def redrawn(self, step=0, **asked):
    redraw = on_policy.redraws(stage(**asked), self.model, DATA)
    f = jax.jit(redraw, static_argnums=5)
    key, everyone = jax.random.key(1), step_lib.Replicas()
    return f(self.params, self.variables, BATCH, step, key, everyone)

  def test_a_window_is_continued(self):
    got = self.redrawn()
    for name in ('tokens', 'label'):
      self.assertEqual(got[name].dtype, BATCH[name].dtype)
    np.testing.assert_array_equal(got['tokens'][:, :3], BATCH['tokens'][:, :3])
    np.testing.assert_array_equal(got['tokens'][:, 1:], got['label'][:, :-1])
    np.testing.assert_array_equal(got['label'][:, :2], BATCH['label'][:, :2])
    self.assertTrue((got['label'][:, 2:] != BATCH['label'][:, 2:]).any())
    self.assertEqual(got['mask'].tolist(), [[0, 0, 1, 1, 1, 1]] * 3 + [[0] * 6])

  def test_the_share_of_batches_follows_the_steps(self):
    got = self.redrawn(step=0, on_policy='linear 0 -> 1')
    np.testing.assert_array_equal(got['tokens'], BATCH['tokens'])
    np.testing.assert_array_equal(got['label'], BATCH['label'])
    self.assertEqual(got['mask'].tolist(), [[1] * 6] * 3 + [[0] * 6])
    got = self.redrawn(step=4, on_policy='linear 0 -> 1')
    self.assertEqual(float(got['mask'].sum()), 12)

  def test_a_step_on_four_devices(self):
    asked = stage(loss='reverse_kl', temperature=1.0)
    step = step_lib.data_parallel(
      train_step_lib.train_step(
        self.model.apply,
        distil.loss_of(asked, DATA),
        optax.sgd(0.1),
        inputs='tokens',
        redraw=on_policy.redraws(asked, self.model, DATA),
        **distil.for_step(asked, [self.model]),
      ),
      mesh=mesh_lib.data_mesh(4),
    )
    state = state_lib.create(
      self.params, self.variables, jax.random.key(0), optax.sgd(0.1)
    )
    teacher = self.model.init(1)
    after, metrics = step(state, BATCH, (teacher,))
    self.assertGreater(float(metrics['loss']), 0)
    self.assertGreater(float(metrics['grad_norm']), 0)
    self.assertEqual(int(after.step), 1)

  @parameterized.parameters(
    (dict(alpha=0.5), dict(), 'alpha is 0.5.*Set alpha=1.0'),
    (dict(on_policy='linear 0 -> 2'), dict(), 'on_policy is 2.0'),
    (dict(), dict(name='digits'), "the data are 'digits'"),
    (dict(prompt=7), dict(), 'prompt is 7, and a window has 6'),
  )
  def test_words_that_do_not_fit(self, asked, data, message):
    data = options.Data(**({'name': 'text', 'window': 6} | data))
    with self.assertRaisesRegex(ValueError, message):
      on_policy.check('config.stage.s', stage(**asked), data)

  def test_a_model_without_a_cache(self):
    mlp = model_lib.build(
      'm',
      dict(name='mlp', in_features=6, classes=2),
      jax.ShapeDtypeStruct((4, 6), jnp.float32),
    )
    with self.assertRaisesRegex(ValueError, "model 'm' has none"):
      on_policy.redraws(stage(), mlp, DATA)
