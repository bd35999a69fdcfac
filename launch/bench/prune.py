"""What pruning costs: training steps with masks, choosing them, and shrinking a big tree.

    python -m launch.bench.prune

Prints, from interleaved runs in one process (medians and quartiles of ratios),
- a training step with masks over the plain step: between updates of the masks, and with
  one update in each hundred steps;
- choosing the mask of many weights over sorting them, which is how jaxpruner chooses
  (its own code, where it is installed and can be imported);
and, in a process of its own, the seconds and the peak memory of shrinking a tree of
--gib GiB to half of its channels.
"""

import subprocess
import sys

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_compress as jc
from jaxopt_compress import models
from jaxopt_compress.pruning import select
from launch.bench import measure

try:
  from jaxpruner import mask_calculator
except Exception:  # its import fails on a JAX that lacks what it wants
  mask_calculator = None

_REPEATS = flags.DEFINE_integer('repeats', 31, 'Runs of each, interleaved.')
_GIB = flags.DEFINE_float('gib', 1.0, 'Size of the tree that is shrunk.')
_MODELS = flags.DEFINE_list('models', ['mlp', 'vit'], 'Which networks.')
_WEIGHTS = flags.DEFINE_list(
  'weights', [2**20, 2**24], 'Of so many weights a mask is chosen.'
)
_SHRINK = flags.DEFINE_bool('shrink', False, 'Shrink a tree, only.')
_CLOCK = flags.DEFINE_enum(
  'clock',
  'wall',
  list(measure.CLOCKS),
  'Compare time, or the time of all cores, which a busy machine changes less.',
)
_CHECK = flags.DEFINE_bool('check', False, 'Fail where a bar is missed.')

NETWORKS = {
  'mlp': (dict(in_features=784, widths=(1024, 1024), classes=10), (256, 784)),
  'vit': (
    dict(in_features=3, patch=4, width=128, depth=4, heads=4),
    (32, 32, 32, 3),
  ),
}
EVERY = 100  # steps from one update of the masks to the next
BETWEEN, AMORTISED, SELECTION, PEAK = 1.05, 1.10, 0.1, 1.6


