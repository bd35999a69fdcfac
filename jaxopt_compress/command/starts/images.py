"""Your images: a network is trained, pruned, distilled into a smaller one, and rounded.

    jaxopt-compress --config=images.py --workdir=/tmp/images --dry_run
    jaxopt-compress --config=images.py --workdir=/tmp/images

The first checks that everything fits together; the second runs, and goes on where it
stopped if it is given again. `images.py:runlocal` is a run of seconds. Any value can be
changed for one run: --config.stage.teacher.steps=500
"""

import ml_collections

from jaxopt_compress.core import choices
from jaxopt_compress.data import images
from jaxopt_compress.train import plan

# A folder for each class: my_images/cat/1.jpg, my_images/dog/2.jpg. Four fifths of them
# are trained on. If you have a folder for each split, my_images/train/cat/1.jpg, write
# 'folder:train@my_images' and 'folder:test@my_images'. Other formats:
# 'mnist:train@/data/mnist', 'cifar10:train@/data/cifar-10-batches-bin',
# 'npz@/data/train.npz' with the arrays `image` and `label`.
TRAIN, TEST = 'folder@my_images[:80%]', 'folder@my_images[80%:]'

# "Where" is a list of (pattern, what): the first pattern that matches the path of a
# weight decides, and every weight has to be covered. None leaves it as it is.
KERNELS, REST = r'.*/kernel', (r'.*', None)


def _stages():
  """What is done in each stage, in their order."""
  train = dict(
    batch_size=64,  # smaller, where memory is short
    augment=True,  # images are shifted by up to two pixels
    learning_rate=3e-3,  # lower it if a loss is not finite
    warmup=0.1,  # the first tenth of the steps
    weight_decay=1e-3,
    clip=1.0,
    # Every so many steps the network answers what `data.validation` keeps back, and the
    # best of these steps is what stays: the last may know its examples by heart.
    eval_every=100,
    keep='best',
  )
  return dict(
    teacher=dict(model='teacher', steps=1000, **train),
    # Half of the channels go, those that matter least, and the rest is trained on.
    # The network really is smaller: other than zeros, this saves time and memory.
    pruned=dict(
      model='teacher',
      init='teacher',
      steps=500,
      shrink=dict(keep=0.5, score='taylor'),
      teacher='teacher',
      **train,
    ),
    # A small network learns from the answers of the large one, longer than you think.
    student=dict(model='student', steps=2000, teacher='teacher', **train),
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
  # All images are brought to one size, and to 1 (grey) or 3 (colours) channels.
  c.data = dict(
    name='images',
    train=TRAIN,
    test=TEST,
    size=64,
    channels=3,
    # A tenth of the images to train on, to choose by. Never the test split: what is
    # chosen by it looks better on it than it is.
    validation=0.1,
  )

  # The networks: a ResNet with so many channels and blocks in each part. `teacher`
  # is as good as you can afford to train, `student` is what you want to ship.
  sizes = dict(
    name='resnet',
    in_features=3,  # channels
    # Folders have names for them; of other formats, say how many there are.
    classes=len(images.classes(TRAIN, TEST)) or 10,
  )
  c.models = dict(
    teacher=dict(widths=(64, 128), depths=2, **sizes),
    student=dict(widths=(32, 64), depths=1, **sizes),
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
        stage.update(steps=4, batch_size=8, eval_every=2)
    for name, widths in (('teacher', (8, 16)), ('student', (4, 8))):
      if 'widths' in c.models.get(
        name, {}
      ):  # A network of your own has others.
        c.models[name].widths = widths
    c.report.update(seconds=0.0, batches=(1,))
  return plan.complete(c)
