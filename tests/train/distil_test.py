"""The loss of a stage: its parts, their counts, and what they do not read."""

import inspect
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_compress import parallel
from jaxopt_compress.distillation import losses
from jaxopt_compress.train import distil
from jaxopt_compress.train import options
from jaxopt_compress.train import soft_loss
from jaxopt_compress.train.step import loss as loss_lib
from jaxopt_compress.train.step import state as state_lib
from jaxopt_compress.train.step import train_step as train_step_lib

DATA = options.Data(name='digits')
RNG = np.random.default_rng(0)
Y, OTHER = RNG.normal(size=(2, 3, 5)).astype(np.float32)
BATCH = {'label': np.array([1, 2, 3]), 'mask': np.array([1, 1, 0]) > 0}


def _parts(y=Y, batch=BATCH, teachers=(), step=0, **asked):
  """{name: (sum, count, weight)} as numbers."""
  stage = options.Stage(name='s', model='mlp', steps=11, **asked)
  said = tuple((t, {}) for t in teachers)
  seen = loss_lib.Seen((y, {}), batch, said, jnp.int32(step))
  found = distil.loss_of(stage, DATA)(seen)
  return {name: tuple(map(float, part)) for name, part in found.items()}


def _total(parts):
  return sum(weight * total / count for total, count, weight in parts.values())


