"""What is learned from a few of a teacher's probabilities: the text of Python's library.

    python -m launch.bench.tail                   # bytes
    python -m launch.bench.tail --unit=words --vocabulary=1024 --read=3 --k=8,64

A network that reads some bytes and predicts the next is the teacher. Smaller ones learn
from its answers alone, or with a weight on --labels too, for as many steps each:
- dense: all of its probabilities;
- tail bucket: its k likeliest bytes, and the mass of the others (`losses.topk_kl`);
- draws: k bytes drawn from its answer (`cache.sample`);
- renormalised: the k likeliest, scaled to a sum of 1, and of the student's only these
  (what Tunix, MaxText and ModelOpt do);
- no tail: the k likeliest, scaled to a sum of 1, against all of the student's.
Answers of k entries are encoded as a cache keeps them on disk, and decoded.

Prints the held-out cross entropy of each, in nats, over that of dense, and how much mass
the student gives to the teacher's k; means over --seeds. What is held out is from files
that nobody has learned from.

What one seed of 500 steps says of bytes, k = 16 (the teacher has mass 0.93 on them), over
dense: tail bucket +0.7%, draws +0.5%, no tail +0.5%, renormalised +70%; with
--labels=0.1 +0.5, +0.3, +0.2 and +5.0%. With k = 8 (mass 0.84) a tail bucket is no longer
within 1%: +2.2%, draws +1.1%, renormalised +96%. Nothing is said of what lies inside the
tail, so the more of it there is, the better are draws: of 1,024 words (300 steps,
--labels=0.1), k = 64, tail bucket +1.4%, draws +0.1%, renormalised +5.3%.
"""

import collections
import functools
import re

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_compress import data as data_lib
from jaxopt_compress.distillation import cache
from jaxopt_compress.distillation import losses

