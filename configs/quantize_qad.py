"""Quantisation-aware distillation: the float network teaches its own rounded form.

Claim: of a float MLP of 97.5% on held-out digits, over five orders of the training data:
  - int4 weights and activations, trained on labels, 97.3% (97.2 to 97.8), and taught by
    the float network, no labels read, 97.7% (96.9 to 98.1): no loss, and a gain within
    the spread. Both are as close to the float network: KL 0.0081;
  - int2 weights: 95.6% (95.0 to 96.1) and 95.0% (93.6 to 96.1), with KL 0.036 and
    0.034. The teacher is no help there.
Cost: a minute on two CPU cores.
Command: python -m launch.main --config=configs/quantize_qad.py --workdir=/tmp/qad
  Another seed: --config=configs/quantize_qad.py --config.seed=1 and another workdir.
"""

import ml_collections

from jaxopt_compress.core import choices
from jaxopt_compress.train import plan

# Four bits for weights and activations, in calibrated ranges that are then learned;
# two bits for weights alone.
FORMATS = {
  'w4a4': 'int4 tensor mse lsq, int4 tensor static asym lsq',
  'w2a16': 'int2 channel mse lsq',
}


def get_config(arg=''):
  choices.one_of('arg', arg, ('', 'runlocal'), '=')
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.data = dict(name='digits', train='train+validation', eval_batch_size=359)
  c.models = dict(mlp=dict(in_features=64, widths=(32, 32)))
  common = dict(model='mlp', batch_size=128, augment=True, warmup=0.1, clip=1.0)
  c.stage = {'float': dict(steps=1500, learning_rate=5e-3, **common)}
  for name, words in FORMATS.items():
    rules = ((r'.*/kernel', words), (r'.*', None))
    trained = dict(
      init='float', steps=300, learning_rate=1e-3, quantize=rules, **common
    )
    c.stage[f'{name}_labels'] = trained
    c.stage[f'{name}_taught'] = dict(teacher='float', alpha=1.0, **trained)
  c.stages = tuple(c.stage)
  c.report = {}
  if arg == 'runlocal':
    c.stages = ('float', 'w4a4_taught', 'w2a16_taught')
    for name in c.stages:
      c.stage[name].steps = 10
    c.report.update(seconds=0.0, batches=(1,))
  return plan.complete(c)
