"""Products of GPUs and TPUs against XLA's, on the device that this runs on.

    python -m launch.bench.pallas
    python -m launch.bench.pallas --rows=1 --sizes=4096x4096 --dtype=float32

For every m and k x n, interleaved in one process: XLA's product with a dense weight,
and for each compression the product of the weight as `jc.pack` lays it out beside
XLA's own lowering of the same (`jc.quantize` alone). Prints the median and quartiles of each time, its speed over the dense product and over
XLA's form, and whether the outputs agree.

A time is that of one product among many in one program, with eight weights in turn:
without the call from Python, and, where eight weights are more than its cache holds,
from memory. Weights are arguments, so that nothing is folded beforehand.

On a CPU there is nothing to time: it says so and exits with code 2. With --check it
compares outputs only, interpreted on a CPU; choose small sizes there.
"""

from concurrent import futures
import sys

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.report import latency

_ROWS = flags.DEFINE_list('rows', ['1', '8', '64', '512'], 'Values of m.')
_SIZES = flags.DEFINE_list(
  'sizes', ['1024x1024', '4096x4096', '4096x11008'], 'Values of k x n.'
)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'bfloat16', ['bfloat16', 'float16', 'float32'], 'Of x.'
)
_SECONDS = flags.DEFINE_float('seconds', 1.0, 'Time for each m and k x n.')
_CHECK = flags.DEFINE_bool('check', False, 'Compare outputs, time nothing.')

_GROUP = 128


def _interpret() -> bool:
  return jax.default_backend() == 'cpu'


# --------------------------------------------------------------------- programs


def _matmul(x, w):
  return x @ w


_LIFTED = jc.lift(_matmul, strict=True)


def _interpreted(x, leaf):
  return leaf.multiply(x, interpret=True).astype(x.dtype)


def _quantised(key, k, n, dtype, words):
  w = (jax.random.normal(key, (k, n)) * k**-0.5).astype(dtype)
  q = jc.quantize({'kernel': w}, [('kernel', words)])
  target = 'gpu' if _interpret() else jax.default_backend()
  packed = jc.pack(q, target=target)['kernel']
  ours = _interpreted if _interpret() else _LIFTED
  dense = q['kernel'].materialize().astype(jnp.float32)
  return (ours, (packed,)), (_LIFTED, (q['kernel'],)), dense


def cases(key, k, n, dtype):
  """{name: (ours, XLA's form, dense float32 weight)} for one k x n."""
  words = {
    f'W4A16 g{_GROUP}': f'int4 g{_GROUP}',
    'W8A16': 'int8',
    'W8A8': 'W8A8',
  }
  return {
    name: _quantised(key, k, n, dtype, scheme) for name, scheme in words.items()
  }


def _agree(name, y, x, dense) -> str:
  """Its error over the largest entry, against the float32 product, and a verdict."""
  want = jnp.matmul(
    x.astype(jnp.float32), dense, precision=jax.lax.Precision.HIGHEST
  )
  error = jnp.abs(y.astype(jnp.float32) - want).max() / jnp.abs(want).max()
  # Half a unit of the result's last place, and sums in another order. Rounding x to
  # int8 adds an error of its own.
  bound = 2 * float(jnp.finfo(y.dtype).eps) + 1e-5
  bound += 0.02 if name == 'W8A8' else 0
  return (
    f'error {float(error):.1e} {"ok" if float(error) <= bound else "WRONG"}'
  )


def _cell(m, k, n, dtype) -> bool:
  """Prints one m and k x n; whether all outputs agree."""
  key = jax.random.key(m)
  x = jax.random.normal(key, (m, k)).astype(dtype)
  found = cases(key, k, n, dtype)
  print(f'\nm = {m}, k x n = {k} x {n}, {dtype}', flush=True)
  verdicts = {}
  for name, ((kernel, args), _, dense) in found.items():
    verdicts[name] = _agree(name, jax.jit(kernel)(x, *args), x, dense)
    if _CHECK.value:
      print(f'  {name:12s} {verdicts[name]}', flush=True)
  if not _CHECK.value:
    _time(x, found, verdicts)
  return not any('WRONG' in v for v in verdicts.values())


# What a program multiplies with in turn, and how often.
_WEIGHTS = 8
_TURNS = 16


def _many(f):
  """A program of `_TURNS` products with each of a list of weights."""

  def run(x, weights):
    def turn(i, ys):
      # Nothing is the same in two turns: XLA would compute it once.
      x_now, now, _ = jax.lax.optimization_barrier((x, weights, i))
      del ys
      return [f(x, *w) for x, w in zip(x_now, now, strict=True)]

    first = jax.eval_shape(turn, 0, None)
    none = [jnp.zeros(y.shape, y.dtype) for y in first]
    return jax.lax.fori_loop(0, _TURNS, turn, none)

  return run


def _copies(tree):
  return [jax.tree.map(jnp.copy, tree) for _ in range(_WEIGHTS)]


def _time(x, found, verdicts):
  dense = next(iter(found.values()))[2].astype(x.dtype)
  xs = _copies(x)
  programs = {'dense': (_many(jnp.matmul), (xs, _copies((dense,))))}
  for name, (ours, xla, _) in found.items():
    programs[name] = _many(ours[0]), (xs, _copies(ours[1]))
    programs[f'{name}, XLA'] = _many(xla[0]), (xs, _copies(xla[1]))
  with futures.ThreadPoolExecutor() as pool:  # All are compiled at once.
    list(pool.map(lambda p: jax.jit(p[0])(*p[1]), programs.values()))
  took = latency.measure(programs, against='dense', seconds=_SECONDS.value)
  products = 1e-3 * _TURNS * _WEIGHTS
  for name, t in took.items():
    middle, low, high = (
      ms / products for ms in (t.median_ms, t.low_ms, t.high_ms)
    )
    line = f'  {name:16s} {middle:8.1f} us ({low:.1f} to {high:.1f})'
    line += f'  {t.speed:5.2f}x dense ({t.speed_low:.2f} to {t.speed_high:.2f})'
    if name in verdicts:
      other = took[f'{name}, XLA'].median_ms
      line += f'  {other / t.median_ms:5.2f}x XLA  {verdicts[name]}'
    print(line, flush=True)


def main(_):
  if _interpret() and not _CHECK.value:
    print(
      'launch.bench.pallas needs an accelerator: JAX sees only CPUs here, where'
      ' these kernels are interpreted and their times mean nothing. Run it on a GPU or'
      ' TPU, or compare outputs with --check --rows=2 --sizes=256x256.',
      file=sys.stderr,
    )
    return 2
  device = jax.devices()[0]
  print(f'{device.device_kind}, jax {jax.__version__}, numpy {np.__version__}')
  agree = True
  for size in _SIZES.value:
    k, n = (int(s) for s in size.split('x'))
    for m in _ROWS.value:
      agree &= _cell(int(m), k, n, jnp.dtype(_DTYPE.value))
  return 0 if agree else 1


if __name__ == '__main__':
  app.run(main)
