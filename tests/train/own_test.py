"""A user's network, data, loss and metric through a whole run, on four devices."""

import pathlib

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from jaxopt_compress import report
from jaxopt_compress.export import trees
from jaxopt_compress.train import loop
from jaxopt_compress.train import tasks
from tests.models.own import networks

HERE = f'{__name__}:'
NETS = f'{networks.__name__}:'
RULES = ((r'.*/kernel', 'W8A8'), (r'.*', None))


def focal(answers, targets, mask=None, *, gamma=1.0):
  log_p = jax.nn.log_softmax(answers)
  log_p = jnp.take_along_axis(log_p, targets[:, None], -1)[:, 0]
  loss = -((1 - jnp.exp(log_p)) ** gamma) * log_p
  weights = jnp.ones(len(loss)) if mask is None else mask
  return (loss * weights).sum(), weights.sum()


def wrong(answers, targets, mask):
  return ((answers.argmax(-1) != targets) & mask).sum(), mask.sum()


error = tasks.Metric(wrong, higher_is_better=False, spec='.1%')


def load(split, size=64):
  x = np.random.default_rng(len(split)).normal(size=(size, 4))
  return {'x': x, 'y': np.stack([x.sum(1), 9 + x[:, 0]], -1)}


def entropy(answers, targets, mask=None):
  loss = jnp.logaddexp(0.0, answers) - answers * (targets > 0)
  weights = jnp.ones(loss.shape) if mask is None else mask
  return (loss * weights).sum(), weights.sum()


labels = tasks.Task(
  entropy,
  'binary cross entropy',
  {'error': tasks.Metric(wrong, False)},
)


class OwnTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path, capsys):
    self.root, self.capsys = pathlib.Path(tmp_path), capsys
    # What is compiled here runs for two steps: compiling is all that takes time.
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)

  def pets(self):
    """Two classes of images of several sizes, some grey, some in colours."""
    rng = np.random.default_rng(0)
    for i in range(40):
      size = (*rng.integers(4, 9, 2), *[3] * (i % 3 == 0))
      file = self.root / 'pets' / ('cat', 'dog')[i % 2] / f'{i}.png'
      file.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(file)
    return self.root / 'pets'

  def run_(self, data, models, stage, **said):
    stages = {name: dict(model='net', **s) for name, s in stage.items()}
    config = dict(
      data=dict(eval_batch_size=16, **data),
      models=models,
      stages=tuple(stages),
      stage=stages,
      **{'report': {}} | said,
    )
    config['report'] |= dict(seconds=0.0, batches=(2,), plots=False)
    loop.run(config, self.root / 'work')
    return report.read(self.root / 'work')

  def test_images_and_a_network_with_batch_norm(self):
    folder = f'folder@{self.pets()}'
    data = dict(
      name='images',
      train=f'{folder}[:80%]',
      test=f'{folder}[80%:]',
      size=4,
      channels=1,
    )
    net = dict(name=f'{NETS}Nnx', in_features=16)
    stage = {
      'a': dict(steps=2, batch_size=8, augment=True),
      'b': dict(init='a', quantize=RULES),
    }
    page = self.run_(
      data,
      dict(net=net),
      stage,
      task=dict(loss=f'{HERE}focal, gamma 2.0'),
      report=dict(metric=f'{HERE}error', export=('b',)),
    )
    said = self.capsys.readouterr().out
    self.assertIn('32 to train, 8 held out; 2 classes: cat, dog', said)
    self.assertIn('config.models.net: num_classes=2', said)
    row = page.stages[1]
    self.assertEqual((row.metric, row.higher_is_better), ('error', False))
    self.assertEqual(page.answers[0].loss_name, 'focal')
    self.assertIn('answers are the same', page.facts['export of b'])
    # As `len(x)` in the network is a number.
    self.assertIn('takes 16 examples at a time', page.facts['export of b'])
    state = trees.load(self.root / 'work/stages/a/weights.safetensors')
    self.assertTrue(np.any(np.asarray(state['variables']['norm']['mean'])))

  def test_several_numbers_and_a_file(self):
    """Distillation and rounding of numbers, from weights of a file."""
    net = networks.Linen(num_classes=2)
    own = net.init(jax.random.key(0), jnp.zeros((1, 4)), train=False)
    trees.save(self.root / 'w.safetensors', own)
    data = dict(name=f'{HERE}load', input='x', target='y', size=32)
    small = dict(batch_size=8, steps=2)
    page = self.run_(
      data,
      dict(net=dict(name=f'{NETS}Linen', num_classes=2)),
      {
        'a': dict(init=f'{self.root}/w.safetensors'),
        'b': dict(teacher='a', **small),
        'c': dict(init='b', teacher='b', quantize=RULES, **small),
      },
      task=dict(name='regression', standardize=True),
    )
    self.assertEqual([r.metric for r in page.stages], ['rmse'] * 3)
    self.assertIsNone(page.stages[1].agreement)
    self.assertGreater(page.stages[1].difference, 0)
    self.assertIn('mean', page.facts['targets to train on'])
    numbers = page.answers[2].numbers
    self.assertEqual(set(numbers), {'mae', 'r2'})
    # What the first stage leaves answers in the units of the targets.
    held_out = load('test', 32)
    y = net.apply(own, np.float32(held_out['x']), train=False)
    t, train = held_out['y'], load('train', 32)['y']
    e = train.mean(0) + train.std(0) * np.asarray(y, float) - t
    self.assertAlmostEqual(
      page.stages[0].value, np.sqrt((e**2).mean()), places=3
    )

  def test_a_linen_network_shrinks(self):
    net = dict(name=f'{NETS}Linen', width=8, num_classes=2)
    said = (
      dict(name=f'{HERE}load', input='x', target='y', size=32),
      dict(net=net),
      {
        'a': dict(steps=1, batch_size=8),
        'b': dict(init='a', shrink=dict(keep=0.5), steps=1, batch_size=8),
      },
    )
    regression = dict(name='regression', standardize=True)
    page = self.run_(*said, task=regression, report=dict(export=('b',)))
    # Kernels and biases of two layers, and the scale and bias of a norm.
    sizes = [4 * n + 2 * n + 2 + n + 2 * n for n in (8, 4)]
    self.assertEqual([r.parameters for r in page.stages], sizes)
    self.assertIn('outputs differ by at most 0;', page.facts['export of b'])
    # The plan is read again, and nothing is trained.
    page = self.run_(*said, task=regression, report=dict(export=('b',)))
    self.assertEqual([r.parameters for r in page.stages], sizes)

  def test_a_task_of_ones_own(self):
    data = dict(name=f'{HERE}load', input='x', target='y', size=32)
    with pytest.raises(
      ValueError, match=r"the metric 'error' is not to be had"
    ):
      self.run_(
        data,
        dict(net=dict(name=f'{NETS}Linen', num_classes=2)),
        {'a': dict(steps=1, batch_size=8)},
        task=f'{HERE}labels',
      )
