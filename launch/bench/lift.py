"""What `lift` costs: tracing time, and temporaries of a scanned model.

    python -m launch.bench.lift

Prints, for a 24-block transformer with int8 weights,
- the time to trace it through `lift` over the time to trace it plainly, forward
  and under grad, unrolled (medians of interleaved runs in this process);
- XLA's temporaries of the compiled program, scanned, over the dense program's;
- whether `lift` of a function of plain arrays compiles to the same cost.
"""

import gc
import statistics
import time

from absl import app
from absl import flags
import jax
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress import models
from jaxopt_compress.core import lift

_BLOCKS = flags.DEFINE_integer('blocks', 24, 'Transformer blocks.')
_REPEATS = flags.DEFINE_integer('repeats', 9, 'Runs of each, interleaved.')


def _decoder(scan, width=128):
  return models.functional(
    models.build(
      'decoder',
      vocab=256,
      width=width,
      depth=_BLOCKS.value,
      heads=4,
      kv_heads=4,
      max_length=128,
      tied=True,
      scan=scan,
    )
  )


def _quantized(model, tokens):
  """The function of (params, tokens), its parameters, and those in int8."""

  def apply(params, tokens):
    return model.apply(params, model.variables, tokens)[0]

  uses = jc.uses(apply)(model.params, tokens)
  rules = [(r'.*kernel|.*embedding.*|.*table.*', jc.W8A16), (r'.*', None)]
  return apply, model.params, jc.quantize(model.params, rules, uses)


def _seconds(f, *args):
  gc.collect()
  start = time.process_time()  # tracing is one thread; others may be busy
  jax.jit(lambda *args: f(*args)).trace(*args)
  return time.process_time() - start


def _ratio(numerator, denominator):
  """Median ratio of interleaved pairs, after one pair that warms caches."""
  ratios = []
  for _ in range(_REPEATS.value + 1):
    ratios.append(numerator() / denominator())
  return statistics.median(ratios[1:])


def _tracing():
  tokens = jnp.zeros((2, 16), jnp.int32)
  apply, params, q = _quantized(_decoder(scan=False), tokens)
  lifted = jc.lift(apply)
  forward = _ratio(
    lambda: _seconds(lifted, q, tokens),
    lambda: _seconds(apply, params, tokens),
  )

  def grad(f):
    return jax.grad(lambda p: jnp.square(f(p, tokens)).mean(), allow_int=True)

  backward = _ratio(
    lambda: _seconds(grad(lifted), q),
    lambda: _seconds(grad(apply), params),
  )
  print(f'tracing, {_BLOCKS.value} blocks unrolled, lifted over plain:')
  print(f'  forward    {forward:.2f}x')
  print(f'  with grad  {backward:.2f}x')


def _temporaries():
  tokens = jnp.zeros((8, 128), jnp.int32)
  apply, params, q = _quantized(_decoder(scan=True), tokens)
  mib = [
    jax.jit(f).lower(p, tokens).compile().memory_analysis().temp_size_in_bytes
    / 2**20
    for f, p in (
      (jc.lift(apply), q),
      (apply, params),
      (lambda p, x: apply(jc.materialize(p), x), q),
    )
  ]
  print(f'temporaries, {_BLOCKS.value} blocks scanned, int8 weights:')
  print(f'  lifted               {mib[0]:8.2f} MiB')
  print(
    f'  dense program        {mib[1]:8.2f} MiB   ratio {mib[0] / mib[1]:.3f}'
  )
  print(f'  materialised first   {mib[2]:8.2f} MiB')


def _plain_cost():
  tokens = jnp.zeros((2, 16), jnp.int32)
  apply, params, _ = _quantized(_decoder(scan=True), tokens)

  def interpreted(params, tokens):
    # `lift` calls f itself here; this is what it does with compressed leaves.
    ctx = lift.context()
    return lift.run(ctx, apply, (params, tokens), {})

  costs = [
    jax.jit(f).lower(params, tokens).compile().cost_analysis()
    for f in (interpreted, jc.lift(apply), apply)
  ]
  same = costs[0] == costs[1] == costs[2]
  print(f'cost of lift(f) on plain arrays is that of f: {same}')


def main(_):
  _tracing()
  _temporaries()
  _plain_cost()


if __name__ == '__main__':
  app.run(main)
