"""Tasks by the words of a config."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp

from jaxopt_compress.train import options
from jaxopt_compress.train.tasks import read
from jaxopt_compress.train.tasks import task as task_lib


def focal(answers, targets, mask=None, *, gamma=1.0):
  del targets, mask
  return gamma * answers.sum(), jnp.float32(1)


def counted(answers, targets, mask):
  return (mask * answers).sum(), targets.size


def f1(answers, targets, mask):
  return answers.sum(), answers.sum()


MINE = task_lib.Task(focal, 'mine', {'error': task_lib.Metric(f1, False)})
COUNTED = task_lib.Task(counted, 'counted', {})
LOWER = task_lib.Metric(f1, higher_is_better=False)
NOT = 3
HERE = f'{__name__}:'


def of(data='digits', metrics=(), **said):
  named = {f'config.{i}.metric': name for i, name in enumerate(metrics)}
  return read.read(options.Task(**said), data, named)


class ReadTest(parameterized.TestCase):
  @parameterized.parameters(
    (of(), 'cross entropy', 'accuracy', True, 'kl'),
    (of('text'), 'cross entropy', 'bits per byte', True, 'kl'),
    (of('masked_text'), 'cross entropy', 'bits per masked byte', True, 'kl'),
    (of('a:load'), 'cross entropy', 'accuracy', True, 'kl'),
    (of(name='regression'), 'mse', 'rmse', False, 'mse'),
    (
      of(name='regression', loss='huber, delta 2'),
      'huber',
      'rmse',
      False,
      'mse',
    ),
    (of(loss=f'{HERE}focal, gamma 2'), 'focal', 'accuracy', True, 'kl'),
    (of(name=f'{HERE}MINE'), 'mine', 'error', False, 'mse'),
  )
  def test_words(self, task, loss, first, classes, soft):
    self.assertEqual(task.loss_name, loss)
    self.assertEqual(next(iter(task.metrics)), first)
    self.assertIn('loss', task.metrics)
    self.assertEqual((task.classes, task.soft), (classes, soft))

  def test_numbers_of_a_loss(self):
    task = of(loss=f'{HERE}focal, gamma 2.5')
    self.assertEqual(float(task.loss(jnp.ones(2), jnp.ones(2), None)[0]), 5.0)
    huber = of(name='regression', loss='huber, delta 0.5').loss
    # Of an error of 1: 0.5 (1 - 0.25).
    self.assertEqual(float(huber(jnp.ones(1), jnp.zeros(1), None)[0]), 0.375)

  @parameterized.parameters(
    dict(loss=f'{HERE}counted'),
    dict(loss=f'{HERE}counted', name='regression'),
    dict(name=f'{HERE}COUNTED'),
  )
  def test_an_own_loss_always_has_a_mask(self, **said):
    total, count = of(**said).loss(jnp.ones(2), jnp.ones(2), None)
    self.assertEqual((total.item(), count.astype('float32').item()), (2, 2))

  def test_own_metrics(self):
    found = of(metrics=(f'{HERE}f1', f'{HERE}LOWER', 'top 5')).metrics
    self.assertTrue(found[f'{HERE}f1'].higher_is_better)
    self.assertFalse(found[f'{HERE}LOWER'].higher_is_better)

  @parameterized.parameters(
    (dict(name='regresion'), "config.task.name is 'regresion'.*'regression'"),
    (
      dict(name='regression', data='text'),
      "of the data 'text' it is 'next_byte'",
    ),
    (dict(standardize=True), "no effect on 'classification'"),
    (dict(name='regression', loss='msee'), "Did you mean 'mse'"),
    (
      dict(name='regression', loss='huber, delta cosine 0 -> 1'),
      'a number of delta',
    ),
    (dict(name='regression', loss='huber, beta 1'), "takes no 'beta'"),
    (
      dict(loss='kl'),
      "config.task.loss is 'kl'; choose one of .'cross_entropy'",
    ),
    (dict(loss=f'{HERE}focla'), "defines no 'focla'. Did you mean 'focal'"),
    (
      dict(name=f'{HERE}f1'),
      'of type function; a jaxopt_compress.train.tasks.Task',
    ),
    (dict(name=f'{HERE}MINE', loss='mse'), 'has its own'),
    (dict(metrics=('acuracy',)), "config.0.metric is 'acuracy'"),
    (
      dict(metrics=(f'{HERE}NOT',)),
      'of type int; a function .answers, targets, mask',
    ),
  )
  def test_mistakes(self, said, message):
    with self.assertRaisesRegex(ValueError, message):
      of(**said)


if __name__ == '__main__':
  absltest.main()