_VOCABULARY = flags.DEFINE_integer('vocabulary', 256, 'The most frequent.')
_UNIT = flags.DEFINE_enum('unit', 'bytes', ['bytes', 'words'], 'Of text.')
_READ = flags.DEFINE_integer('read', 8, 'How many predict the next.')
_EXAMPLES = flags.DEFINE_integer('examples', 200_000, 'To learn from.')
_KS = flags.DEFINE_list('k', ['8', '16'], 'Entries of an answer.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'Students of each kind.')
_STEPS = flags.DEFINE_integer(
  'steps', 500, 'Of a student; twice of the teacher.'
)
_LABELS = flags.DEFINE_float('labels', 0.0, 'Weight of the labels, in [0, 1].')

BATCH, RATE = 256, 3e-3
# Width of a byte or word, and of what is made of several.
TEACHER, STUDENT = (64, 192), (32, 64)
HELD_OUT = 20_000


# ----------------------------------------------------------------- text


def _tokens(split):
  text = bytes(data_lib.text.load(split))
  if _UNIT.value == 'bytes':
    return text
  return re.findall(r'\w+|[^\w\s]', text.decode('utf-8', 'ignore'))


def _examples():
  """(x [n, read], what comes next [n]) to learn from, and the same held out."""
  train, test = _tokens('train'), _tokens('test')
  # If others are left over, they are one more, the last.
  known = collections.Counter(train).most_common(_VOCABULARY.value - 1)
  number = {token: i for i, (token, _) in enumerate(known)}
  sets = []
  for tokens, most in (
    (train, _EXAMPLES.value),
    (test, min(_EXAMPLES.value, HELD_OUT)),
  ):
    # Evenly from all files.
    apart = max((len(tokens) - _READ.value) // most, 1)
    begins = range(0, len(tokens) - _READ.value, apart)[:most]
    windows = [tokens[i : i + _READ.value + 1] for i in begins]
    ids = [[number.get(token, len(known)) for token in w] for w in windows]
    ids = jnp.asarray(np.array(ids, np.int32))
    sets.append((ids[:, :-1], ids[:, -1]))
  return sets


# ------------------------------------------------------------- networks


def _init(key, sizes):
  width, hidden = sizes
  keys, normal = jax.random.split(key, 3), jax.random.normal
  read = _READ.value * width
  return {
    'embed': normal(keys[0], (_VOCABULARY.value, width)),
    'mix': normal(keys[1], (read, hidden)) / read**0.5,
    'head': normal(keys[2], (hidden, _VOCABULARY.value)) / hidden**0.5,
    'bias': jnp.zeros((1, _VOCABULARY.value)),
  }


def _apply(params, x):
  h = params['embed'][x].reshape(len(x), -1)
  return jnp.tanh(h @ params['mix']) @ params['head'] + params['bias']


@functools.partial(jax.jit, static_argnums=(0, 3))
def _train(loss, params, teacher, steps, data, key):
  """Steps of `loss(logits, batch, teacher) -> (sum, count)` on parts of the data."""
  n = len(data['x'])
  optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))

  def step(carry, key):
    params, state = carry
    i = jax.random.randint(key, (BATCH,), 0, n)
    batch = jax.tree.map(lambda x: x[i], data)

    def mean(params):
      y = _apply(params, batch['x'])
      soft = losses.mean(*loss(y, batch, teacher))
      if loss is _of_labels or not _LABELS.value:
        return soft
      hard = losses.mean(*_of_labels(y, batch, None))
      return (1 - _LABELS.value) * soft + _LABELS.value * hard

    updates, state = optimizer.update(jax.grad(mean)(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  start = params, optimizer.init(params)
  (params, _), _ = jax.lax.scan(step, start, jax.random.split(key, steps))
  return params


# --------------------------------------------------------------- losses


def _of_labels(y, batch, teacher):
  return losses.cross_entropy(y, batch['label'])


def _dense(y, batch, teacher):
  return losses.kl(y, _apply(teacher, batch['x']))


def _kept(y, batch, teacher):
  return losses.topk_kl(y, *batch['answers'])


def _renormalised(y, batch, teacher):
  ids, log_probs, _ = batch['answers']
  return losses.kl(jnp.take_along_axis(y, ids, -1), log_probs)


def _no_tail(y, batch, teacher):
  ids, log_probs, log_tail = batch['answers']
  return losses.topk_kl(y, ids, log_probs, jnp.full_like(log_tail, -jnp.inf))


def _answers(teacher, x, k, sampled):
  """Entries of the teacher's answers, as they come back from disk."""
  codec = cache.Codec(_VOCABULARY.value, k, sampled)

  @jax.jit
  def answer(x, key):
    logits = _apply(teacher, x)
    if sampled:
      return cache.sample(logits, k, key=key)
    return losses.tail.compress(logits, k)

  parts = []
  for begin in range(0, len(x), 1000):
    key = jax.random.fold_in(jax.random.key(7), begin)
    given = map(np.asarray, answer(x[begin : begin + 1000], key))
    parts.append(codec.decode(codec.encode(*given)))
  return tuple(jnp.concatenate(p) for p in zip(*parts, strict=True))


# --------------------------------------------------------------- report


@jax.jit
def _judge(params, teacher, x, labels):
  """(cross entropy, mass on the teacher's first k, for each k)."""
  y = _apply(params, x)
  ids = jax.lax.top_k(_apply(teacher, x), max(map(int, _KS.value)))[1]
  p = jnp.take_along_axis(jax.nn.softmax(y), ids, -1)
  mass = [p[:, : int(k)].sum(-1).mean() for k in _KS.value]
  return losses.mean(*losses.cross_entropy(y, labels)), jnp.stack(mass)


def _students(loss, examples, teacher, held_out):
  """Means and spreads over seeds of what `_judge` says."""
  found = []
  for seed in range(_SEEDS.value):
    params = _init(jax.random.key(seed + 1), STUDENT)
    params = _train(
      loss, params, teacher, _STEPS.value, examples, jax.random.key(seed)
    )
    entropy, mass = _judge(params, teacher, *held_out)
    found.append([float(entropy), *map(float, mass)])
  return np.mean(found, 0), np.std(found, 0)


def _row(name, mean, spread, dense, at):
  print(
    f'{name:22s} {mean[0]:.4f} +- {spread[0]:.4f}   {mean[0] / dense - 1:+8.2%}'
    f'   mass {mean[at]:.3f}',
    flush=True,
  )


def main(_):
  (x, labels), held_out = _examples()
  given = {'x': x, 'label': labels}
  key = jax.random.key(0)
  steps = 2 * _STEPS.value
  teacher = _init(key, TEACHER)
  teacher = _train(_of_labels, teacher, None, steps, given, key)
  entropy, mass = _judge(teacher, teacher, *held_out)
  print(f'{len(x):,} {_UNIT.value}, teacher {float(entropy):.4f} nats each')
  everything = functools.partial(_students, teacher=teacher, held_out=held_out)
  mean, spread = everything(_dense, given)
  dense = mean[0]
  for at, k in enumerate(map(int, _KS.value), 1):
    print(f'k = {k}: the teacher has mass {float(mass[at - 1]):.3f} on them')
    _row('dense', mean, spread, dense, at)
    top, drawn = (_answers(teacher, x, k, sampled) for sampled in (False, True))
    for name, loss, answers in (
      ('tail bucket', _kept, top),
      ('draws', _kept, drawn),
      ('renormalised', _renormalised, top),
      ('no tail', _no_tail, top),
    ):
      _row(name, *everything(loss, {**given, 'answers': answers}), dense, at)


if __name__ == '__main__':
  app.run(main)
