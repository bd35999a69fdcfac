"""The main job: digits, from a teacher to an int8 student, in one command.

Claim: a student with more than 20 times fewer bytes than its teacher, within one
  point of it on the held-out fifth of scikit-learn's digits.
Cost: under 4 minutes on two CPU cores, report included.
Command: python -m launch.main --config=configs/digits.py --workdir=/tmp/digits
  In seconds, to see that it works: --config=configs/digits.py:runlocal
"""

import ml_collections

from jaxopt_compress.train import plan


def get_config(arg=''):
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.data = dict(
    name='digits', train='train+validation', test='test', eval_batch_size=360
  )
  c.models = dict(
    teacher=dict(name='resnet', widths=(16, 32), depths=1),
    student=dict(name='resnet', widths=(8, 16), depths=1),
  )
  c.stages = ('teacher', 'student', 'qat', 'int8', 'int4')
  train = dict(batch_size=128, augment=True, weight_decay=1e-3, clip=1.0)
  distil = dict(teacher='teacher', alpha=0.9, temperature=4.0)
  c.stage = dict(
    teacher=dict(
      model='teacher', steps=300, learning_rate=3e-3, warmup=0.1, **train
    ),
    student=dict(
      model='student', steps=300, learning_rate=5e-3, **distil, **train
    ),
    qat=dict(
      model='student',
      init='student',
      steps=100,
      learning_rate=5e-4,
      quantize=((r'.*/kernel', 'W8A8'), (r'.*', None)),
      **distil,
      **train,
    ),
    int8=dict(
      model='student',
      init='student',
      quantize=((r'.*/kernel', 'W8A8'), (r'.*', None)),
    ),
    int4=dict(
      model='student',
      init='student',
      quantize=((r'.*/kernel', 'W4A16'), (r'.*', None)),
    ),
  )
  c.report = dict(export=('student', 'int8'))
  c.run = dict(log_every=50, save_every=100)
  if arg == 'runlocal':
    for name in c.stages:
      c.stage[name].steps = min(c.stage[name].get('steps', 0), 4)
    c.report.seconds = 0.1
    c.run.log_every = 2
  return plan.complete(c)
