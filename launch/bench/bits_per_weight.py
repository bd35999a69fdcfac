"""Bits per weight, for every format; what rules of MX scales lose.

    python -m launch.bench.bits_per_weight

Quantises a matrix [4096, 1024] every way and prints
- the arithmetic of the format: bits of a code, and of what codes share;
- `jc.nbytes` of the leaf, eight times, over the number of weights;
- the bytes of its file after the header (`jc.save`), likewise.
Exits with an error where the three are not the same, or where the file does not
hold what was saved. Then prints the error of each format with MX scales by each rule,
relative and root mean square, on draws from a normal and from a Laplace distribution;
exits with an error where the rule that the words take is not the best.
"""

import math
import os
import tempfile

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.quantization import schemes
from jaxopt_compress.quantization import spec as spec_lib

_SHAPE = flags.DEFINE_list('shape', ['4096', '1024'], 'Of the matrix.')

BITS = {
  'binary': 1,
  'ternary': 2,
  **{f'int{b}': b for b in range(2, 9)},
  'e2m1': 4,
  'nf4': 4,
  'e2m3': 6,
  'e3m2': 6,
  'e4m3': 8,
  'e5m2': 8,
}
SCALE_BITS = {'float32': 32, 'bfloat16': 16, 'e8m0': 8, 'e4m3': 8, 'int8': 8}
GRANULARITIES = ('channel', 'g128 bfloat16', 'g64 asym bfloat16', '32x32')


def cases():
  """(name, spec) of each row: every format, then the weights of every preset."""
  for format in BITS:
    for words in GRANULARITIES:
      yield f'{format} | {words}', spec_lib.parse(f'{format} {words}')
  for name, scheme in schemes.PRESETS.items():
    words = scheme.weight.describe()
    yield f'{name} | {words}', scheme.weight


def arithmetic(spec, k, n):
  """[(bits, how many of them)] of a matrix [k, n] whose columns are contracted."""
  bits = BITS[spec.format]
  # A column is filled up to whole bytes: eight codes of three bits are three.
  unit = math.lcm(bits, 8) // bits
  sizes = spec.group if isinstance(spec.group, tuple) else (spec.group,) * 2
  rows, columns = {
    'tensor': (1, 1),
    'channel': (1, n),
    'group': (-(-k // (sizes[0] or k)), n),
    'block': (-(-k // (sizes[0] or k)), -(-n // (sizes[1] or n))),
  }[spec.granularity]
  blocks = rows * columns
  parts = [(bits, -(-k // unit) * unit * n), (SCALE_BITS[spec.scale], blocks)]
  if not spec.symmetric:
    whole = spec.format.startswith('int') and bits > 2
    parts.append((8 if whole else 32, blocks))
  if spec.scale == 'e4m3':  # NVFP4: one more for the matrix
    parts.append((32, 1))
  if spec.scale == 'int8':  # one more for 256 scales, and their mean
    along = min(rows, 256)
    across = min(columns, max(256 // along, 1))
    parts += [(32, -(-rows // along) * -(-columns // across)), (32, 1)]
  return parts


def measure(w, spec, path):
  """Bytes of a leaf in memory and of its file after the header."""
  q = jc.quantize({'kernel': w}, [(r'kernel', spec)])
  jc.save(path, q)
  same = jax.tree.map(
    lambda a, b: (
      a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    ),
    jc.load(path),
    q,
  )
  with open(path, 'rb') as f:
    header = 8 + int.from_bytes(f.read(8), 'little')
  return (
    jc.nbytes(q),
    os.path.getsize(path) - header,
    all(jax.tree.leaves(same)),
  )


def table(k, n):
  """Prints the table; returns the names of rows that are off."""
  w = jax.random.normal(jax.random.key(0), (k, n))
  off = []
  print('| format | scales | arithmetic | bits | in memory | on disk |')
  print('|---|---|---|---|---|---|')
  with tempfile.TemporaryDirectory() as folder:
    for name, spec in cases():
      parts = arithmetic(spec, k, n)
      want = sum(bits * count for bits, count in parts)
      memory, disk, same = measure(w, spec, os.path.join(folder, 'weights'))
      good = same and want == 8 * memory == 8 * disk
      if not good:
        off.append(name)
      sum_of = ' + '.join(_share(bits, k * n / count) for bits, count in parts)
      each = ' | '.join(
        f'{x / (k * n):.4f}' for x in (want, 8 * memory, 8 * disk)
      )
      print(f'| {name} | {sum_of} | {each} |{"" if good else " OFF"}')
  return off


def _share(bits, entries):
  return f'{bits}' if entries <= 1 else f'{bits}/{entries:.10g}'


MX = ('e4m3', 'e5m2', 'e3m2', 'e2m3', 'e2m1', 'int8')


def rules_table(k, n):
  """Prints the errors of MX rules; returns the formats whose rule is not the best."""
  key, off = jax.random.key(0), []
  draws = [
    draw(key, (k, n)) for draw in (jax.random.normal, jax.random.laplace)
  ]
  print(f'\n| g32 mx, normal and Laplace | {" | ".join(spec_lib.RULES)} |')
  print(f'|---{"|---" * len(spec_lib.RULES)}|')
  for format in MX:
    taken = spec_lib.parse(f'{format} g32 mx').rule
    errors = {
      rule: [float(_error(w, f'{format} g32 mx {rule}')) for w in draws]
      for rule in spec_lib.RULES
    }
    # Rules that differ in ties alone are as good as each other.
    best = [min(e) * 1.001 for e in zip(*errors.values(), strict=True)]
    good = all(e <= b for e, b in zip(errors[taken], best, strict=True))
    if not good:
      off.append(f'{format} {taken}')
    cells = []
    for rule, pair in errors.items():
      figures = ', '.join(f'{e:.5f}' for e in pair)
      cells.append(f'**{figures}**' if rule == taken else figures)
    print(f'| {format} | {" | ".join(cells)} |{"" if good else " OFF"}')
  return off


def _error(w, words):
  """Root mean square of what rounding changes, relative to the matrix."""
  q = jc.quantize({'kernel': w}, [(r'kernel', words)])['kernel']
  return jnp.linalg.norm(q.materialize() - w) / jnp.linalg.norm(w)


def main(_):
  k, n = map(int, _SHAPE.value)
  if off := table(k, n) + rules_table(k, n):
    raise SystemExit(f'{len(off)} are off: {"; ".join(off)}')


if __name__ == '__main__':
  app.run(main)
