"""A language model of bytes learns from a teacher that is asked once.

Claim: 12 draws from each answer of the teacher, 18 bytes for a byte of text, teach a
  student what the live teacher does, and no step runs it. Held-out bits per byte: 2.144
  teacher, 2.743 labels alone, 2.623 live, 2.614 from 12 draws; 2.677 from the 8
  likeliest entries and the mass of the rest, which are 25 bytes and say nothing of what
  is inside the rest. One seed, after 200 steps, where all would go on learning; each
  stage has a start and windows of its own, so a hundredth of a bit says nothing.
Cost: eight minutes on two busy CPU cores, before the report.
Command: python -m launch.main --config=configs/lm_cached.py --workdir=/tmp/lm_cached
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
    eval_batch_size=32,
    limit=40_000,
  )
  c.models = dict(
    large=dict(
      name='decoder', width=96, depth=3, heads=4, kv_heads=2, mlp_width=240,
      max_length=128, lookback=3,
    ),
    small=dict(
      name='decoder', width=32, depth=2, heads=2, kv_heads=1, mlp_width=80,
      max_length=128, lookback=3,
    ),
  )  # fmt: skip
  common = dict(optimizer='muon', batch_size=16, warmup=0.04, clip=1.0)
  small = dict(model='small', steps=200, learning_rate=2e-2, **common)
  taught = dict(teacher='teacher', alpha=0.9, temperature=1.0, **small)
  c.stages = ('teacher', 'labels', 'live', 'cached', 'drawn')
  c.stage = dict(
    teacher=dict(
      model='large', steps=250, learning_rate=2e-2, weight_decay=1e-2, **common
    ),
    labels=small,
    live=taught,
    # 8 of 256 entries and the mass of the rest: 25 bytes for each byte of text.
    cached=dict(cache=dict(k=8), **taught),
    # 12 entries drawn: 18 bytes.
    drawn=dict(cache=dict(draws=12), **taught),
  )
  c.report = dict(
    metric='bits per byte', reference='teacher', batches=(1,), seconds=0.2
  )
  c.run = dict(log_every=50, save_every=200)
  if arg == 'runlocal':
    c.data.update(window=32, eval_batch_size=8, limit=1_000)
    for model in c.models.values():
      model.update(width=32, depth=1, mlp_width=64, max_length=32)
    c.stages = ('teacher', 'cached', 'drawn')
    for name in c.stages:
      c.stage[name].update(steps=2, batch_size=4)
    c.report.update(seconds=0.0)
  return plan.complete(c)
