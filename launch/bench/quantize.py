"""What quantisation costs: training steps, inference, and quantising a big tree.

    python -m launch.bench.quantize

Prints, from interleaved runs in one process (medians and quartiles of ratios),
- a training step with int8 weights and activations over the float step, and over
  qwix's on the same network, where qwix is installed beside this library: with the
  gradients of the products that were computed, our default, and with those of the
  products without rounding, which is less work, and qwix's default;
- the forward pass of stored leaves over float, and over qwix's: computed by XLA, and
  packed for the kernels where they were built;
and, each in a process of its own, the seconds and the peak memory of quantising a
tree of --gib GiB, leaf by leaf, its arrays donated.
"""

import functools
import subprocess
import sys

from absl import app
from absl import flags
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress import models
from jaxopt_compress.kernels.cpu import native
from launch.bench import measure

try:
  import qwix
except ImportError:
  qwix = None

_REPEATS = flags.DEFINE_integer('repeats', 31, 'Runs of each, interleaved.')
_GIB = flags.DEFINE_float('gib', 1.0, 'Size of the tree that is quantised.')
_MODELS = flags.DEFINE_list('models', ['mlp', 'vit'], 'Which networks.')
_ONE = flags.DEFINE_string('one', '', 'Quantise a tree to this scheme, only.')
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
# Layers that both libraries quantise; stems stay float.
LAYERS = r'(blocks|layers|head).*kernel'
_DEFAULT = "qwix's default"
# qwix's activations have no zero points.
_SYMMETRIC = {'W8A8': 'int8, int8 token'}
SCHEMES = ('int8', 'W4A16', 'NF4', 'MXFP4')


def _loss(apply):
  def loss(params, x, y):
    logits = jax.nn.log_softmax(apply(params, x))
    return -jnp.take_along_axis(logits, y[:, None], 1).mean()

  return loss


def _step(apply):
  """A step of SGD."""

  @jax.jit
  def step(params, x, y):
    grads = jax.grad(_loss(apply))(params, x, y)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

  return step


def _qwix(name, provider, x):
  """(apply, parameters) of qwix's form of a network."""
  model = qwix.quantize_model(
    models.build(name, **NETWORKS[name][0]), provider, x
  )
  graph, params, rest = nnx.split(model, nnx.Param, ...)
  return lambda p, x: nnx.merge(graph, p, rest)(x)[0], params


def _rule(kind, **options):
  # Not einsums: those of attention are of two activations, which stay float here.
  ops = ('dot_general',)
  return [kind(module_path='(blocks|layers|head).*', op_names=ops, **options)]


def _rules(scheme):
  return [(LAYERS, scheme), (r'.*', None)]


def _programs(name):
  """{what: {who: (function, arguments)}}; ours first, then what it is over."""
  options, shape = NETWORKS[name]
  model = models.functional(models.build(name, **options))
  x = jax.random.normal(jax.random.key(0), shape)
  y = jax.random.randint(jax.random.key(1), shape[:1], 0, 10)

  def apply(params, x):
    return model.apply(params, model.variables, x)[0]

  uses = jc.uses(apply)(model.params, x)
  found = {}
  for original, gradients in ((False, 'rounded'), (True, 'original')):
    comp = jc.fake_quantize(
      _rules(_SYMMETRIC['W8A8']), uses, original_residuals=original
    )

    def trained(params, x, comp=comp):
      return jc.lift(apply)(comp.apply(params, ()), x)

    train = found[f'{name}, step W8A8, {gradients} residuals'] = {
      'ours': (_step(trained), (model.params, x, y)),
      'float': (_step(apply), (model.params, x, y)),
    }
    if qwix:
      rule = _rule(
        qwix.QtRule,
        weight_qtype='int8',
        act_qtype='int8',
        additional_qt_config={'use_original_residuals': original},
      )
      other, params = _qwix(name, qwix.QtProvider(rule), x)
      theirs = (_step(other), (params, x, y))
      train['qwix'] = theirs
      if original:  # our default over theirs, too
        found[f'{name}, step W8A8, rounded residuals'][_DEFAULT] = theirs
  kinds = {
    'W8A8': dict(weight_qtype='int8', act_qtype='int8'),
    'W8A16': dict(weight_qtype='int8'),
    'W4A16': dict(weight_qtype='int4', tile_size=128),
  }
  for scheme, options in kinds.items():
    q = jc.quantize(model.params, _rules(_SYMMETRIC.get(scheme, scheme)), uses)
    forward = {
      'ours': (jax.jit(jc.lift(apply)), (q, x)),
      'float': (jax.jit(apply), (model.params, x)),
    }
    divides = all(
      s.shape[-2] % options.get('tile_size', 1) == 0
      for p, s in jc.rules.named_leaves(model.params)
      if p.endswith('kernel') and s.ndim == 2 and not p.startswith('stem')
    )
    if qwix and divides:
      rule = _rule(qwix.QuantizationRule, **options)
      other, params = _qwix(name, qwix.PtqProvider(rule), x)
      forward['qwix'] = (jax.jit(other), (params, x))
    found[f'{name}, forward {scheme}'] = forward
    if native.available():
      ours = jax.jit(jc.lift(apply)), (jc.pack(q, uses), x)
      found[f'{name}, forward {scheme}, packed'] = forward | {'ours': ours}
  return found


