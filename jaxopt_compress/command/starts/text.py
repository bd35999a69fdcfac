"""Your text: a language model of bytes, smaller and in fewer bits.

    jaxopt-compress --config=text.py --workdir=/tmp/text --dry_run
    jaxopt-compress --config=text.py --workdir=/tmp/text

The first checks that everything fits together; the second runs, and goes on where it
stopped if it is given again. `text.py:runlocal` is a run of seconds. Any value can be
changed for one run: --config.stage.teacher.steps=500
"""

import ml_collections

from jaxopt_compress.core import choices
from jaxopt_compress.train import plan

# "Where" is a list of (pattern, what): the first pattern that matches the path of a
# weight decides, and every weight has to be covered. None leaves it as it is.
MATRICES, REST = r'blocks/.*/kernel', (r'.*', None)


def _stages():
  """What is done in each stage, in their order."""
  train = dict(
    batch_size=8,  # smaller, where memory is short
    optimizer='muon',
    learning_rate=2e-2,  # lower it if a loss is not finite
    warmup=0.05,  # the first steps
    weight_decay=1e-2,
    clip=1.0,
    # Every so many steps the network answers what `data.validation` keeps back, and the
    # best of these steps is what stays: the last may know its examples by heart.
    eval_every=100,
    keep='best',
  )
  return dict(
    teacher=dict(model='teacher', steps=900, **train),
    # Half of the channels go, those that matter least, and the rest is trained on.
    pruned=dict(
      model='teacher',
      init='teacher',
      steps=300,
      shrink=dict(keep=0.5, score='taylor'),
      teacher='teacher',
      **train,
    ),
    # A small network learns from the answers of the large one.
    student=dict(model='student', steps=900, teacher='teacher', **train),
    # Codes of 8 bits for weights and activations: the quick form. Codes of 4 bits for
    # weights alone: the small form.
    int8=dict(
      model='student', init='student', quantize=((MATRICES, 'W8A8'), REST)
    ),
    int4=dict(
      model='student', init='student', quantize=((MATRICES, 'W4A16'), REST)
    ),
  )


def get_config(arg=''):
  choices.one_of('arg', arg, ('', 'runlocal'), '=')
  c = ml_collections.ConfigDict()
  c.seed = 0
  # The sources of Python's own library, which are on every machine. A file is either
  # trained on or held out. Your own: root='my_texts', a folder, and the endings of its
  # files, suffixes=('.txt', '.md'); or root='my.txt', one file, or a few of them, with
  # train='all[:90%]', validation='all[90%:95%]', test='all[95%:]'.
  c.data = dict(
    name='text',
    # A twentieth of the files, to choose by. Never the test split: what is chosen by it
    # looks better on it than it is.
    validation='validation',
    input='tokens',
    target='label',
    window=256,  # bytes of an example; a model takes `max_length` at most
    eval_batch_size=16,
    limit=100_000,  # held-out bytes to be judged by; 0: all
  )

  # The networks. `teacher` is as good as you can afford to train, `student` is what
  # you want to ship.
  c.models = dict(
    teacher=dict(name='decoder', width=256, depth=4, heads=4, lookback=3),
    student=dict(name='decoder', width=128, depth=4, heads=4, lookback=3),
  )

  # What happens, in this order; take out what you do not need. With more steps a
  # finished stage goes on, and those that depend on it run again; for other changes
  # take another workdir.
  c.stages = ('teacher', 'pruned', 'student', 'int8', 'int4')
  c.stage = _stages()

  # Exported programs need JAX and numpy to run, and not this library. Speed is that
  # of these batch sizes, on this machine.
  c.report = dict(
    metric='bits per byte', export=('int8', 'int4'), batches=(1, 16)
  )
  c.run = dict(log_every=20, save_every=100)

  if arg == 'runlocal':
    for stage in c.stage.values():
      if stage.get('steps'):
        stage.update(steps=4, eval_every=2)
    c.data.update(window=32, limit=2_000)
    c.models.teacher.update(width=32, depth=2, max_length=32)
    c.models.student.update(width=16, depth=2, max_length=32)
    c.report.update(seconds=0.0, batches=(1, 2))
  return plan.complete(c)