def _steps(name):
  """{who: (a training step, its arguments)}."""
  options, shape = NETWORKS[name]
  model = models.functional(models.build(name, **options))
  x = jax.random.normal(jax.random.key(0), shape)
  y = jax.random.randint(jax.random.key(1), shape[:1], 0, 10)
  rules = [
    (r'.*kernel', jc.Sparsity(0.9, end=10 * EVERY, every=EVERY)),
    (r'.*', None),
  ]
  optimizer = optax.adamw(1e-3)

  def apply(params, x):
    return model.apply(params, model.variables, x)[0]

  def step(comp):
    @jax.jit
    def step(params, opt_state, state, step, x, y):
      def loss(params):
        logits = jc.lift(apply)(comp.apply(params, state), x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

      grads = jax.grad(loss)(params)
      updates, opt_state = optimizer.update(grads, opt_state, params)
      params = optax.apply_updates(params, updates)
      return params, opt_state, comp.update(state, params, jc.Info(step, grads))

    return step

  found = {}
  masks = jc.methods.gradual(rules, jc.uses(apply)(model.params, x))
  # Step 1 follows an update of the masks, step EVERY brings the next.
  for who, comp, at in (
    ('plain', jc.chain(), 1),
    ('between', masks, 1),
    ('update', masks, EVERY),
  ):
    args = model.params, optimizer.init(model.params), comp.init(model.params)
    found[who] = step(comp), (*args, jnp.int32(at), x, y)
  return found


def _report_steps(name) -> bool:
  took = measure.take_turns(_steps(name), _REPEATS.value, _CLOCK.value)
  amortised = ((EVERY - 1) * took['between'] + took['update']) / EVERY
  met = True
  for what, seconds, bar in (
    ('between updates', took['between'], BETWEEN),
    (f'one update in {EVERY}', amortised, AMORTISED),
  ):
    met &= _ratio(f'{name}, masked step, {what}', seconds, took['plain'], bar)
  return met


def _report_selection(n) -> bool:
  """90% of `n` weights go."""
  scores = jnp.abs(jax.random.normal(jax.random.key(0), (n // 1024, 1024)))
  kept = n - round(0.9 * n)

  @jax.jit
  def sorting(scores):
    return scores >= jnp.sort(scores.ravel())[scores.size - kept]

  programs = {
    'ours': (jax.jit(lambda s: select.top_k_mask(s, kept)), (scores,)),
    'sorting': (sorting, (scores,)),
  }
  if mask_calculator:
    programs['jaxpruner'] = mask_calculator.topk_mask_calculator, (scores, 0.9)
  repeats = max(_REPEATS.value // 6, 1)
  took = measure.take_turns(programs, repeats, _CLOCK.value)
  mask = programs['ours'][0](scores)
  same = bool((mask == sorting(scores)).all())
  print(f'{n:,} weights: the mask is that of sorting: {same}')
  met = same
  for who in list(programs)[1:]:
    # A sort is no rival of its own: what jaxpruner does is the bar.
    bar = SELECTION if who == 'jaxpruner' or not mask_calculator else None
    met &= _ratio(
      f'{n:,} weights, mask over {who}', took['ours'], took[who], bar
    )
  return met


def _ratio(what, ours, other, bar) -> bool:
  """Prints one comparison; whether its bar is met."""
  low, middle, high = np.percentile(ours / other, [25, 50, 75])
  met = bar is None or middle <= bar
  said = '' if bar is None else f'   {"met" if met else "MISSED"}: {bar}'
  print(
    f'{what:40s} {1e3 * np.median(ours):9.2f} ms   {middle:.3f}x'
    f' ({low:.3f} to {high:.3f}){said}',
    flush=True,
  )
  return met


# ----------------------------------------------------------------- a big tree


def _forward(params, x):
  for layer in params.values():
    x = jax.nn.relu(x @ layer['kernel'] + layer['bias'])
  return x


def _shrink_a_tree() -> bool:
  """Prints seconds and peak memory over the size of the tree."""
  layers = 8
  width = max(int((_GIB.value * 2**30 / 4 / layers) ** 0.5) // 8 * 8, 16)
  x = jax.ShapeDtypeStruct((1, width), jnp.float32)
  make = jax.jit(
    lambda key, shape: jax.random.normal(key, shape), static_argnums=1
  )
  before = measure.resident()
  params = {
    str(i): {
      'kernel': make(jax.random.key(i), (width, width)),
      'bias': make(jax.random.key(i), (1, width)),
    }
    for i in range(layers)
  }
  jax.block_until_ready(params)
  size = jc.nbytes(params)
  structure = jc.structure(_forward)(params, x)
  importance = jc.importance(structure, params)
  plan = jc.select(structure, importance, keep=0.5)
  seconds, most = measure.peak(lambda: plan.apply(params))
  ratio = (most - before) / size
  met = ratio <= PEAK
  print(
    f'shrinking {size / 2**30:.2f} GiB to half of {len(plan.sizes)} groups'
    f' {seconds:6.2f} s   peak {ratio:.2f}x of the tree'
    f'   {"met" if met else "MISSED"}: {PEAK}',
    flush=True,
  )
  return met


def main(_):
  if _SHRINK.value:
    return 0 if _shrink_a_tree() or not _CHECK.value else 1
  if not mask_calculator:
    print('jaxpruner is not installed here: sorting stands for it.')
  met = True
  for name in _MODELS.value:
    met &= _report_steps(name)
  for n in _WEIGHTS.value:
    met &= _report_selection(int(n))
  flag = ['--shrink', '--check', f'--gib={_GIB.value}']
  command = [sys.executable, '-m', 'launch.bench.prune', *flag]
  met &= not subprocess.run(command, check=False).returncode
  return 0 if met or not _CHECK.value else 1


if __name__ == '__main__':
  app.run(main)
