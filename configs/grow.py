"""A small network of digits starts a large one: twice as wide, and deeper.

Claim: a residual network becomes one twice as wide, with its first block there twice,
  that computes the same, and trains on: freely, and drawn towards its start. Here that
  saves nothing at the end. Over the operations of training, those of the small network
  included, both are ahead of the large one from scratch up to half of its operations
  (loss 0.63 and 0.64 to 0.77) and then behind: at 83% they end with 0.544 and 0.524
  (93.9% and 94.2% right), where it has 0.454, and ends with 0.445 (95.5%). One seed.
Cost: less than five minutes on two CPU cores that others use, too.
Command: python -m launch.main --config=configs/grow.py --workdir=/tmp/grow
"""

import ml_collections

from jaxopt_compress.core import choices
from jaxopt_compress.train import plan


def get_config(arg=''):
  choices.one_of('arg', arg, ('', 'runlocal'), '=')
  c = ml_collections.ConfigDict()
  c.seed = 0
  # Every fifth label is wrong, so that the task is not too easy to tell.
  c.data = dict(
    name='digits',
    train='train+validation',
    # Curves are drawn on it, and nothing is chosen by them.
    validation='test',
    eval_batch_size=359,
    label_noise=0.2,
  )
  c.models = dict(
    small=dict(name='resnet', widths=(8, 16), depths=(1, 1)),
    large=dict(name='resnet', widths=(16, 32), depths=(2, 1)),
  )
  common = dict(
    batch_size=64,
    augment=True,
    learning_rate=3e-3,
    warmup=0.1,
    eval_every=10,
  )
  pull = dict(
    penalty=((r'.*/kernel', 'l2_sp'), (r'.*', None)), penalty_weight=1e-3
  )
  c.stages = ('small', 'grown', 'pulled', 'large')
  c.stage = dict(
    small=dict(model='small', steps=150, **common),
    grown=dict(
      model='small',
      init='small',
      steps=100,
      grow=dict(factor=2.0, depth=2.0),
      **common,
    ),
    pulled=dict(
      model='small',
      init='small',
      steps=100,
      grow=dict(factor=2.0, depth=2.0),
      **pull,
      **common,
    ),
    # The rival: the large network from scratch.
    large=dict(model='large', steps=150, **common),
  )
  c.report = dict(reference='large', batches=(1, 256), seconds=0.5)
  c.run = dict(save_every=150)
  if arg == 'runlocal':
    c.data.update(eval_batch_size=64, limit=64)
    c.models.small.update(widths=(4, 8))
    c.models.large.update(widths=(8, 16))
    c.stages = ('small', 'pulled', 'large')
    for stage in c.stage.values():
      stage.update(steps=2, batch_size=16, eval_every=1)
    c.report.update(seconds=0.0, batches=(1,))
  return plan.complete(c)
