"""Quantisation-aware training alone: int4 weights, rounded once or trained so.

Claim: one int4 scale for a whole kernel hurts when it is rounded after training,
  and training on the rounded weights wins it back.
Cost: about a minute on two CPU cores.
Command: python -m launch.main --config=configs/quantize_qat.py --workdir=/tmp/qat
"""

import ml_collections

from jaxopt_compress.train import plan

# The arguments of jc.Scheme: weight, granularity, group, act.
RULES = ((r'.*/kernel', ('int4', 'tensor', 0, 'int8')), (r'.*', None))


def get_config(arg=''):
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.data = dict(name='digits', train='train+validation', eval_batch_size=360)
  c.models = dict(mlp=dict(in_features=64, widths=(64, 64)))
  common = dict(model='mlp', batch_size=128, augment=True)
  c.stages = ('float', 'rounded', 'trained')
  c.stage = {
    'float': dict(steps=600, learning_rate=3e-3, **common),
    'rounded': dict(model='mlp', init='float', quantize=RULES),
    'trained': dict(
      init='float', steps=300, learning_rate=1e-3, quantize=RULES, **common
    ),
  }
  c.report = dict(reference='float', export=('trained',))
  if arg == 'runlocal':
    c.stage['float'].steps = 10
    c.stage['trained'].steps = 10
    c.report.seconds = 0.0
  return plan.complete(c)
