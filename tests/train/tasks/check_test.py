"""What does not go with a task, before anything is trained."""

from absl.testing import absltest
from absl.testing import parameterized
import jax

from jaxopt_compress.train import options
from jaxopt_compress.train.tasks import check
from jaxopt_compress.train.tasks import read
from jaxopt_compress.train.tasks import task as task_lib

REGRESSION = read.read(options.Task(name='regression'), 'digits')
DATA = options.Data(name='digits')


def like(*shape, dtype='float32'):
  return jax.ShapeDtypeStruct(shape, dtype)


def scalar(answers, targets, mask):
  return answers.sum()


def rows(answers, targets, mask):
  return answers.sum(-1), answers.sum(-1)


def paired(answers, targets, mask):
  return (mask * abs(answers - targets)).sum(), mask.sum()


def ranked(answers, targets, mask):
  later = targets[:, None] > targets[None]
  ahead = answers - answers[:, 0][None]
  return (later * ahead).sum(), mask.sum()


def broken(answers, targets, mask):
  raise KeyError('a')


class CheckTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(label_smoothing=0.1), 'no effect without cross entropy'),
    (dict(cache=options.Cache(k=2)), 's.cache is of classes'),
    (dict(distil=dict(ensemble=True)), 's.ensemble is of classes'),
    (dict(distil=dict(loss='jsd')), "'jsd', which compares distributions"),
    (dict(distil=dict(loss='mse')), ''),
    (dict(distil=dict(loss='cosine')), ''),
  )
  def test_stages(self, said, message):
    if 'distil' in said:
      said = said | {'distil': options.Distil(teacher='t', **said['distil'])}
    stage = options.Stage(name='s', model='m', steps=1, **said)
    if not message:
      return check.check('s', stage, DATA, REGRESSION)
    with self.assertRaisesRegex(ValueError, message):
      check.check('s', stage, DATA, REGRESSION)

  def test_data(self):
    stage = options.Stage(name='s', model='m', steps=1)
    for said in (dict(labels=0.5), dict(label_noise=0.5)):
      with self.assertRaisesRegex(
        ValueError, f'{next(iter(said))} is of classes'
      ):
        data = options.Data(name='digits', **said)
        check.check('s', stage, data, REGRESSION)

  @parameterized.parameters(
    ((4, 1), (4,), ''),
    ((4, 2), (4, 2), ''),
    ((4,), (4,), ''),
    ((4, 2), (4,), r'm answers float32\[4, 2\] where targets are float32\[4\]'),
    ((4, 1), (4, 2), r'one number for each target'),
  )
  def test_shapes(self, answers, targets, message):
    args = REGRESSION, like(*answers), like(*targets), 'm'
    if not message:
      return check.check_answers(*args)
    with self.assertRaisesRegex(ValueError, message):
      check.check_answers(*args)

  @parameterized.parameters(
    (scalar, r'the loss .mine. is a function .* and gives'),
    (rows, 'both are scalars'),
    (broken, "the loss .mine. is not to be had. KeyError: 'a'"),
  )
  def test_own_losses(self, loss, message):
    task = task_lib.Task(loss, 'mine', {})
    with self.assertRaisesRegex(ValueError, message):
      check.check_answers(task, like(4, 2), like(4, 2), 'm')

  def test_own_metrics(self):
    task = task_lib.Task(ranked, 'mine', {'m': task_lib.Metric(rows)})
    with self.assertRaisesRegex(
      ValueError, "metric 'm' is .* both are scalars"
    ):
      check.check_answers(task, like(4, 1), like(4), 'm')

  def test_what_is_broadcast_by_accident(self):
    check.check_answers(
      task_lib.Task(ranked, 'mine', {}), like(4, 1), like(4), 'm'
    )
    with (
      jax.numpy_rank_promotion('allow'),
      self.assertRaisesRegex(ValueError, r'Read answers\[:, 0\]'),
    ):
      check.check_answers(
        task_lib.Task(paired, 'mine', {}), like(4, 1), like(4), 'm'
      )


if __name__ == '__main__':
  absltest.main()
