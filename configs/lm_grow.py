"""A small language model of bytes starts a large one: twice as deep.

Claim: a decoder of two layers that has learned for 150 steps becomes one of four that
  computes the same, and goes on from there. Counting the operations of the small one, it
  reaches the loss that the large one ends with, from scratch, after 75% of that one's
  operations, is ahead at all points of the curve, and ends, at 99%, with 2.334 bits per
  byte to 2.387. One seed, and a rival whose rate falls over all of its 300 steps: one
  that falls sooner was not run.
  Wider as well saved nothing. From half the width and depth, trained until its rate was
  0 (250 and 200 steps, net2net): ahead up to 40% of the operations, then behind, at the
  end 1.736 nats to 1.654. The same at a constant rate (120 and 280 steps, zero start):
  ahead up to 65%, then behind (1.703 to 1.691 at 73%, where it was stopped).
Cost: about ten minutes on two CPU cores that others use, too.
Command: python -m launch.main --config=configs/lm_grow.py --workdir=/tmp/lm_grow
"""

import ml_collections

from jaxopt_compress.core import choices
from jaxopt_compress.train import plan


def get_config(arg=''):
  choices.one_of('arg', arg, ('', 'runlocal'), '=')
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.data = dict(
    name='text',
    input='tokens',
    target='label',
    window=128,
    # Curves are drawn on it, and nothing is chosen by them.
    validation='test',
    eval_batch_size=32,
    limit=16_384,
  )
  both = dict(
    name='decoder',
    width=128,
    heads=8,
    kv_heads=4,
    mlp_width=256,
    max_length=128,
    lookback=3,
  )
  c.models = dict(small=both | dict(depth=2), large=both | dict(depth=4))
  common = dict(batch_size=16, learning_rate=4e-3, weight_decay=1e-2, clip=1.0)
  common['eval_every'] = 25
  c.stages = ('small', 'grown', 'large')
  c.stage = dict(
    # At a rate that does not fall: what has come to rest starts the large one worse.
    small=dict(
      model='small', steps=150, warmup=0.05, decay='constant', **common
    ),
    # As many steps as make both together as dear as the rival.
    grown=dict(
      model='small',
      init='small',
      steps=220,
      warmup=0.02,
      grow=dict(depth=2.0),
      **common,
    ),
    # The rival: the large network from scratch.
    large=dict(model='large', steps=300, warmup=0.05, **common),
  )
  c.report = dict(
    metric='bits per byte', reference='large', batches=(1, 32), seconds=0.5
  )
  c.run = dict(log_every=50, save_every=300)
  if arg == 'runlocal':
    c.data.update(window=32, eval_batch_size=8, limit=1_000)
    for model in c.models.values():
      model.max_length = 32
    for stage in c.stage.values():
      stage.update(steps=2, batch_size=4, eval_every=1)
    c.report.update(seconds=0.0, batches=(1,))
  return plan.complete(c)
