"""Features of a teacher: hints, attention and relations, beside logits.

Claim: features of any block are one line, and their connectors are no part of what a
  stage leaves: each student below has the 1,382 parameters of the one that sees labels
  alone. None that a teacher helps where each image has a label: with seeds 0 and 1, the
  only ones measured, where one image is 0.28 points, labels alone give 93.9 and 94.4%,
  the logits of a teacher of 99.2 and 98.6% give 91.4 and 93.0%; with hints beside them
  it is 89.4 and 90.8%, with attention 94.2 and 94.2%, with relations 91.9 and 93.3%.
Cost: a minute and a quarter of a processor, half of it compiling, the report aside.
Command: python -m launch.main --config=configs/features.py --workdir=/tmp/features
  Another seed: --config=configs/features.py --config.seed=1 and another workdir.
"""

import ml_collections

from jaxopt_compress.core import choices
from jaxopt_compress.train import plan

# What each block gives: the nonlinearity of its sum, behind the last norm in it.
BLOCKS = r'blocks/\d+/(norm2|shortcut_norm)/max'
LAST = 'blocks/1/shortcut_norm/max'


def get_config(arg=''):
  choices.one_of('arg', arg, ('', 'runlocal'), '=')
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.data = dict(name='digits', train='train+validation', eval_batch_size=359)
  c.models = dict(
    big=dict(name='resnet', widths=(32, 64), depths=1),
    small=dict(name='resnet', widths=(4, 8), depths=1),
  )
  common = dict(batch_size=128, augment=True, warmup=0.1, clip=1.0)
  small = dict(model='small', steps=300, learning_rate=1e-2, **common)
  taught = dict(teacher='teacher', alpha=0.9, temperature=4.0, **small)
  c.stages = ('teacher', 'labels', 'logits', 'hint', 'attention', 'relations')
  c.stage = dict(
    teacher=dict(
      model='big', steps=300, learning_rate=3e-3, weight_decay=1e-3, **common
    ),
    labels=small,
    logits=taught,
    hint=dict(taught, features=((BLOCKS, BLOCKS, 'hint', 1.0),)),
    attention=dict(
      taught, features=((BLOCKS, BLOCKS, 'attention_transfer', 1.0),)
    ),
    relations=dict(
      taught,
      features=((LAST, LAST, 'distances', 1.0), (LAST, LAST, 'angles', 2.0)),
    ),
  )
  c.report = {}
  if arg == 'runlocal':
    c.data.update(eval_batch_size=64, limit=64)
    c.models.big.update(widths=(8, 16))
    c.stages = ('teacher', 'hint', 'relations')
    for name in c.stages:
      c.stage[name].update(steps=4, batch_size=16)
    c.report.update(seconds=0.0, batches=(1,))
  return plan.complete(c)
