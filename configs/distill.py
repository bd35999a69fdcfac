"""Distillation alone: the same small network, with and without a teacher.

Claim: from few labels (the validation split, a tenth of the digits) a student
  learns more from a teacher's probabilities than from the labels.
Cost: about a minute on two CPU cores.
Command: python -m launch.main --config=configs/distill.py --workdir=/tmp/distill
"""

import ml_collections

from jaxopt_compress.train import plan


def get_config(arg=''):
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.data = dict(name='digits', train='validation', eval_batch_size=360)
  c.models = dict(
    big=dict(name='resnet', widths=(16, 32), depths=1),
    small=dict(name='mlp', in_features=64, widths=(16,)),
  )
  common = dict(steps=300, batch_size=64, augment=True)
  c.stages = ('teacher', 'labels', 'distilled', 'warm_started')
  small = dict(model='small', learning_rate=1e-2, **common)
  c.stage = dict(
    teacher=dict(model='big', learning_rate=3e-3, warmup=0.1, **common),
    labels=small,
    distilled=dict(teacher='teacher', alpha=1.0, temperature=4.0, **small),
    warm_started=dict(
      teacher='teacher', init='labels', alpha=1.0, temperature=4.0, **small
    ),
  )
  if arg == 'runlocal':
    for stage in c.stage.values():
      stage.steps = 10
    c.report = dict(seconds=0.0)
  return plan.complete(c)
