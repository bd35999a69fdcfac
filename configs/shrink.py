"""Channels go: a network of half of the operations, distilled from the whole one.

Claim: an MLP with half of the operations of the one that it comes from is within a
  point of it after 100 steps of distillation: 95.8, 96.1 and 95.3 against 96.7, 96.4
  and 94.7% (seeds 0, 1, 2). At batch 256 it is 2.3, 2.3 and 1.9 times as fast in
  float32, and in int8 at least 7 times. The same network from scratch, for as many
  steps, gets to 94.2, 95.3 and 93.9%, and with the same teacher to 95.8, 95.3 and
  94.4: never better than the network that was shrunk.
Cost: about a minute on two CPU cores.
Command: python -m launch.main --config=configs/shrink.py --workdir=/tmp/shrink
  Another seed: --config=configs/shrink.py --config.seed=1 and another workdir.
"""

import ml_collections

from jaxopt_compress.core import choices
from jaxopt_compress.train import plan

# Half of the operations of 1024, by eights.
WIDTH, HALF = 1024, 712


def get_config(arg=''):
  choices.one_of('arg', arg, ('', 'runlocal'), '=')
  c = ml_collections.ConfigDict()
  c.seed = 0
  # Every fifth label is wrong, so that the task is not too easy to tell.
  c.data = dict(
    name='digits',
    train='train+validation',
    eval_batch_size=359,
    label_noise=0.2,
  )
  c.models = dict(
    big=dict(name='mlp', widths=(WIDTH, WIDTH)),
    small=dict(name='mlp', widths=(HALF, HALF)),
  )
  common = dict(
    batch_size=128, augment=True, learning_rate=1e-3, warmup=0.1, clip=1.0
  )
  taught = dict(teacher='dense', alpha=0.9, temperature=2.0)
  rules = ((r'.*/kernel', 'W8A8'), (r'.*', None))
  c.stages = ('dense', 'shrunk', 'shrunk_int8', 'scratch', 'scratch_taught')
  c.stage = dict(
    dense=dict(model='big', steps=600, **common),
    shrunk=dict(
      model='big',
      init='dense',
      steps=100,
      shrink=dict(flops=0.5, score='taylor', multiple=8, compensate=True),
      **taught,
      **common,
    ),
    shrunk_int8=dict(model='big', init='shrunk', quantize=rules),
    # The honest rivals: the same network, never large, for the same steps.
    scratch=dict(model='small', steps=100, **common),
    scratch_taught=dict(model='small', steps=100, **taught, **common),
  )
  c.report = dict(batches=(1, 256), seconds=2.0)
  c.run = dict(save_every=300)
  if arg == 'runlocal':
    c.models.big.widths = (16, 16)
    c.models.small.widths = (8, 8)
    for stage in c.stage.values():
      if stage.get('steps'):
        stage.steps = 10
    c.report.seconds = 0.0
  return plan.complete(c)
