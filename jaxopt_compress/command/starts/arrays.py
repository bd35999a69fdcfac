"""Your arrays and your network: trained, pruned, distilled into a smaller one, rounded.

    jaxopt-compress --config=arrays.py --workdir=/tmp/arrays --dry_run
    jaxopt-compress --config=arrays.py --workdir=/tmp/arrays

The first checks that everything fits together; the second runs, and goes on where it
stopped if it is given again. `arrays.py:runlocal` is a run of seconds. Any value can be
changed for one run: --config.stage.teacher.steps=500
"""

from flax import nnx
import ml_collections
import numpy as np
from sklearn import datasets

from jaxopt_compress.core import choices
from jaxopt_compress.train import plan


def load(split):
  """Your data: arrays of one length, by name. Here, 569 tumours in 30 numbers each.

  What `data.train` and `data.test` say arrives as `split`. Standardise your inputs:
  networks, and codes of few bits, want numbers around 1.
  """
  features, label = datasets.load_breast_cancer(return_X_y=True)
  features = (features - features.mean(0)) / features.std(0)
  held_out = np.arange(len(label)) % 5 == 0
  chosen = held_out if split == 'test' else ~held_out
  return dict(features=features[chosen].astype('float32'), label=label[chosen])


class Net(nnx.Module):
  """Your network: any Flax module, NNX or Linen, with ordinary arguments."""

  def __init__(self, width: int, classes: int = 2, *, rngs: nnx.Rngs):
    self.first = nnx.Linear(30, width, rngs=rngs)
    self.second = nnx.Linear(width, width, rngs=rngs)
    self.head = nnx.Linear(width, classes, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.first(x))
    return self.head(nnx.relu(self.second(x)))


# "Where" is a list of (pattern, what): the first pattern that matches the path of a
# weight decides, and every weight has to be covered. None leaves it as it is.
KERNELS, REST = r'.*/kernel', (r'.*', None)


def _stages():
  """What is done in each stage, in their order."""
  train = dict(
    batch_size=64,
    learning_rate=1e-3,  # lower it if a loss is not finite
    warmup=0.1,  # the first tenth of the steps
    weight_decay=1e-3,
    clip=1.0,
    # Every so many steps the network answers what `data.validation` keeps back, and the
    # best of these steps is what stays: the last may know its examples by heart.
    eval_every=50,
    keep='best',
  )
  return dict(
    teacher=dict(model='teacher', steps=300, **train),
    # Half of the channels go, those that matter least, and the rest is trained on.
    # The network really is smaller: other than zeros, this saves time and memory.
    pruned=dict(
      model='teacher',
      init='teacher',
      steps=200,
      shrink=dict(keep=0.5, score='taylor'),
      teacher='teacher',
      **train,
    ),
    # A small network learns from the answers of the large one.
    student=dict(model='student', steps=500, teacher='teacher', **train),
    # 'W8A8': weights and activations in int8. 'W4A16': weights in int4. With `steps`
    # and a `teacher` it is trained while it is rounded, which int4 needs more often.
    int8=dict(
      model='student', init='student', quantize=((KERNELS, 'W8A8'), REST)
    ),
  )


def get_config(arg=''):
  choices.one_of('arg', arg, ('', 'runlocal'), '=')
  c = ml_collections.ConfigDict()
  c.seed = 0
  # 'module:function', found beside this file and in the current folder. With floats
  # for targets, add c.task = dict(name='regression').
  c.data = dict(
    name='arrays:load',
    input='features',
    target='label',
    # A tenth of the examples to train on, to choose by. Never the test split: what is
    # chosen by it looks better on it than it is.
    validation=0.1,
  )
  # `teacher` is as good as you can afford to train, `student` is what you want to ship.
  c.models = dict(
    teacher=dict(name='arrays:Net', width=256),
    student=dict(name='arrays:Net', width=32),
  )

  # What happens, in this order; take out what you do not need. With more steps a
  # finished stage goes on, and those that depend on it run again; for other changes
  # take another workdir.
  c.stages = ('teacher', 'pruned', 'student', 'int8')
  c.stage = _stages()

  # Exported programs need JAX and numpy to run, and not this library. Speed is that
  # of these batch sizes, on this machine.
  c.report = dict(export=('student', 'int8'), batches=(1, 256))
  c.run = dict(log_every=50, save_every=200)

  if arg == 'runlocal':
    for stage in c.stage.values():
      if stage.get('steps'):
        stage.update(steps=4, eval_every=2)
    c.report.update(seconds=0.0, batches=(1,))
  return plan.complete(c)
