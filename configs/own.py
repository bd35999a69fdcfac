"""Your own model, data, task and metric: numbers as answers, of a Linen module.

Claim: int8 answers as the float network does (rmse 59.6 for 59.7, of targets that deviate
  by 75) in 30% of its bytes; a network of 4% of its bytes that learns from it is no worse
  (58.1). There are 89 held-out patients: take differences of less than two for noise.
Cost: half a minute on two CPU cores.
Command: python -m launch.main --config=configs/own.py --workdir=/tmp/own
  In seconds, to see that it works: --config=configs/own.py:runlocal

Copy this file and the folder `own` beside it, and write your own there. A name is
'file.py:name' or 'package.module:name'; both are looked for where you start, beside the
config, and where Python finds modules.
"""

import pathlib

import ml_collections

from jaxopt_compress.core import choices
from jaxopt_compress.train import plan

OWN = pathlib.Path(__file__).parent / 'own'
KERNELS, REST = r'.*/kernel', (r'.*', None)


def get_config(arg=''):
  choices.one_of('arg', arg, ('', 'runlocal'), '=')
  c = ml_collections.ConfigDict()
  c.seed = 0
  # `load(split)` gives a dict of arrays, or a sequence of dicts. A part of a split is of
  # a shuffle that is always the same; what else is said here are keywords of `load`.
  c.data = dict(
    name=f'{OWN}/patients.py:load',
    input='features',
    target='progression',
    train='all[:60%]',
    validation='all[60%:80%]',
    test='all[80%:]',
  )
  # Targets run from 25 to 346: the network learns them with mean 0 and deviation 1.
  c.task = dict(name='regression', loss='huber, delta 1.0', standardize=True)
  # Other keywords than the name are those of the class.
  c.models = dict(
    net=dict(name=f'{OWN}/nets.py:Net', widths=(64, 64)),
    small=dict(name=f'{OWN}/nets.py:Net', widths=(16,), dropout=0.0),
  )
  c.stages = ('net', 'int8', 'small')
  train = dict(
    batch_size=32, learning_rate=3e-3, weight_decay=1e-2, warmup=0.1, clip=1.0
  )
  c.stage = dict(
    # Evaluated on the validation split every 50 steps; the best step is what stays.
    net=dict(model='net', steps=400, eval_every=50, keep='best', **train),
    int8=dict(model='net', init='net', quantize=((KERNELS, 'W8A8'), REST)),
    # It learns from the answers of the large network, by their squared difference.
    small=dict(model='small', teacher='net', alpha=0.5, steps=400, **train),
  )
  # The numbers of regression are 'rmse', 'mae' and 'r2'; a function of yours,
  # 'metrics.py:name', is one as well.
  c.report = dict(metric='rmse', export=('int8',), batches=(1, 64))
  c.run = dict(log_every=100, save_every=200)

  if arg == 'runlocal':
    for stage in ('net', 'small'):
      c.stage[stage].steps = 4
    c.stage.net.eval_every = 2
    c.report.seconds = 0.0
    c.run.log_every = 2
  return plan.complete(c)
