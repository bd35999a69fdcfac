"""Bytes of pruned weights: dense, as a bitmask by layer and by row, as N:M.

    python -m launch.bench.sparse_bytes

Prunes stacked matrices [4, 1024, 1024] by magnitude, each layer to the same fraction,
and stores them in float32, bfloat16 and int8 (codes of a channel-wise scale each).
Prints bits a weight in memory by the equation, of the leaf, and in its file after the
header; what putting the zeros back takes; and exits with an error where file, leaf and
equation differ, where a bit is lost, or where `jc.sparsify` takes another form than the
smallest.
"""

import math
import os
import tempfile
import time

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.pruning import masks
from jaxopt_compress.pruning.storage import bitmask
from jaxopt_compress.pruning.storage import n_m_array
from jaxopt_compress.pruning.storage import sparse_codes

_SHAPE = flags.DEFINE_list('shape', ['4', '1024', '1024'], 'Layers, in, out.')

ZEROS = (0.5, 0.8, 0.9, 0.95)
TYPES = ('float32', 'bfloat16', 'int8')
N_M = ((2, 4), (4, 8), (1, 8), (1, 16))


def leaf_of(w, dtype):
  """The pruned layers in a type, before their zeros are left out."""
  if dtype != 'int8':
    return w.astype(dtype)
  uses = jc.uses(_layers)({'w': w}, jnp.ones(w.shape[:2]))
  return jc.quantize({'w': w}, [('w', 'int8')], uses)['w']


def _layers(p, x):
  return jnp.einsum('lk,lkn->ln', x, p['w'])


def stored(leaf, make):
  """`make` of the array, or of the bytes of the codes."""
  if not jc.is_compressed(leaf):
    return make(leaf)
  rest = sparse_codes.rest_of(leaf)
  return jc.pruning.SparseCodes(make(rest), leaf.with_codes(None))


def equation(w, itemsize, lead):
  """Bytes of a bitmask: segments * (ceil(p / 8) + capacity * itemsize)."""
  kept = np.asarray(w != 0).reshape(*w.shape[:lead], -1).sum(-1)
  p = math.prod(w.shape[lead:])
  return kept.size * (-(-p // 8) + int(kept.max()) * itemsize)


def on_disk(leaf, folder):
  """Bytes of a leaf's file after the header, and whether it holds the leaf."""
  path = os.path.join(folder, 'weights.safetensors')
  jc.save(path, leaf)
  with open(path, 'rb') as f:
    header = 8 + int.from_bytes(f.read(8), 'little')
  same = jax.tree.map(
    lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(),
    jc.load(path),
    leaf,
  )
  return os.path.getsize(path) - header, all(jax.tree.leaves(same))


def back_in(leaf):
  """Milliseconds that putting the zeros back takes, the best of five."""
  whole = jax.jit(jc.materialize)
  jax.block_until_ready(whole(leaf))
  times = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready(whole(leaf))
    times.append(time.perf_counter() - start)
  return 1e3 * min(times)


def rows(w, dtype, forms, folder):
  """A line of the table for each form; yields (line, what is off)."""
  leaf = leaf_of(w, dtype)
  scales = jc.nbytes(leaf) - w.size * jnp.dtype(dtype).itemsize
  smallest = jc.nbytes(jc.sparsify({'w': leaf})[0])
  sizes = []
  for name, make, want in forms:
    x = leaf if make is None else stored(leaf, make)
    memory, (disk, same) = jc.nbytes(x), on_disk(x, folder)
    sizes.append(memory)
    lost = not np.array_equal(jc.materialize(x), jc.materialize(leaf))
    off = lost or not same or not want + scales == memory == disk
    bits = ' | '.join(f'{8 * n / w.size:.3f}' for n in (want, memory, disk))
    took = '' if make is None else f'{back_in(x):.1f}'
    yield f'{dtype} | {name} | {bits} | {took}', off
  if smallest > min(sizes):
    yield f'{dtype}: jc.sparsify takes {smallest} bytes', True


def main(_):
  shape = tuple(map(int, _SHAPE.value))
  w = jax.random.normal(jax.random.key(0), shape)
  off = []

  def show(title, w, forms_of):
    for dtype in TYPES:
      forms = forms_of(jnp.dtype(dtype).itemsize)
      for line, wrong in rows(w, dtype, forms, folder):
        print(f'| {title} | {line} |{" OFF" if wrong else ""}', flush=True)
        if wrong:
          off.append(line)

  print('| zeros | type | form | equation | memory | disk | back in ms |')
  print('|---|---|---|---|---|---|---|')
  with tempfile.TemporaryDirectory() as folder:
    for zeros in ZEROS:
      kept = jax.vmap(lambda x, z=zeros: masks.unstructured(jnp.abs(x), z))(w)
      x = jnp.where(kept, w, 0)
      show(
        f'{zeros:.0%}',
        x,
        lambda size, x=x: [
          ('dense', None, x.size * size),
          ('bitmask', lambda a: bitmask.of_array(a, 1), equation(x, size, 1)),
          ('by row', lambda a: bitmask.of_array(a, 2), equation(x, size, 2)),
        ],
      )
    for n, m in N_M:
      x = jnp.where(masks.n_m(jnp.abs(w), n, m, -2), w, 0)
      kept = x.size * n // m
      show(
        f'{n}:{m}',
        x,
        lambda size, x=x, n=n, m=m, kept=kept: [
          ('bitmask', lambda a: bitmask.of_array(a, 1), equation(x, size, 1)),
          (
            f'{n}:{m}',
            lambda a, n=n, m=m: n_m_array.of_array(a, n, m, -2),
            kept * size + kept * n_m_array.index_bits(m) // 8,
          ),
        ],
      )
  if off:
    raise SystemExit(f'{len(off)} are off: {"; ".join(off)}')


if __name__ == '__main__':
  app.run(main)
