"""Pruning alone: a network trains while most of its weights are taken away.

Claim: with 70% of its kernels masked on a cubic schedule, or with 2 weights kept of
  each 4, a small ResNet is within half a point of the dense one that it starts
  from (99.2 -> 98.9 and 99.2%; seed 1: 98.6 -> 99.2 and 99.2). Neither is faster
  here: the dense program multiplies the zeros. On disk they are 2.5 and 1.7 times
  smaller.
Cost: about a minute on two CPU cores.
Command: python -m launch.main --config=configs/prune.py --workdir=/tmp/prune
"""

import ml_collections

from jaxopt_compress.core import choices
from jaxopt_compress.train import plan

# The stem and the head are small and hurt most.
KEEP = ((r'(stem|head)/.*', None),)


def get_config(arg=''):
  choices.one_of('arg', arg, ('', 'runlocal'), '=')
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.data = dict(name='digits', train='train+validation', eval_batch_size=359)
  c.models = dict(resnet=dict(widths=(16, 32), depths=1))
  common = dict(model='resnet', batch_size=128, augment=True, clip=1.0)
  pruned = dict(init='dense', steps=400, learning_rate=3e-3, **common)
  c.stages = ('dense', 'sparse', 'two_of_four')
  c.stage = dict(
    dense=dict(steps=300, learning_rate=5e-3, warmup=0.1, **common),
    sparse=dict(
      prune=(*KEEP, (r'.*/kernel', 0.7), (r'.*', None)),
      prune_span=(0.0, 0.6),
      **pruned,
    ),
    two_of_four=dict(
      prune=(*KEEP, (r'.*/kernel', '2:4'), (r'.*', None)),
      prune_span=(0.0, 0.1),
      **pruned,
    ),
  )
  c.report = dict(reference='dense')
  c.run = dict(save_every=100)
  if arg == 'runlocal':
    for stage in c.stage.values():
      stage.steps = 10
    c.report.seconds = 0.0
  return plan.complete(c)
