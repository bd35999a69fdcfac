"""A language model of bytes: the Python standard library's own sources.

Claim: a decoder of about 3M parameters needs fewer bits for a byte of held-out
  files than `gzip -9`, and W8A8, W4A16 and 50% magnitude pruning keep it so.
Cost: ten minutes on two CPU cores, report included.
Command: python -m launch.main --config=configs/lm.py --workdir=/tmp/lm
"""

import ml_collections

from jaxopt_compress.core import choices
from jaxopt_compress.train import plan

MATRICES = r'blocks/.*/kernel'


def get_config(arg=''):
  choices.one_of('arg', arg, ('', 'runlocal'), '=')
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.data = dict(
    name='text',
    input='tokens',
    target='label',
    window=256,
    eval_batch_size=16,
    limit=100_000,
  )
  c.models = dict(
    decoder=dict(
      width=256,
      depth=4,
      heads=4,
      kv_heads=2,
      mlp_width=640,
      max_length=256,
      lookback=3,
    )
  )
  c.stages = ('float', 'w8a8', 'w4a16', 'half')
  c.stage = {
    'float': dict(
      model='decoder',
      steps=900,
      batch_size=8,
      optimizer='muon',
      learning_rate=2e-2,
      warmup=0.04,
      weight_decay=1e-2,
      clip=1.0,
    ),
    'w8a8': dict(quantize=((MATRICES, 'W8A8'), (r'.*', None))),
    'w4a16': dict(quantize=((MATRICES, 'W4A16'), (r'.*', None))),
    'half': dict(prune=((MATRICES, 0.5), (r'.*', None))),
  }
  for name in c.stages[1:]:
    c.stage[name].update(model='decoder', init='float')
  c.report = dict(
    metric='bits per byte', reference='float', batches=(1, 16), seconds=2.0
  )
  c.run = dict(log_every=20, save_every=100)
  if arg == 'runlocal':
    c.data.update(window=32, limit=2_000)
    c.models.decoder.update(width=32, depth=2, mlp_width=64, max_length=32)
    c.stage['float'].steps = 4
    c.report.update(seconds=0.0, batches=(1, 2))
  return plan.complete(c)