class LossTest(parameterized.TestCase):
  def test_of_labels(self):
    parts = _parts(label_smoothing=0.1)
    expected, _ = losses.cross_entropy(
      Y[:2], BATCH['label'][:2], label_smoothing=0.1
    )
    self.assertEqual(list(parts), ['hard'])
    np.testing.assert_allclose(parts['hard'], (expected, 2, 1), rtol=1e-6)

  def test_of_a_teacher(self):
    asked = options.Distil(teacher='t', alpha=0.7, temperature=2.0)
    parts = _parts(distil=asked, teachers=[OTHER])
    expected, _ = losses.distill(
      Y[:2], OTHER[:2], BATCH['label'][:2], alpha=0.7, temperature=2.0
    )
    self.assertEqual(list(parts), ['hard', 'soft'])
    self.assertEqual([count for _, count, _ in parts.values()], [2, 2])
    np.testing.assert_allclose(_total(parts), expected / 2, rtol=1e-6)

  def test_a_mask_of_examples_covers_all_their_targets(self):
    batch = {'label': np.array([[1, 2, 3], [0, 4, 1]])}
    batch['mask'] = np.array([False, True])
    parts = _parts(y=np.stack([Y, OTHER]), batch=batch)
    expected, _ = losses.cross_entropy(OTHER, batch['label'][1])
    np.testing.assert_allclose(parts['hard'], (expected, 3, 1), rtol=1e-6)

  @parameterized.parameters((0, ['hard', 'soft']), (5, ['hard', 'soft']))
  def test_alpha_rises_from_zero_at_a_traced_step(self, step, names):
    asked = options.Distil(teacher='t', alpha='linear 0 -> 1', temperature=1.0)
    parts = _parts(distil=asked, teachers=[OTHER], step=step)
    self.assertEqual(list(parts), names)
    self.assertAlmostEqual(parts['soft'][2], step / 10, places=6)
    self.assertAlmostEqual(parts['hard'][2], 1 - step / 10, places=6)
    np.testing.assert_allclose(
      parts['soft'][0], losses.kl(Y[:2], OTHER[:2])[0], rtol=1e-6
    )

  def test_a_part_of_weight_zero_may_be_anything(self):
    asked = options.Distil(teacher='t', alpha='cosine 0 -> 1')
    parts = _parts(distil=asked, teachers=[np.full_like(OTHER, np.nan)])
    self.assertEqual(parts['soft'], (0, 2, 0))

  def test_without_labels(self):
    asked = options.Distil(teacher='t', alpha=1.0)
    batch = BATCH | {'label': np.full(3, -1)}
    parts = _parts(distil=asked, teachers=[OTHER], batch=batch)
    self.assertEqual(list(parts), ['soft'])
    self.assertTrue(np.isfinite(parts['soft'][0]))

  def test_of_some_labels(self):
    batch = {'label': np.array([1, -1, -1])}
    stage = options.Stage(
      name='s', model='mlp', distil=options.Distil(teacher='t')
    )
    data = options.Data(name='digits', labels=0.5, unlabelled=True)
    seen = loss_lib.Seen((Y, {}), batch, ((OTHER, {}),), jnp.int32(0))
    parts = distil.loss_of(stage, data)(seen)
    expected, _ = losses.cross_entropy(Y[:1], np.array([1]))
    np.testing.assert_allclose(parts['hard'].sum, expected, rtol=1e-6)
    self.assertEqual([float(p.count) for p in parts.values()], [1, 3])

  def test_of_several_teachers(self):
    said = (('a', 0.25), ('b', 0.75))
    third = OTHER[::-1].copy()
    parts = _parts(
      distil=options.Distil(teacher=said, alpha=1.0, loss='mse'),
      teachers=[OTHER, third],
    )
    self.assertEqual(list(parts), ['soft_a', 'soft_b'])
    expected = 0.25 * losses.mse(Y[:2], OTHER[:2])[0]
    expected += 0.75 * losses.mse(Y[:2], third[:2])[0]
    np.testing.assert_allclose(_total(parts), expected / 2, rtol=1e-6)

  def test_of_an_ensemble(self):
    said = (('a', 0.25), ('b', 0.75))
    distil_ = options.Distil(
      teacher=said, alpha=1.0, temperature=2.0, ensemble=True
    )
    parts = _parts(distil=distil_, teachers=[OTHER, OTHER + 1])
    # Logits that differ by a constant are one distribution.
    expected, _ = losses.kl(Y[:2], OTHER[:2], temperature=2.0)
    np.testing.assert_allclose(parts['soft'], (expected, 2, 1), rtol=1e-5)

  def test_of_mixtures(self):
    labels = np.array([1, 2, 3])
    stage = options.Stage(name='s', model='mlp', mixup=1.0)
    seen = loss_lib.Seen(
      (Y, {}), {'label': labels}, (), jnp.int32(0), jnp.float32(0.75)
    )
    [found] = distil.loss_of(stage, DATA)(seen).values()
    expected = 0.75 * losses.cross_entropy(Y, labels)[0]
    expected += 0.25 * losses.cross_entropy(Y, labels[[2, 0, 1]])[0]
    np.testing.assert_allclose(found.sum, expected, rtol=1e-6)

  @parameterized.parameters(
    ('jsd, beta 0.3', dict(beta=0.3)),
    ('jsd, beta linear 0.1 -> 0.5', dict(beta=0.3)),
    ('dist, gamma 2', dict(gamma=2)),
  )
  def test_of_numbers(self, said, numbers):
    asked = options.Distil(teacher='t', alpha=1.0, loss=said, temperature=2.0)
    parts = _parts(distil=asked, teachers=[OTHER], step=5)
    function = getattr(losses, said.partition(',')[0])
    expected, _ = function(Y[:2], OTHER[:2], temperature=2.0, **numbers)
    np.testing.assert_allclose(parts['soft'][0], expected, rtol=1e-5)

  def test_of_standardized_logits(self):
    asked = options.Distil(
      teacher='t', alpha=1.0, temperature=2.0, standardize=True
    )
    parts = _parts(distil=asked, teachers=[OTHER])
    s, t = (x - x.mean(-1, keepdims=True) for x in (Y[:2], OTHER[:2]))
    s, t = (x / x.std(-1, keepdims=True) for x in (s, t))
    expected, _ = losses.kl(s, t, temperature=2.0)
    np.testing.assert_allclose(parts['soft'][0], expected, rtol=1e-5)

  @parameterized.parameters((0.5, [1, 2, 3]), (1.0, None))
  def test_a_loss_that_takes_labels(self, alpha, labels):
    asked = options.Distil(
      teacher='t', alpha=alpha, loss='dkd', temperature=2.0
    )
    parts = _parts(distil=asked, teachers=[OTHER])
    labels = None if labels is None else np.array(labels)[:2]
    expected, _ = losses.dkd(Y[:2], OTHER[:2], labels, temperature=2.0)
    np.testing.assert_allclose(parts['soft'][0], expected, rtol=1e-5)

  def test_numbers_are_checked_before_anything_is_trained(self):
    answers = jax.ShapeDtypeStruct((4, 5), jnp.float32)
    for said, message in (
      ('jsd, beta 1.5', 'beta=1.5'),
      ('jsd, beta linear 0.5 -> 2', 'beta=2.0'),
      ('hinge_ranking, k 9', 'k=9'),
    ):
      asked = options.Distil(teacher='t', loss=said)
      stage = options.Stage(name='s', model='m', steps=5, distil=asked)
      with self.assertRaisesRegex(ValueError, f"^loss='{said}': .*{message}"):
        distil.check_numbers(stage, answers)

  def test_every_loss_takes_a_step(self):
    for name in soft_loss.names():
      said = (
        f'{name}, k 3'
        if 'k' in inspect.signature(getattr(losses, name)).parameters
        else name
      )
      asked = options.Distil(teacher='t', loss=said)
      parts = _parts(distil=asked, teachers=[OTHER])
      self.assertTrue(np.isfinite(_total(parts)), name)

  def test_relations_of_a_batch_are_those_of_all_devices(self):
    def apply(params, variables, x, *, train=False, rngs=None):
      return x @ params, {}, variables

    asked = options.Distil(teacher='t', loss='dist', alpha=0.5)
    stage = options.Stage(name='s', model='m', steps=2, distil=asked)
    weights = np.random.default_rng(1).normal(size=(2, 4, 5))
    student, teacher = jnp.asarray(weights, jnp.float32)
    batch = {
      'image': RNG.normal(size=(8, 4)).astype(np.float32),
      'label': np.arange(8) % 5,
      'mask': np.arange(8) < 6,
    }
    optimizer, found = optax.sgd(1.0), []
    step = train_step_lib.train_step(
      apply,
      distil.loss_of(stage, DATA),
      optimizer,
      inputs='image',
      **distil.for_step(stage, [mock.Mock(apply=apply)]),
    )
    for devices in (1, 4):
      mesh = parallel.data_mesh(devices)
      state = state_lib.create(student, {}, jax.random.key(0), optimizer)
      state = parallel.mesh.replicate(state, mesh)
      run = parallel.data_parallel(step, 'shard_map', mesh)
      found.append(run(state, batch, ((teacher, {}),)))
    (one, said), (four, told) = jax.device_get(found)
    np.testing.assert_allclose(four.params, one.params, atol=1e-5)
    self.assertEqual(set(said), {'loss', 'hard', 'soft', 'grad_norm'})
    for name, x in said.items():
      self.assertAlmostEqual(float(x), float(told[name]), places=5)

  def test_a_teacher_computes_in_a_dtype_of_its_own(self):
    asked = options.Distil(teacher='t', teacher_dtype='bfloat16')
    finished = {'t': {'params': {'w': Y}, 'variables': {'n': np.arange(3)}}}
    [(params, variables)] = distil.frozen(asked, finished)
    self.assertEqual(params['w'].dtype, jnp.bfloat16)
    self.assertEqual(variables['n'].dtype, jnp.int32)
    stage = options.Stage(name='s', model='m', distil=asked)
    model = mock.Mock(apply=lambda params, variables, x, **mode: x @ x.T)
    [teacher] = distil.for_step(stage, [model])['teachers']
    self.assertEqual(teacher(params, variables, Y).dtype, jnp.bfloat16)


class WordsTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(loss='kll'), r"c\.loss is 'kll'; .* Did you mean 'kl'"),
    (dict(loss='kl, beta 1'), "kl takes no 'beta'"),
    (dict(loss='jsd, beta 0.5, beta 0.3'), 'says beta twice'),
    (dict(alpha='linear 0 - 1'), r"c\.alpha is 'linear 0 - 1'; a number is"),
    (dict(alpha='linear 0 -> 2'), r'c\.alpha is 2.0; a number in \[0, 1\]'),
    (dict(temperature='cosine 4 -> 0'), r'temperature is 0.0; a number in'),
    (dict(alpha='linear 0 -> 1 over 2'), 'its part of the steps, is 2.0'),
    (dict(loss='mse', temperature=2.0), 'no effect without a loss that takes'),
    (dict(alpha=0.0), r"alpha is 0.0, so that the teacher 't' has no effect"),
    (dict(alpha='linear 0 -> 0', loss='mse'), 'the teacher .* has no effect'),
    (dict(ensemble=True), 'no effect without several teachers'),
    (dict(ema_decay=0.9), "no effect without the teacher 'ema'"),
    (dict(teacher='ema', teacher_dtype='bfloat16'), 'without a stage as a'),
    (dict(teacher_dtype='int8'), "teacher_dtype is 'int8'; choose one"),
    (dict(teacher=('a', 'b')), r"has 'a'; a stage and its share"),
    (dict(teacher=(('a', 0.5), ('a', 0.5))), 'names a stage twice'),
    (dict(teacher=(('a', 0.5), ('b', 0.6))), 'and 1 together'),
  )
  def test_what_is_refused(self, said, message):
    stage = options.Stage(
      name='s',
      model='m',
      steps=9,
      distil=options.Distil(**{'teacher': 't'} | said),
    )
    with self.assertRaisesRegex(ValueError, message):
      distil.check('c', stage)

  def test_a_teacher_of_features_alone(self):
    asked = options.Distil(
      teacher='t', alpha=0.0, features=(('a', 'b', 'hint', 1.0),)
    )
    stage = options.Stage(name='s', model='m', steps=1, distil=asked)
    distil.check('c', stage)

  @parameterized.parameters(1.0, 'linear 1 -> 1')
  def test_smoothing_without_labels(self, alpha):
    asked = options.Distil(teacher='t', alpha=alpha)
    stage = options.Stage(
      name='s', model='m', label_smoothing=0.1, steps=1, distil=asked
    )
    with self.assertRaisesRegex(ValueError, 'alpha=1 reads none'):
      distil.check('c', stage)

  def test_the_moving_average_is_the_last_teacher(self):
    asked = options.Distil(teacher=(('ema', 0.5), ('big', 0.5)))
    self.assertEqual(asked.teachers, (('big', 0.5), ('ema', 0.5)))
    self.assertEqual(asked.stages, ('big',))
    self.assertTrue(asked.follows)
    self.assertFalse(options.Distil(teacher='big').follows)
