"""What distillation costs: a large vocabulary in blocks, a teacher, and a cache of it.

    python -m launch.bench.distill

Prints
- the memory of KL and its gradients from hidden states and heads, in blocks of
  positions over all logits at once, each in a process of its own (what both add to
  their arguments, gradients included);
- from interleaved runs in one process (medians and quartiles of ratios): the time of
  the same at a quarter of the positions, and how far the gradients are apart;
- a training step with a teacher over the plain one, and one with the teacher's answers
  read from disk over that with the teacher.
"""

import subprocess
import sys
import tempfile

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_compress import models
from jaxopt_compress.distillation import cache
from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation import teachers
from launch.bench import measure

_REPEATS = flags.DEFINE_integer('repeats', 11, 'Runs of each, interleaved.')
_CLASSES = flags.DEFINE_integer('classes', 2**17, 'The large vocabulary.')
_POSITIONS = flags.DEFINE_integer('positions', 2048, 'Tokens of a batch.')
_CHUNK = flags.DEFINE_integer(
  'chunk', None, "Positions of a block; the loss's."
)
_VOCABULARY = flags.DEFINE_integer('vocabulary', 4096, 'Of the networks.')
_MEMORY = flags.DEFINE_enum(
  'memory', None, ['dense', 'chunked'], 'Measure the memory of one, only.'
)
_CLOCK = flags.DEFINE_enum(
  'clock',
  'wall',
  list(measure.CLOCKS),
  'Compare time, or the time of all cores, which a busy machine changes less.',
)
_CHECK = flags.DEFINE_bool('check', False, 'Fail where a bar is missed.')

MEMORY, GRADIENTS = 0.15, 1e-5
WIDTH, TEACHERS = 256, 512  # of hidden states
STUDENT = dict(width=128, depth=2, heads=4, mlp_width=256, max_length=64)
TEACHER = dict(width=256, depth=6, heads=4, mlp_width=640, max_length=64)
BATCH, EXAMPLES, K = 8, 64, 64


# ------------------------------------------------------- a large vocabulary


def _dense(h, w, teacher_h, teacher_w):
  return losses.mean(*losses.kl(h @ w, teacher_h @ teacher_w))


def _chunked(h, w, teacher_h, teacher_w):
  loss = losses.chunked(losses.kl, chunk=_CHUNK.value)
  pair = losses.Logits(h, w), losses.Logits(teacher_h, teacher_w)
  return losses.mean(*loss(*pair))


LOSSES = {'dense': _dense, 'chunked': _chunked}


def _operands(positions):
  """Hidden states and heads of a student and of a teacher."""
  keys, found = jax.random.split(jax.random.key(0), 4), []
  for i, width in enumerate((WIDTH, TEACHERS)):
    h = jax.random.normal(keys[2 * i], (positions, width))
    w = jax.random.normal(keys[2 * i + 1], (width, _CLASSES.value))
    found += [h, w / width**0.5]
  return jax.block_until_ready(found)


def _gradient(name):
  """The loss and its gradient for what the student has."""
  return jax.jit(jax.value_and_grad(LOSSES[name], (0, 1)))


def _memory(name) -> float:
  """MiB, of this process."""
  operands = _operands(_POSITIONS.value)
  program = _gradient(name).lower(*operands).compile()
  before = measure.resident()
  _, most = measure.peak(lambda: program(*operands))
  return (most - before) / 2**20


def _elsewhere(name) -> float:
  """`_memory` of another process."""
  args = [f'--{f.name}={f.value}' for f in (_CLASSES, _POSITIONS)]
  if _CHUNK.value:
    args.append(f'--chunk={_CHUNK.value}')
  command = [sys.executable, '-m', 'launch.bench.distill', f'--memory={name}']
  done = subprocess.run([*command, *args], check=True, capture_output=True)
  return float(done.stdout.split()[-1])


