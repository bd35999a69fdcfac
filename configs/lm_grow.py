"""A small language model of bytes starts a large one: wider and deeper.

Claim: a decoder that has learned for a while becomes one twice as wide and twice as deep
  that computes the same, and goes on from there. The report draws the held-out losses
  over the operations of training, those of the small network included, and says when the
  grown one has the loss that the large one, from scratch, ends with. How much that saves
  is for the run to say: no figure is claimed here.
Cost: some minutes on two CPU cores.
Command: python -m launch.main --config=configs/lm_grow.py --workdir=/tmp/lm_grow
"""

import ml_collections

from jaxopt_compress.core import choices
from jaxopt_compress.train import plan

BLOCKS = 'params/blocks'


def get_config(arg=''):
  choices.one_of('arg', arg, ('', 'runlocal'), '=')
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.data = dict(
    name='text',
    input='tokens',
    target='label',
    window=128,
    eval_batch_size=32,
    limit=16_384,
  )
  small = dict(width=64, depth=2, heads=4, kv_heads=2, mlp_width=128)
  large = dict(width=128, depth=4, heads=8, kv_heads=4, mlp_width=256)
  both = dict(name='decoder', max_length=128, lookback=3)
  c.models = dict(small=small | both, large=large | both)
  common = dict(
    batch_size=16, learning_rate=4e-3, warmup=0.05, weight_decay=1e-2, clip=1.0
  )
  c.stages = ('small', 'grown', 'large')
  c.stage = dict(
    small=dict(model='small', steps=250, **common),
    grown=dict(
      model='small',
      init='small',
      steps=200,
      grow=dict(
        depth=2.0,
        # Width, heads with their keys, and hidden units: twice as many of each.
        sizes=(
          (f'{BLOCKS}/attn/k/kernel:-2', 128),
          (f'{BLOCKS}/attn/k/kernel:-1', 4),
          (f'{BLOCKS}/mlp/down/kernel:-2', 256),
        ),
      ),
      **common,
    ),
    # The rival: the large network from scratch.
    large=dict(model='large', steps=300, **common),
  )
  c.report = dict(
    metric='bits per byte', reference='large', batches=(1, 32), seconds=0.5
  )
  c.run = dict(log_every=50, save_every=300, evaluate_every=25)
  if arg == 'runlocal':
    c.data.update(window=32, limit=2_000)
    for model in c.models.values():
      model.max_length = 32
    for stage in c.stage.values():
      stage.steps = 2
    c.run.evaluate_every = 1
    c.report.update(seconds=0.0, batches=(1, 2))
  return plan.complete(c)