def _report(what, programs) -> bool:
  """Prints one comparison; whether its bar is met: no slower than qwix."""
  took = measure.take_turns(programs, _REPEATS.value, _CLOCK.value)
  parts = [f'{1e3 * np.median(took["ours"]):8.2f} ms']
  met = True
  for who in ('float', 'qwix', _DEFAULT):
    if who in took:
      low, middle, high = np.percentile(took['ours'] / took[who], [25, 50, 75])
      parts.append(f'{middle:.2f}x {who} ({low:.2f} to {high:.2f})')
      if who != 'float':
        met &= middle <= 1.0
        parts.append('met' if middle <= 1.0 else 'MISSED')
  print(f'{what:37s} {"   ".join(parts)}', flush=True)
  return met


# ----------------------------------------------------------------- a big tree


def _quantise_a_tree(scheme):
  """Prints seconds per GiB, and peak memory over the size of the tree."""
  layers, width = 8, 4096
  rows = max(int(_GIB.value * 2**30 / 4 / layers / width), 128)
  make = jax.jit(lambda key: jax.random.normal(key, (rows, width)))
  # What compiling takes is not counted.
  jc.quantize(
    {'kernel': make(jax.random.key(0))}, [('.*', scheme)], donate=True
  )
  before = measure.resident()
  tree = {
    f'{i}/kernel': make(jax.random.fold_in(jax.random.key(0), i))
    for i in range(layers)
  }
  jax.block_until_ready(tree)
  size = jc.nbytes(tree)
  seconds, most = measure.peak(
    lambda: jc.quantize(tree, [('.*', scheme)], donate=True)
  )
  ratio = (most - before) / size
  print(
    f'quantising {size / 2**30:.2f} GiB to {scheme:6s}'
    f' {seconds * 2**30 / size:6.2f} s/GiB   peak {ratio:.2f}x of the tree  '
    f' {"met" if ratio <= 1.6 else "MISSED"}',
    flush=True,
  )
  return ratio <= 1.6


def main(_):
  if _ONE.value:
    return 0 if _quantise_a_tree(_ONE.value) or not _CHECK.value else 1
  if not qwix:
    print('qwix is not installed here: no comparison with it.')
  met = True
  for name in _MODELS.value:
    for what, programs in _programs(name).items():
      met &= _report(what, programs)
  run = functools.partial(subprocess.run, check=False)
  for scheme in SCHEMES:
    flag = [f'--one={scheme}', f'--gib={_GIB.value}']
    done = run(
      [sys.executable, '-m', 'launch.bench.quantize', '--check', *flag]
    )
    met &= done.returncode == 0
  return 0 if met or not _CHECK.value else 1


if __name__ == '__main__':
  app.run(main)
