"""What attention costs: against XLA's program, torch's, and reading the cache.

    python -m launch.bench.attention --rivals=/path/to/python

Sentences: batch x tokens x heads x features in float32, the time of a call of
`jc.kernels.attention` and how many times longer the others take: `XLA` runs
`jax.nn.dot_product_attention`, `torch` its `scaled_dot_product_attention` in the
interpreter of --rivals. Decoding: one query over a cache of 2,048 places, its bytes a
second as a share of what the cores read from a buffer of as many bytes. All in turns on
the same cores, medians of --rounds. `error` is the largest difference from float64 over
the largest of |v|.

Leave the cores alone meanwhile.
"""

import functools
import os
import pathlib
import shutil
import subprocess
import tempfile

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress import kernels
from jaxopt_compress.kernels import scores
from jaxopt_compress.kernels.cpu import attention
from jaxopt_compress.kernels.cpu import native
from launch.bench.kernels import turns

_RIVALS = flags.DEFINE_string('rivals', '', 'A python that has torch.')
_ROUNDS = flags.DEFINE_integer('rounds', 9, 'Turns of each.')
_TURN_MS = flags.DEFINE_float('turn_ms', 10.0, 'The least time of a turn.')
_CORES = flags.DEFINE_list('cores', [], 'Which to use; all if empty.')
_SIZES = flags.DEFINE_list(
  'sizes',
  ['1x16x12x32', '20x13x12x32', '8x64x12x32', '32x64x12x32', '8x128x12x32'],
  'Sentences, as batch x tokens x heads x features.',
)
_CACHES = flags.DEFINE_list(
  'caches',
  ['8x2048x12x64', '1x2048x32x128'],
  'Caches that are decoded over, likewise.',
)
_READ = str(pathlib.Path(__file__).parent / 'kernels' / 'ceilings.cc')


def _sizes(text):
  return tuple(int(n) for n in text.split('x'))


def _normal(seed, shape):
  return jax.random.normal(jax.random.key(seed), shape)


def _error(y, q, k, v):
  """The largest difference from float64, over the largest of |v|."""
  q, k, v = (np.float64(a) for a in (q, k, v))
  x = np.einsum('bthd,bshd->bhts', q, k) / q.shape[-1] ** 0.5
  w = np.exp(x - x.max(-1, keepdims=True))
  w /= w.sum(-1, keepdims=True)
  exact = np.einsum('bhts,bshd->bthd', w, v)
  return np.abs(np.float64(y) - exact).max() / np.abs(v).max()


def _players(found, worker, name, query, key, heads_first=False):
  """Those of torch, if there is an interpreter that has it."""
  if worker is None:
    return
  worker.ask_json(
    do='prepare', name=name, query=query, key=key, heads_first=heads_first
  )
  found['torch'] = turns.Contestant(
    lambda calls: worker.ask_json(do='turn', name=name, calls=calls), worker.pid
  )


def _run(players):
  return turns.interleave(players, _ROUNDS.value, _TURN_MS.value * 1e-3)


def _sentences(worker):
  print('sentences         ours, ms   XLA   torch   error')
  for text in _SIZES.value:
    shape = _sizes(text)
    q, k, v = (_normal(i, shape) for i in range(3))
    ours = jax.jit(kernels.attention)
    players = {
      'ours': turns.here(ours, q, k, v),
      'XLA': turns.here(jax.jit(jax.nn.dot_product_attention), q, k, v),
    }
    _players(players, worker, text, shape, shape)
    took = _run(players)
    ratio = {name: np.median(t / took['ours']) for name, t in took.items()} | (
      {} if worker else {'torch': np.nan}
    )
    error = _error(ours(q, k, v), q, k, v)
    print(
      f'{text:16}  {1e3 * np.median(took["ours"]):8.3f}'
      f'  {ratio["XLA"]:4.1f}  {ratio["torch"]:6.2f}   {error:.1e}',
      flush=True,
    )


def _cache(shape, kind):
  """Keys or values of a cache, and scales of its rows or None."""
  x = _normal(7, shape)
  if kind != 'int8':
    return x.astype(kind), None
  scale = jnp.abs(x).max(-1, keepdims=True) / 127
  return jnp.round(x / scale).astype(jnp.int8), scale


def _decoding(worker, ceiling):
  print(
    'decoding          cache      ours, ms   GB/s  share   XLA   torch   error'
  )
  for text in _CACHES.value:
    b, s, h, d = _sizes(text)
    form = attention.Form(scale=d**-0.5, key='bhtd', value='bhtd')
    for kind in ('float32', 'bfloat16', 'int8'):
      cache, scale = _cache((b, h, s, d), kind)
      q = _normal(1, (b, 1, h, d))
      operands = attention.Operands(
        q, cache, cache + 0, key_scale=scale, value_scale=scale
      )
      ours = jax.jit(functools.partial(scores.attend, form=form))
      whole = functools.partial(
        scores.in_xla, form=form, out_dtype=jnp.dtype(jnp.float32)
      )
      players = {
        'ours': turns.here(ours, operands),
        'XLA': turns.here(jax.jit(whole), operands),
      }
      if kind == 'float32':
        _players(players, worker, text, (b, 1, h, d), (b, h, s, d), True)
      stored = np.float64(cache if scale is None else cache * scale)
      stored = stored.swapaxes(1, 2)
      error = _error(ours(operands), q, stored, stored)
      nbytes = sum(
        a.nbytes for a in (cache, cache, scale, scale) if a is not None
      )
      if ceiling is not None:
        line = f'read {-(-nbytes >> 20)}'
        players['read'] = turns.Contestant(
          lambda _, line=line: float(ceiling.ask(line)), ceiling.pid
        )
      took = _run(players)
      nan = np.full(_ROUNDS.value, np.nan)
      rate = 1e-9 * nbytes / took['ours']
      ratio = {
        name: np.median(took.get(name, nan) / took['ours'])
        for name in ('XLA', 'torch')
      }
      print(
        f'{text:16}  {kind:9}  {1e3 * np.median(took["ours"]):8.3f}'
        f'  {np.median(rate):5.1f}  {np.median(rate / took.get("read", nan)):5.2f}'
        f'  {ratio["XLA"]:4.1f}  {ratio["torch"]:6.2f}   {error:.1e}',
        flush=True,
      )


def main(_):
  if _CORES.value:
    os.sched_setaffinity(0, {int(c) for c in _CORES.value})
  if not native.available():
    return 'The CPU kernels were not built, so there is nothing to measure.'
  worker = ceiling = None
  if _RIVALS.value:
    script = str(pathlib.Path(__file__).parent / 'attention_torch.py')
    worker = turns.Worker([_RIVALS.value, '-W', 'ignore', script])
  with tempfile.TemporaryDirectory() as folder:
    compiler = shutil.which('g++') or shutil.which('c++')
    if compiler is not None:
      program = f'{folder}/top'
      how = ['-O3', '-march=native', '-std=c++17', '-pthread', '-o', program]
      subprocess.run([compiler, _READ, *how], check=True)
      ceiling = turns.Worker([program])
    print(
      f'cores {sorted(os.sched_getaffinity(0))}, load {os.getloadavg()[0]:.1f}'
    )
    _sentences(worker)
    _decoding(worker, ceiling)
    for each in (worker, ceiling):
      if each is not None:
        each.close()


if __name__ == '__main__':
  app.run(main)
