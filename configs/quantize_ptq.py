"""Post-training quantisation alone: one network, five formats, nothing trained.

Claim: int8 weights answer as the float network does, alone, with activations rounded
  at run time, and with activations rounded in ranges that were calibrated on training
  images (97.77% all four, KL at most 0.0001); int4 costs little more (96.9%; with a
  scale for every 32 weights 97.5%).
Cost: half a minute on two CPU cores.
Command: python -m launch.main --config=configs/quantize_ptq.py --workdir=/tmp/ptq
"""

import ml_collections

from jaxopt_compress.core import choices
from jaxopt_compress.train import plan


def get_config(arg=''):
  choices.one_of('arg', arg, ('', 'runlocal'), '=')
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.data = dict(name='digits', train='train+validation', eval_batch_size=359)
  c.models = dict(mlp=dict(in_features=64, widths=(256, 256)))
  c.stages = (
    'float',
    'w8a16',
    'w8a8',
    'w8a8_static',
    'w4a16',
    'w4_groups_of_32',
  )
  c.stage = {
    'float': dict(
      model='mlp',
      steps=600,
      batch_size=128,
      learning_rate=2e-3,
      weight_decay=1e-2,
      augment=True,
    )
  }
  formats = {
    'w8a16': 'W8A16',
    'w8a8': 'W8A8',
    'w8a8_static': 'int8, int8 tensor static asym',
    'w4a16': 'W4A16',
    'w4_groups_of_32': 'int4 g32',
  }
  for name, scheme in formats.items():
    c.stage[name] = dict(
      model='mlp',
      init='float',
      quantize=((r'.*/kernel', scheme), (r'.*', None)),
    )
  c.report = dict(reference='float')
  if arg == 'runlocal':
    c.stage['float'].steps = 10
    c.report.seconds = 0.0
  return plan.complete(c)