def _report_vocabulary() -> bool:
  said = f'{_CLASSES.value:,} classes'
  dense, chunked = map(_elsewhere, ('dense', 'chunked'))
  ratio = chunked / dense
  met = ratio <= MEMORY
  print(
    f'{said}, {_POSITIONS.value:,} positions: {chunked:,.0f} MiB in blocks, all'
    f' {dense:,.0f} MiB   {ratio:.3f}x   {"met" if met else "MISSED"}: {MEMORY}',
    flush=True,
  )
  operands = _operands(max(_POSITIONS.value // 4, 1))
  programs = {name: (_gradient(name), operands) for name in LOSSES}
  (_, want), (_, got) = (f(*operands) for f, _ in programs.values())
  apart = max(
    float(jnp.abs(a - b).max() / jnp.abs(a).max())
    for a, b in zip(want, got, strict=True)
  )
  same = apart <= GRADIENTS
  print(
    f'{said}: gradients are {apart:.1e} of their largest entry apart'
    f'   {"met" if same else "MISSED"}: {GRADIENTS}'
  )
  repeats = max(_REPEATS.value // 4, 1)
  took = measure.take_turns(programs, repeats, _CLOCK.value)
  _ratio(f'{said}, in blocks over all', took['chunked'], took['dense'])
  return met and same


# ------------------------------------------------------------------- steps


def _step(apply, soft):
  """A training step of the student; `soft(y, batch) -> (sum, count)`, or None."""
  optimizer = optax.adamw(1e-3)

  @jax.jit
  def step(params, opt_state, batch):
    def loss(params):
      y = apply(params, batch['x'])
      hard = losses.mean(*losses.cross_entropy(y, batch['label']))
      if soft is None:
        return hard
      return 0.1 * hard + 0.9 * losses.mean(*soft(y, batch))

    grads = jax.grad(loss)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  return step, optimizer.init


def _network(seed, **sizes):
  model = models.functional(
    models.build('decoder', vocab=_VOCABULARY.value, seed=seed, **sizes)
  )

  def apply(params, x):
    return model.apply(params, model.variables, x)[0]

  return apply, model.params


def _answers(folder, x, apply, params):
  """The teacher's answers to x, written to disk and opened."""
  compress = jax.jit(
    lambda params, x: losses.tail.compress(apply(params, x), K)
  )
  made = cache.Manifest(
    model=cache.fingerprint(params),
    data=cache.fingerprint(x),
    vocabulary=_VOCABULARY.value,
    k=K,
    examples=len(x),
    positions=x.shape[1:],
  )
  cache.write(folder, made, lambda i: compress(params, x[i]), batch_size=BATCH)
  return cache.read(folder, data=made.data, vocabulary=made.vocabulary)


def _report_steps():
  apply, params = _network(0, **STUDENT)
  teacher, teacher_params = _network(1, **TEACHER)
  ask = teachers.frozen(teacher)
  tokens = np.random.default_rng(0).integers(
    0, _VOCABULARY.value, (EXAMPLES, STUDENT['max_length'] + 1), np.int32
  )
  x, labels = tokens[:, :-1], tokens[:, 1:]
  some = np.arange(BATCH)

  def live(y, batch):
    return losses.kl(y, ask(batch['teacher'], batch['x']))

  def cached(y, batch):
    return losses.topk_kl(y, *batch['answers'])

  with tempfile.TemporaryDirectory() as folder:
    answers = _answers(folder, x, teacher, teacher_params)
    programs = {}
    for name, soft, more in (
      ('plain', None, dict),
      ('live', live, lambda: {'teacher': teacher_params}),
      # Reading is part of the step.
      ('cached', cached, lambda: {'answers': [*answers.take(some).values()]}),
    ):
      step, init = _step(apply, soft)

      def run(params, opt_state, step=step, more=more):
        batch = {'x': x[some], 'label': labels[some], **more()}
        return step(params, opt_state, batch)

      programs[name] = run, (params, init(params))
    took = measure.take_turns(programs, _REPEATS.value, _CLOCK.value)
  _ratio(
    'a step with a teacher over the plain one', took['live'], took['plain']
  )
  _ratio(
    'a step with its cache over the plain one', took['cached'], took['plain']
  )
  _ratio('a step with its cache over the teacher', took['cached'], took['live'])


def _ratio(what, ours, other):
  low, middle, high = np.percentile(ours / other, [25, 50, 75])
  print(
    f'{what:42s} {1e3 * np.median(ours):9.2f} ms   {middle:.3f}x'
    f' ({low:.3f} to {high:.3f})',
    flush=True,
  )


def main(_):
  if _MEMORY.value:
    print(_memory(_MEMORY.value))
    return 0
  met = _report_vocabulary()
  _report_steps()
  return 0 if met or not _CHECK.value else 1


if __name__ == '__main__':
  app.run(main)
