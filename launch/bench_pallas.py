"""Pallas kernels against XLA, on the GPU or TPU that this runs on.

    python -m launch.bench_pallas
    python -m launch.bench_pallas --rows=1 --sizes=4096x4096 --dtype=float32

For every m and k x n, interleaved in one process: XLA's product with a dense weight,
and for each compression the kernel beside XLA's own lowering of the same equation
(dequantise, then dot; int8 dot; expand, then dot). Prints the median and quartiles
of each time, its speed over the dense product and over XLA's form, and whether the
outputs agree. Weights are arguments, so that nothing is folded beforehand.

On a CPU there is nothing to time: it says so and exits with code 2. With --check it
compares outputs only, interpreted on a CPU; choose small sizes there.
"""

import functools
import sys

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels.pallas import dynamic
from jaxopt_compress.kernels.pallas import n_m
from jaxopt_compress.kernels.pallas import weight_only
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


# ------------------------------------------------- weights, and XLA's own products


def _integers(key, k, n, bits, group):
  """Codes and scales whose dense weight has entries of about 1 / sqrt(k)."""
  top = 2 ** (bits - 1)
  codes = jax.random.randint(key, (k, n), -top, top, jnp.int8)
  groups = 1 if group is None else -(-k // group)
  scale = jax.random.uniform(key, (groups, n), minval=0.5, maxval=1.0)
  return codes, scale / (top * k**0.5)


def _dequantised(codes, scale, dtype):
  """[k, n] of `dtype`."""
  k, n = codes.shape
  groups = scale.shape[0]
  each = -(-k // groups)
  codes = jnp.pad(codes.astype(dtype), ((0, groups * each - k), (0, 0)))
  w = codes.reshape(groups, each, n) * scale.astype(dtype)[:, None]
  return w.reshape(groups * each, n)[:k]


def _xla_weight_only(x, codes, scale):
  return x @ _dequantised(codes, scale, x.dtype)


def _xla_dynamic(x, codes, scale):
  codes_x, scale_x = dynamic.quantize(x)
  dims = (((1,), (0,)), ((), ()))
  sums = jax.lax.dot_general(
    codes_x, codes, dims, preferred_element_type=jnp.int32
  )
  return (sums.astype(jnp.float32) * scale_x * scale).astype(x.dtype)


def _expanded(values, indices):
  """[k, n] of a 2:4 weight."""
  n = values.shape[1]
  groups = lambda a: a.reshape(-1, 2, 1, n)
  here = (
    groups(indices) == jnp.arange(4, dtype=indices.dtype)[None, None, :, None]
  )
  return jnp.where(here, groups(values), 0).sum(1).reshape(-1, n)


def _xla_n_m(x, values, indices):
  return x @ _expanded(values, indices).astype(x.dtype)


# --------------------------------------------------------------------- programs


def _weight_only(key, k, n, bits, group):
  codes, scale = _integers(key, k, n, bits, group)
  how = dict(bits=bits, group=group)
  w = jax.jit(functools.partial(weight_only.lay_out, **how))(codes, scale)
  kernel = functools.partial(
    weight_only.matmul, n=n, interpret=_interpret(), **how
  )
  narrow = codes.astype(jnp.int4) if bits == 4 else codes
  dense = _dequantised(codes, scale, jnp.float32)
  return (kernel, (w,)), (_xla_weight_only, (narrow, scale)), dense


def _dynamic(key, k, n):
  codes, scale = _integers(key, k, n, 8, None)
  w = jax.jit(dynamic.lay_out)(codes, scale)
  kernel = functools.partial(dynamic.matmul, n=n, interpret=_interpret())
  dense = _dequantised(codes, scale, jnp.float32)
  return (kernel, (w,)), (_xla_dynamic, (codes, scale)), dense


def _n_m(key, k, n, dtype):
  if k % 4:
    raise ValueError(f'2:4 needs k % 4 == 0 in this script, not k = {k}.')
  shape = k // 4, 4, n
  order = jnp.argsort(jax.random.uniform(key, shape), axis=1)[:, :2]
  indices = jnp.sort(order, axis=1).reshape(k // 2, n).astype(jnp.int8)
  values = (jax.random.normal(key, (k // 2, n)) * k**-0.5).astype(dtype)
  w = jax.jit(functools.partial(n_m.lay_out, k=k, kept=2, of=4))(
    values, indices
  )
  kernel = functools.partial(
    n_m.matmul, n=n, kept=2, of=4, interpret=_interpret()
  )
  dense = _expanded(values, indices).astype(jnp.float32)
  return (kernel, (w,)), (_xla_n_m, (values, indices)), dense


def cases(key, k, n, dtype):
  """{name: (kernel, XLA's form, dense float32 weight)} for one k x n."""
  return {
    'W4A16 g128': _weight_only(key, k, n, 4, min(_GROUP, k)),
    'W8A16': _weight_only(key, k, n, 8, None),
    'W8A8': _dynamic(key, k, n),
    '2:4': _n_m(key, k, n, dtype),
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


def _time(x, found, verdicts):
  dense = next(iter(found.values()))[2].astype(x.dtype)
  programs = {'dense': (jnp.matmul, (x, dense))}
  for name, (kernel, xla, _) in found.items():
    programs[name] = kernel[0], (x, *kernel[1])
    programs[f'{name}, XLA'] = xla[0], (x, *xla[1])
  took = latency.measure(programs, against='dense', seconds=_SECONDS.value)
  for name, t in took.items():
    line = (
      f'  {name:16s} {t.median_ms:9.4f} ms ({t.low_ms:.4f} to {t.high_ms:.4f})'
    )
    line += f'  {t.speed:5.2f}x dense ({t.speed_low:.2f} to {t.speed_high:.2f})'
    if name in verdicts:
      other = took[f'{name}, XLA'].median_ms
      line += f'  {other / t.median_ms:5.2f}x XLA  {verdicts[name]}'
    print(line, flush=True)


def main(_):
  if _interpret() and not _CHECK.value:
    print(
      'bench_pallas needs an accelerator: JAX sees only CPUs here, where these'
      ' kernels are interpreted and their times mean nothing. Run it on a GPU or'
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
