"""Whole models with packed weights: how much faster, and what limits them.

How much faster a model gets is limited by what it spends elsewhere. With T the time
of the float program and R that of the rest, the same program without its products
with weights, products that are f times faster make it

    T / (R + (T - R) / f)

times faster. R is measured: in that program each product with a weight copies one
number of its operand to all of its result, behind barriers, so that all that goes in
is still computed and all that comes out is still read.
"""

import dataclasses
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress import models
from launch.bench.kernels import cells
from launch.bench.kernels import turns

# The limit is that of products which are so many times faster.
_FASTER = 3.0
# Largest distance from XLA's results: what is rounded may round the other way.
_DISTANCE = 0.03


def _rules(scheme):
  return [(r'.*kernel', scheme), (r'.*', None)]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Skipped(jc.CompressedArray):
  """Stands for a weight that is not multiplied."""

  value: Any

  shape = property(lambda self: self.value.shape)
  dtype = property(lambda self: self.value.dtype)

  def materialize(self):
    return self.value


def _skip(product):
  """Registers what stands in for a product of `Skipped` weights."""

  @jc.core.rule(product, Skipped)
  def constant(*operands, **params):
    side = int(isinstance(operands[1], Skipped))
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in operands]
    like = jax.eval_shape(lambda *a: product.bind(*a, **params), *shapes)
    # Without barriers XLA would compute one number of x, and nothing of its rest.
    x = lax.optimization_barrier(operands[1 - side])
    y = jnp.broadcast_to(x[(0,) * x.ndim], like.shape).astype(like.dtype)
    return lax.optimization_barrier(y)


_skip(lax.dot_general_p)
_skip(lax.conv_general_dilated_p)


class Model(NamedTuple):
  """What is run: `models.build(name, **options)` on `x`."""

  name: str
  options: dict[str, Any]
  x: Any

  def program(self):
    """(apply, parameters, x); `apply` returns y and the x that comes next."""
    model = models.functional(models.build(self.name, **self.options))
    x = self.x
    if self.name == 'decoder':
      tokens = jnp.zeros((1, 1), jnp.int32)
      module = models.build(self.name, **self.options)
      x = tokens, module.init_cache(1) | {'length': jnp.int32(self.x)}

    def apply(params, x):
      y, out, _ = model.apply(params, model.variables, x)
      if 'cache' in out:  # as long as before: each step costs the same
        x = x[0], out['cache'] | {'length': x[1]['length']}
      return y, x

    return apply, model.params, x


def _going_on(apply, params, x):
  """A call that goes on from the one before, in the same memory; returns y."""
  f = jax.jit(jc.lift(apply), donate_argnums=1)
  x = jax.tree.map(jnp.copy, x)

  def call():
    nonlocal x
    y, x = f(params, x)
    return y

  return call


def _models(tiny: bool, context: int) -> dict[str, Model]:
  def image(*shape):
    return jax.random.normal(jax.random.key(0), shape)

  if tiny:
    vit = dict(in_features=1, patch=1, width=32, depth=1, heads=2)
    decoder = dict(vocab=32, width=32, depth=1, heads=2, max_length=8)
    decoder |= dict(tied=False, scan=False)
    resnet = dict(in_features=1, widths=(8,), depths=1)
    return {
      'digits student, 2': Model('resnet', resnet, image(2, 8, 8, 1)),
      'encoder, 2x8': Model('vit', vit, image(2, 2, 4, 1)),
      'decoding step': Model('decoder', decoder, 4),
    }
  student = dict(in_features=1, widths=(20, 32), depths=1)
  resnet = dict(in_features=3, widths=(16, 32, 64), depths=3)
  vit = dict(in_features=3, patch=1, width=384, depth=6, heads=6, mlp_ratio=4)
  decoder = dict(vocab=256, width=768, depth=12, heads=12)
  # A scanned stack of weights would be copied layer by layer.
  decoder |= dict(tied=False, scan=False, max_length=context)
  return {
    'digits student, 64': Model('resnet', student, image(64, 8, 8, 1)),
    'ResNet-20, 64': Model('resnet', resnet, image(64, 32, 32, 3)),
    'encoder 6x384, 8x128': Model('vit', vit, image(8, 8, 16, 3)),
    f'decoding step 12x768, context {context}': Model(
      'decoder', decoder, context // 2
    ),
  }


def run(paths, bars, *, tiny: bool, context: int, rounds: int, budget: float):
  """Prints the table.

  Args:
    paths: instruction paths of ours.
    bars: told of what is claimed.
    tiny: models as small as possible.
    context: tokens that the decoder's cache holds; it is half full. What a step
      attends to grows with it.
    rounds, budget: as for `turns.interleave`.
  """
  print('\nWhole models')
  for name, model in _models(tiny, context).items():
    _measure(name, model, paths, bars, rounds, budget)


def _measure(name, model, paths, bars, rounds, budget):
  apply, params, x = model.program()
  uses = jc.uses(apply)(params, x)
  skipped = jc.rules.map_named(
    lambda path, w: Skipped(w) if path.endswith('kernel') else w, params
  )
  forms = {('float32', ''): params, ('the rest', ''): skipped}
  plain, unpacked = {}, []
  for word, scheme in (('int8', jc.W8A8), ('int4', jc.W4A8)):
    q = jc.quantize(params, _rules(scheme), uses)
    packed = jc.pack(q, uses, skipped=lambda path, _: unpacked.append(path))
    plain[word] = q
    forms[f'XLA {word}', ''] = q
    forms |= {(word, path): cells.on_path(path, packed) for path in paths}
  players, results = {}, {}
  for key, p in forms.items():
    call = _going_on(apply, p, x)
    players[key] = turns.here(call)
    results[key] = np.asarray(call())
  # Steps of a model come one after the other: in longer turns than products.
  took = turns.interleave(players, rounds, 10 * budget)
  ms = {key: 1e3 * np.median(seconds) for key, seconds in took.items()}
  whole, rest = ms['float32', ''], min(ms['the rest', ''], ms['float32', ''])
  share = 1 - rest / whole
  limit = whole / (rest + (whole - rest) / _FASTER)
  print(
    f'\n  {name}: float32 {whole:.3f} ms, {share:.0%} of it products with'
    f' weights; {_FASTER:.0f}x faster products make it {limit:.2f}x'
  )
  if unpacked:
    print(f'    not packed: {", ".join(sorted(set(unpacked)))}')
  for (who, path), seconds in took.items():
    low, middle, high = 1e3 * np.percentile(seconds, [25, 50, 75])
    times = np.median(took['float32', ''] / seconds)
    words = ''
    if who in plain:
      same = results[f'XLA {who}', '']
      far = np.linalg.norm(results[who, path] - same) / np.linalg.norm(same)
      words = f'{far:.0e} from XLA' + (' WRONG' if far > _DISTANCE else '')
      where = f'{name} {path or "auto"}: {who}'
      if who == 'int8':
        bars.add(f'{where} over {_FASTER:.0f}x limit', times / limit, 0.85)
      elif model.name == 'decoder':
        bars.add(f'{where} over float32', times, 4.0)
    print(
      f'    {who:12s}{path:12s}{middle:9.3f} [{low:8.3f},{high:8.3f}] ms'
      f'{times:8.2f} x float32   {words}',
      flush=True,
    )
