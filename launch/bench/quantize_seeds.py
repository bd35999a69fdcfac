"""What quantising costs a ResNet-20 and a small ViT, over several seeds.

    python -m launch.bench.quantize_seeds

Trains each network on the digits, float, for --steps and from there for --tune more:
float, and with int4 weights and activations in learned ranges (LSQ), first and last
layer in int8, as Esser et al. 2020 have it. So all have had as many steps. Then, on
the held-out fifth, beside these two, what the float network becomes by rounding:
- int8 weights and activations (W8A8);
- int4 weights with groups (W4A16);
- int4 weights and activations, in calibrated ranges (W4A4).
Prints mean and spread over seeds, and how much of what rounding loses training keeps.
One held-out image is 0.28 points. About 40 minutes on two CPU cores.
"""

import functools
import json
import time

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_compress as jc
from jaxopt_compress import distillation
from jaxopt_compress import models
from jaxopt_compress.data import digits
from jaxopt_compress.parallel import step as step_lib
from jaxopt_compress.train.step import loss as loss_lib
from jaxopt_compress.train.step import state as state_lib
from jaxopt_compress.train.step import train_step as train_step_lib

_SEEDS = flags.DEFINE_integer('seeds', 3, 'How many seeds.')
_STEPS = flags.DEFINE_integer('steps', 600, 'Steps of float training.')
_TUNE = flags.DEFINE_integer('tune', 400, 'Steps of quantised training.')
_MODELS = flags.DEFINE_list('models', ['resnet20', 'vit'], 'Which networks.')
_OUT = flags.DEFINE_string('out', '', 'A JSON file for the figures.')

NETWORKS = {
  'resnet20': dict(name='resnet', widths=(16, 32, 64), depths=3),
  'vit': dict(name='vit', width=64, depth=4, heads=4),
}
OUTER = r'(stem|head)/kernel'
W4A4 = 'int4 mse{lsq}, int4 tensor static asym{lsq}'


def _rules(inner, outer='int8, int8'):
  return [(OUTER, outer), (r'.*/kernel', inner), (r'.*', None)]


def _train(model, state, comp, rate, steps, *, data, seed):
  """Trains on augmented digits; returns the last state."""
  schedule = optax.warmup_cosine_decay_schedule(0, rate, steps // 10, steps)
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-3)
  )
  slow = optax.adam(lambda i: 0.1 * schedule(i))
  if state is None:
    state = (model.params, model.variables)
  state = state_lib.create(
    *state,
    jax.random.key(seed),
    optimizer,
    compression=comp,
    learned_optimizer=slow,
  )

  def loss(seen):
    y, _ = seen.outputs
    summed = distillation.losses.cross_entropy(y, seen.batch['label'])
    return {'hard': loss_lib.Part(*summed)}

  alone = train_step_lib.train_step(
    model.apply,
    loss,
    optimizer,
    inputs='image',
    compression=comp,
    learned_optimizer=slow,
  )
  step = jax.jit(lambda s, b: alone(s, b, step_lib.Replicas()))
  rng = np.random.default_rng(seed)
  for _ in range(steps):
    rows = rng.integers(0, len(data['label']), 128)
    batch = {key: data[key][rows] for key in ('image', 'label')}
    state, _ = step(state, digits.augment(batch, rng))
  return state


def _accuracy(model, params, variables, data):
  run = jax.jit(lambda p, x: jc.lift(model.apply)(p, variables, x)[0])
  y = run(params, data['image'])
  return 100 * float((jnp.argmax(y, -1) == data['label']).mean())


def _accuracies(name, seed, data):
  """{what became of it: held-out accuracy} of one network and seed."""
  options = dict(NETWORKS[name])
  model = models.functional(
    models.build(options.pop('name'), seed=seed, **options)
  )
  start = time.time()
  plain = jc.chain()
  train = functools.partial(_train, model, data=data[0])
  first = train(None, plain, 3e-3, _STEPS.value, seed=seed)
  first = first.params, first.variables
  state = train(first, plain, 1e-3, _TUNE.value, seed=seed + 1000)
  params, variables = state.params, state.variables
  x = data[0]['image'][:256]

  def of(variables):
    return lambda p, x: model.apply(p, variables, x)[0]

  uses = jc.uses(of(variables))(params, x)

  def judge(params, variables=variables):
    return _accuracy(model, params, variables, data[1])

  found = {'float, before': judge(*first), 'float': judge(params)}
  for scheme in ('W8A8', 'W4A16'):
    q = jc.quantize(params, [(r'.*/kernel', scheme), (r'.*', None)], uses)
    found[scheme] = judge(q)
  rules = _rules(W4A4.format(lsq=''))
  ranges = jc.calibrate(of(variables), params, rules, [x], uses, 'mse')
  found['W4A4'] = judge(jc.quantize(params, rules, uses, ranges=ranges))
  ranges = jc.calibrate(of(first[1]), first[0], rules, [x], uses, 'mse')
  comp = jc.fake_quantize(_rules(W4A4.format(lsq=' lsq')), uses, ranges=ranges)
  tuned = train(first, comp, 1e-3, _TUNE.value, seed=seed + 1000)
  frozen = jc.freeze(state_lib.compressed(tuned, comp))
  found['W4A4 trained'] = judge(frozen, tuned.variables)
  print(f'{name} seed {seed}, {time.time() - start:.0f} s: {found}', flush=True)
  return found


def main(_):
  data = digits.load('train+validation'), digits.load('test')
  out = {}
  for name in _MODELS.value:
    rows = [_accuracies(name, seed, data) for seed in range(_SEEDS.value)]
    out[name] = rows
    print(f'\n{name}, {len(rows)} seeds   mean    spread')
    for key in rows[0]:
      values = np.array([r[key] for r in rows])
      spread = values.max() - values.min()
      print(f'  {key:14s} {values.mean():8.2f} {spread:8.2f}')
    mean = {key: np.mean([r[key] for r in rows]) for key in rows[0]}
    lost = mean['float'] - mean['W4A4']
    gained = mean['W4A4 trained'] - mean['W4A4']
    if lost > 0:
      print(
        f'  of {lost:.2f} points lost, {100 * gained / lost:.0f}% recovered'
      )
    if _OUT.value:
      with open(_OUT.value, 'w') as f:
        json.dump(out, f, indent=1)


if __name__ == '__main__':
  app.run(main)
